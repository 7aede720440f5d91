// Package settle is what a node does for a control store that was restored from a backup, or rebuilt (rule R3): it says what
// its stores hold, and one node makes the journals' keys fit once all have answered.
//
// Start at Helper.Settle. What a helper remembers is which control store it has told already; a node that starts again tells
// it once more. The state is the control store's (internal/control, reconcile.go).
package settle
