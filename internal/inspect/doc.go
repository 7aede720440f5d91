// Package inspect prints the files that dozo keeps data in, segments of journals and of checkpoints, for people
// and for tests: every checksum in them is verified, whatever is printed. No node need run.
//
// Start at File. What a file holds is decoded by the packages that write it (core for segments and records,
// volume for the parts of checkpoints); this package chooses how much of that is shown.
//
// Always true: files are only read. Offsets and sizes are bytes.
package inspect
