// Package history knows what a disk must contain after servers have died: it writes numbered, checksummed blocks,
// keeps a log of what was issued, acknowledged and flushed, and reads the blocks back against that log. It also records
// what several clients saw of shared blocks and decides whether some single order explains it.
//
// Start at Writer.Run, which writes, and Check, which reads back; Log is what connects them, also over processes.
// Recorder and CheckRegisters are the part for several clients.
//
// A Log belongs to one Writer at a time, whose lock guards it. What is always true: an issue is in the log file (the
// kernel has it) before the write leaves for the target; an acknowledgement is in it only after the target's answer.
// So a writer that is killed loses at most acknowledgements, which makes the check weaker, never wrong.
//
// Two writes of one block are never under way at the same time: a block's write numbers are the order of its writes.
//
// Blocks are 4,096 bytes, numbered from the start of the disk. The bytes of a block are in block.go, those of the log
// file in log.go.
package history
