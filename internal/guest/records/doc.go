// Package records is what a guest writes to its disk while it is migrated, and how one sees afterwards what became of
// it: numbered blocks with a checksum, each written and flushed before the next, in a ring of slots.
//
// Start at Writer, which runs in the guest, and Check, which reads the ring from outside once the writer has ended.
//
// Always true: at any moment at most one record is under way; record N lies in slot N modulo the number of slots; a
// record that was acknowledged is stable, and so is every one before it. So what may be found on the disk is known to
// the record. Numbers begin at 1. Lengths are bytes. The layout of a block is at Append.
package records
