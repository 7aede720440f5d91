// Package reserve has what several initiators share about one logical unit and no transport decides: who an
// I_T nexus is, the unit attention conditions that wait for it, and the states of the paths (asymmetric
// logical unit access). It is a leaf below scsi and speaks no protocol's bytes but SPC's codes.
//
// Start at NexusID, then Attentions and PathInfo. Attentions is safe for concurrent use; the other types are
// plain values.
//
// Invariants: an attention waits at most once in a queue; the order in which conditions are reported is that
// in which they were established; a queue never grows past AttentionsMax.
//
// Bytes: SPC-4 5.15 (asymmetric access), SAM-5 5.14 (unit attentions).
package reserve
