// Package reserve has what several initiators share about one logical unit and no transport decides: who an
// I_T nexus is, the unit attention conditions that wait for it, the states of the paths (asymmetric logical
// unit access), and the unit's State: persistent registrations and reservations, RESERVE, the mode parameters
// that can be changed, a sanitize operation. It is a leaf below scsi and speaks no protocol's bytes but SPC's
// codes.
//
// Start at State and its Apply: it decides upon a Command without I/O, clock or lock, so that the owner of a
// volume decides it at its place in the history (rule R7) and a test decides it in a table. What a decision
// has to tell other initiators comes as Events; the owner passes them, in a Snapshot, to every access server,
// which posts them to the Attentions of the nexuses that they concern.
//
// Invariants: a State is never modified; Event numbers have no gaps; of a reservation that one nexus holds
// exactly one registration is marked; an attention waits at most once in a queue, and a queue never grows past
// AttentionsMax. Attentions is safe for concurrent use; the other types are plain values.
//
// Bytes: docs/format.md, "State of a unit" (State), docs/wire.md, "Unit" (Command, Snapshot). Standards: SPC-4
// 5.13 (reservations), 5.16 (asymmetric access), SAM-5 5.14 (unit attentions), SPC-2 5.5 (RESERVE, RELEASE).
package reserve
