// Package migrate measures what a live migration does to a guest's disk: a guest writes numbered, flushed records
// (internal/guest/records) while it moves from one QEMU to another, which reach the disk in different ways: each by
// the portal of its own site, say.
//
// Start at Run. It does the same twice, first with a local file as the disk, then with the disk in question, because
// software emulation and the migration itself stop a guest for some time whatever its disk is: only the difference says
// something about the disk.
//
// Two clocks are kept apart: when a record was acknowledged is the host's time of hearing of it, which goes on while the guest
// is stopped; how long a record took is the guest's own. In reports durations are milliseconds, times are relative to
// the beginning of the migration.
package migrate
