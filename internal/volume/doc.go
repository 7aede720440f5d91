// Package volume is the map of a volume: which block lies where in which segment of the journal, how much of
// every segment is still alive, and the checkpoints that spare a new owner the replay of the whole history.
//
// Start at Map (map.go): Apply takes the committed records in order of seq, Lookup answers reads. Below it a
// leaf (leaf.go) maps 4 MiB, pages and directories of 512 each make the tree (tree.go), the segment table
// (table.go) gives the segments small numbers, Requests (requests.go) remembers which client requests are in
// the history. Checkpoint (checkpoint.go) writes what changed as a copy-on-write tree of parts, Load (load.go)
// reads it back, InspectPart prints a part.
//
// One caller owns a Map and everything that hangs on it: there is no lock, goroutine, clock or I/O inside. A
// leaf that isn't in memory is asked for by number; the owner reads its part and hands it to Loaded. A
// checkpoint runs beside the writes: it shows the map as it was when it began.
//
// Invariants: a block is mapped to one block of one write record or to nothing, which reads as zeroes; several
// blocks may be mapped to the same one (Copy); the
// live count of a segment is never below the number of blocks mapped to it, and equal once no leaf is
// pending; a slot of the segment table is given to another segment only when nothing maps to it; a leaf
// leaves memory only when its part in the last finished checkpoint says the same.
//
// Blocks are 4,096 bytes, offsets are bytes in a segment. Bytes on disk: docs/format.md, "Checkpoints".
package volume
