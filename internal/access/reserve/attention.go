package reserve

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Attention is a unit attention condition: its additional sense code and qualifier.
type Attention struct{ ASC, ASCQ byte }

// The conditions that dozo establishes (SPC-4 annex D.2).
var (
	PowerOn                = Attention{0x29, 0x00}
	BusReset               = Attention{0x29, 0x02}
	DeviceReset            = Attention{0x29, 0x03}
	NexusLoss              = Attention{0x29, 0x07}
	ModeParametersChanged  = Attention{0x2a, 0x01}
	ReservationsPreempted  = Attention{0x2a, 0x03}
	ReservationsReleased   = Attention{0x2a, 0x04}
	RegistrationsPreempted = Attention{0x2a, 0x05}
	AccessStateChanged     = Attention{0x2a, 0x06}
	CapacityChanged        = Attention{0x2a, 0x09}
	CommandsCleared        = Attention{0x2f, 0x00}
	ClearedByProtocol      = Attention{0x47, 0x7f} // SOME COMMANDS CLEARED BY ISCSI PROTOCOL EVENT
	LUNsChanged            = Attention{0x3f, 0x0e}
	InquiryDataChanged     = Attention{0x3f, 0x03}
	ThresholdReached       = Attention{0x38, 0x07}
)

// AttentionsMax bounds a queue. It is more than there are conditions; since a condition waits at most once, a
// full queue means that somebody posts codes of their own, and those are dropped.
const AttentionsMax = 32

// isReset reports a condition of the power-on and reset family, which clears the ones established before it
// (SAM-5 5.14.1: a device server may drop conditions of lower precedence).
func (a Attention) isReset() bool { return a.ASC == 0x29 }

// Attentions is the queue of unit attention conditions of one I_T_L nexus. The zero value is empty.
type Attentions struct {
	waiting atomic.Int32 // len(mu.queue), so that the common case, none, takes no lock
	mu      struct {
		sync.Mutex
		queue []Attention
	}
}

// Post establishes a condition; one that already waits is not added again.
func (q *Attentions) Post(a Attention) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if a.isReset() {
		if i := slices.IndexFunc(q.mu.queue, Attention.isReset); i >= 0 {
			// One reset is reported once, whoever tells of it first; of several kinds the one of higher precedence, which
			// the qualifiers are in the order of (SAM-5 5.14.1).
			q.mu.queue[i].ASCQ = min(q.mu.queue[i].ASCQ, a.ASCQ)
			q.mu.queue = q.mu.queue[i : i+1]
			q.waiting.Store(1)
			return
		}
		q.mu.queue = q.mu.queue[:0]
	} else if slices.Contains(q.mu.queue, a) || len(q.mu.queue) == AttentionsMax {
		return
	}
	q.mu.queue = append(q.mu.queue, a)
	q.waiting.Store(int32(len(q.mu.queue)))
}

// Take removes the oldest condition: reporting it clears it (UA_INTLCK_CTRL 00b).
func (q *Attentions) Take() (Attention, bool) {
	if q.waiting.Load() == 0 {
		return Attention{}, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.mu.queue) == 0 {
		return Attention{}, false
	}
	a := q.mu.queue[0]
	q.mu.queue = slices.Delete(q.mu.queue, 0, 1)
	q.waiting.Store(int32(len(q.mu.queue)))
	return a, true
}

// Discard removes a condition without reporting it, for a command whose answer carries the same news
// (REPORT LUNS clears LUNsChanged).
func (q *Attentions) Discard(a Attention) {
	if q.waiting.Load() == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.queue = slices.DeleteFunc(q.mu.queue, func(w Attention) bool { return w == a })
	q.waiting.Store(int32(len(q.mu.queue)))
}

// Peek gives the oldest condition without taking it, and how many there are.
func (q *Attentions) Peek() (a Attention, count int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.mu.queue) > 0 {
		a = q.mu.queue[0]
	}
	return a, len(q.mu.queue)
}
