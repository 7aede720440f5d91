package control

import "dozo/internal/ident"

// journalChange is a change of one journal's key with the change ID under which it can be proved.
type journalChange struct {
	journal  ident.JournalID
	expect   Rev
	changeID string
	state    JournalState
}
