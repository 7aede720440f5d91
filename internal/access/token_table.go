package access

import (
	"crypto/rand"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// tokens is the owner's table. It goes with the owner: who comes with a token that was made in an earlier epoch than the present owner's is
// told that it was cancelled.
type tokens struct {
	byID map[[16]byte]*tokenOf
	// dead are those that have ended, with the reason. SPC-4 5.17.6.7 has them told for a token's lifetime, and better for twice that;
	// there are no more than tokensDeadMax, of which the oldest go first.
	dead  map[[16]byte]TokenState
	order []deadToken // ascending by the time of their end
}

type tokenOf struct {
	ranges []TokenRange
	idle   uint64   // ms
	used   uint64   // tick
	end    uint64   // tick at which its lifetime is over
	life   uint64   // ms
	whole  bool     // it has a digest
	digest [32]byte // of its bytes
}

type deadToken struct {
	id    [16]byte
	until uint64 // tick
}

// tokensDeadMax takes about 300 KiB of an owner's memory.
const tokensDeadMax = 4096

// overlapped reports that the range has some of these blocks.
func (r TokenRange) overlapped(first, count uint64) bool {
	from, to := uint64(r.Off)/journal.BlockSize, uint64(r.Off+r.N+journal.BlockSize-1)/journal.BlockSize
	return from < first+count && first < to
}

// overdue says that a token's time is over.
func (x *tokenOf) overdue(now uint64) bool { return x.used+x.idle < now || x.end < now }

// touched ends the tokens that stand for blocks which are about to change.
func (t *tokens) touched(first, count, now uint64) {
	for id, x := range t.byID {
		for _, r := range x.ranges {
			if r.overlapped(first, count) {
				t.finish(id, TokenCancelled, now)
				break
			}
		}
	}
}

// finish ends a token, and remembers why. One whose time was over before has expired, whatever happens now.
func (t *tokens) finish(id [16]byte, why TokenState, now uint64) {
	x := t.byID[id]
	if x.overdue(now) {
		why = TokenExpired
	}
	delete(t.byID, id)
	if !x.whole {
		return // nobody is told
	}
	if t.dead == nil {
		t.dead = map[[16]byte]TokenState{}
	}
	for len(t.order) > 0 && (len(t.order) >= tokensDeadMax || t.order[0].until < now) {
		delete(t.dead, t.order[0].id)
		t.order = t.order[1:]
	}
	t.dead[id] = why
	t.order = append(t.order, deadToken{id, now + 2*x.life})
}

// serve answers a call.
func (t *tokens) serve(call TokenCall, now uint64, epoch ident.Epoch) (TokenCall, error) {
	for id, x := range t.byID {
		if x.overdue(now) {
			t.finish(id, TokenExpired, now)
		}
	}
	x := t.byID[call.ID]
	if call.What == TokenCreate && (x == nil || !call.Whole) {
		return t.create(call, now)
	}
	switch {
	case !call.Whole && (x == nil || x.whole):
		if call.What == TokenDrop {
			return call, nil
		}
		return call, wire.Errorf(wire.CodeMismatch, "no such token, or not any more")
	case x != nil && call.Whole && (!x.whole || x.digest != call.Digest):
		call.State = TokenCorrupt
	case x == nil:
		call.State = t.dead[call.ID]
		if call.State == TokenGood { // it isn't there
			call.State = TokenUnknown
			if call.Made.Less(epoch) || call.Made.Conflicts(epoch) {
				call.State = TokenCancelled
			}
		}
	case call.What == TokenUse:
		x.used = now
		call.Ranges = x.ranges
	case call.What == TokenDrop:
		t.finish(call.ID, TokenDeleted, now)
	}
	return call, nil
}

// create makes a token. One that is there already was asked for by the same call before; it is not made again.
func (t *tokens) create(call TokenCall, now uint64) (TokenCall, error) {
	if len(t.byID) >= tokensMax {
		if call.Whole {
			call.State = TokenNoRoom
			return call, nil
		}
		return call, wire.Errorf(wire.CodeBusy, "too many tokens")
	}
	if t.byID == nil {
		t.byID = map[[16]byte]*tokenOf{}
	}
	x := &tokenOf{ranges: call.Ranges, idle: uint64(call.Seconds) * 1000, used: now, end: ^uint64(0), whole: call.Whole, digest: call.Digest}
	if call.Whole {
		x.life = uint64(call.Life) * 1000
		x.end = now + x.life
	} else {
		_, _ = rand.Read(call.ID[:]) // it never fails
	}
	t.byID[call.ID] = x
	return call, nil
}

// covers reports that a token is good and stands for a range among others. That counts as a use.
func (t *tokens) covers(id [16]byte, off, n int64, now uint64) bool {
	x := t.byID[id]
	if x == nil || x.overdue(now) {
		return false
	}
	for _, r := range x.ranges {
		if off >= r.Off && off+n <= r.Off+r.N {
			x.used = now
			return true
		}
	}
	return false
}

// touched ends tokens that stand for blocks which are about to change.
func (o *Owner) touched(first, count uint64) {
	if len(o.tokens.byID) > 0 {
		o.tokens.touched(first, count, o.tick())
	}
}
