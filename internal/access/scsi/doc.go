// Package scsi is the device server: it turns command descriptor blocks into calls of a Disk and what the
// Disk says into data, status and sense. It knows no transport and no network; a transport gives it
// Commands and sends what they answer.
//
// Start at Nexus and Command: a transport makes one Nexus per session, and for each command calls Prepare
// (in the order of arrival: checks, unit attentions, how much data will move), Allocate (where the data-out
// goes), fills Command.Out, and Execute; Command.Finish is called once, from whatever goroutine the Disk
// completed on, possibly before Execute has returned. spc.go has what all device types answer, sbc*.go the
// direct access block device; opcodes.go is the table of both, and what REPORT SUPPORTED OPERATION CODES
// says.
//
// Ownership: a Command and its buffers belong to the transport until Execute, to the device server until
// Finish, then to the transport again, which gives everything back with Command.Reset. A WriteBuffer passes
// to the Disk with Write; one never written is released by Reset.
//
// Invariants: no CDB, however malformed, reaches the Disk with a range beyond its Geometry; every error of a
// Disk becomes status and sense in one table (errors.go); a Command that succeeded has moved exactly
// min(what the CDB asked, what the initiator expected) bytes.
//
// Units: offsets and lengths of the Disk are bytes, LBAs are logical blocks.
//
// Bytes: SPC-4 (INCITS 513), SBC-3 (INCITS 514). Sections and tables of SPC-4 are those of revision 36f.
package scsi
