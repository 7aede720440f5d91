package access

import (
	"time"

	"dozo/internal/ident"
)

// falseAlarms remembers nodes that were out of reach and came back: slow, not dead. A node with thousands of volumes that is
// slow for a moment loses them all to another, which is slow by that; then that one's are taken, and so on, until nothing is
// done but takeovers. So what nobody uses here waits longer the more often that has happened lately. What is in use does
// not, and where the host says that the process has ended nothing does.
type falseAlarms map[ident.NodeName]alarm

type alarm struct {
	times int
	last  time.Time
}

const (
	alarmsMost   = 4                // doublings: 24 s
	alarmsForget = 10 * time.Minute // without another one
)

// note counts one.
func (f *falseAlarms) note(n ident.NodeName, now time.Time) {
	if *f == nil {
		*f = falseAlarms{}
	}
	(*f)[n] = alarm{f.more(n, now) + 1, now}
}

// more is how often the patience with a node is doubled.
func (f *falseAlarms) more(n ident.NodeName, now time.Time) int {
	a := (*f)[n]
	if now.Sub(a.last) > alarmsForget {
		return 0
	}
	return min(a.times, alarmsMost)
}
