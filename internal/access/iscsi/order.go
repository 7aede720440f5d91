package iscsi

import (
	"errors"
	"sync"
	"time"
)

// ordering delivers the numbered requests of a session in the order of their CmdSNs where they may arrive in
// another one: over several connections, or with retries within one (RFC 7143 4.2.2.1). A session with one
// connection and without recovery doesn't use it.
//
//	arrived, out of order ──> held ──(its turn, no fence)──> delivered
//	numbers: ... delivered | next ... received | ExpCmdSN ... gaps and held ... | MaxCmdSN
//
// A task is held with its slot and whatever data came with it, so what can be held is bounded by the window.
//
// An ORDERED task starts when everything before it has ended, and fences what comes after it but HEAD OF QUEUE tasks.
type ordering struct {
	mu          sync.Mutex
	next        uint32          // the next one to deliver
	held        map[uint32]held // received and not delivered
	barred      []early         // immediate requests that wait for all before them
	delivering  bool            // somebody runs deliver
	outstanding int             // tasks delivered and not ended
	fence       bool            // one of them is ORDERED
}

// held is a request that waits for its turn: a task, something to call, or a number that is merely used up.
type held struct {
	task *task
	call func()
	conn *conn // of call
}

// early is an immediate task management request: it concerns everything numbered before it.
type early struct {
	cmdSN uint32
	call  func()
}

// acceptable reports whether a numbered request is inside the window and new (RFC 7143 4.2.2.1); gap says that
// something before it has not arrived.
func (x *Session) acceptable(sn uint32) (ok, gap bool) {
	exp, limit := x.expCmdSN.Load(), x.maxCmdSN.Load()
	if before(sn, exp) || before(limit, sn) {
		return false, false
	}
	if x.unordered {
		x.order.mu.Lock()
		_, twice := x.order.held[sn]
		x.order.mu.Unlock()
		if twice {
			return false, false
		}
	}
	return true, sn != exp
}

// receive takes a request with number sn as arrived, and delivers what that lets through. It reports false for
// a number that is used already.
func (x *Session) receive(sn uint32, h held) bool {
	o := &x.order
	o.mu.Lock()
	defer o.mu.Unlock()
	exp := x.expCmdSN.Load()
	if _, twice := o.held[sn]; twice || before(sn, exp) || before(x.maxCmdSN.Load(), sn) {
		return false
	}
	o.held[sn] = h
	for {
		if _, ok := o.held[exp]; !ok {
			break
		}
		exp++
	}
	x.expCmdSN.Store(exp)
	x.deliverLocked()
	return true
}

// skip uses up a number whose request will not be carried out: ABORT TASK came for it first (RFC 7143 11.6.1).
func (x *Session) skip(sn uint32) bool {
	ok, _ := x.acceptable(sn)
	if ok = ok && x.receive(sn, held{}); ok {
		x.maxCmdSN.Add(1)
	}
	return ok
}

// afterAll calls f once everything numbered before sn has been delivered.
func (x *Session) afterAll(sn uint32, f func()) {
	o := &x.order
	o.mu.Lock()
	defer o.mu.Unlock()
	o.barred = append(o.barred, early{sn, f})
	x.deliverLocked()
}

// deliverLocked delivers what is due, one at a time and by one goroutine at a time. It releases and retakes the
// lock.
func (x *Session) deliverLocked() {
	o := &x.order
	if o.delivering {
		return
	}
	o.delivering = true
	for {
		call := o.dueLocked(x.expCmdSN.Load())
		if call == nil {
			break
		}
		o.mu.Unlock()
		call()
		o.mu.Lock()
	}
	o.delivering = false
}

// dueLocked takes the next request out, nil if there is none that may be delivered. Everything before exp has come.
func (o *ordering) dueLocked(exp uint32) func() {
	for {
		for i, e := range o.barred {
			if !before(o.next, e.cmdSN) {
				o.barred = append(o.barred[:i], o.barred[i+1:]...)
				return e.call
			}
		}
		h, ok := o.held[o.next]
		switch {
		case !ok:
			return nil
		case h.task != nil && (o.fence && !h.task.head || h.task.ordered && o.outstanding > 0):
			return o.headLocked(exp)
		}
		delete(o.held, o.next)
		o.next++
		switch {
		case h.task != nil:
			o.outstanding++
			o.fence = o.fence || h.task.ordered
			return h.task.deliver
		case h.call != nil:
			return h.call
		}
	}
}

// headLocked takes out a HEAD OF QUEUE task that is behind what waits for an ORDERED one (SAM-5 8.6.2), nil if there is none: the number
// of what it passes has come, so nothing is delivered early. It does not pass a task management function.
func (o *ordering) headLocked(exp uint32) func() {
	for sn := o.next; before(sn, exp); sn++ {
		switch h := o.held[sn]; {
		case h.call != nil:
			return nil
		case h.task != nil && h.task.head:
			o.held[sn] = held{}
			o.outstanding++
			return h.task.deliver
		}
	}
	return nil
}

// dropHeld takes a task that is aborted out of the order; false if it was delivered already.
func (x *Session) dropHeld(t *task) bool {
	o := &x.order
	o.mu.Lock()
	defer o.mu.Unlock()
	if h := o.held[t.cmdSN]; h.task != t {
		return false
	}
	o.held[t.cmdSN] = held{}
	return true
}

// errGap ends a session whose next command doesn't come: it was lost with a connection, or never sent.
var errGap = errors.New("a command is missing and does not come")

// watchGap ends the session if commands wait for one that has not come for a time.
func (x *Session) watchGap(now time.Time, limit time.Duration) {
	if !x.unordered {
		return
	}
	o := &x.order
	o.mu.Lock()
	exp := x.expCmdSN.Load()
	waits := uint32(len(o.held)) > exp-o.next || len(o.barred) > 0
	o.mu.Unlock()
	x.mu.Lock()
	switch {
	case !waits:
		x.mu.gapped = time.Time{}
	case x.mu.gapped.IsZero() || x.mu.gap != exp:
		x.mu.gap, x.mu.gapped = exp, now
	}
	if x.allParkedLocked() {
		x.mu.gapped = time.Time{} // nobody can send it
		x.mu.Unlock()
		return
	}
	late := waits && now.Sub(x.mu.gapped) > limit
	x.mu.Unlock()
	if late {
		x.kill(errGap)
	}
}

// taskEnded counts a delivered task out. The caller holds a connection's lock, so what the end lets through is
// delivered by another goroutine; that happens with ORDERED tasks only.
func (x *Session) taskEnded(t *task) {
	o := &x.order
	o.mu.Lock()
	defer o.mu.Unlock()
	o.outstanding--
	if t.ordered {
		o.fence = false
	}
	if (o.outstanding == 0 || t.ordered) && len(o.held) > 0 && !o.delivering {
		x.srv.wg.Go(func() {
			o.mu.Lock()
			x.deliverLocked()
			o.mu.Unlock()
		})
	}
}
