package access

import (
	"crypto/rand"
	"encoding/binary"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Tokens stand for what ranges of a volume hold now (POPULATE TOKEN). They live in the owner's memory: a write
// to their ranges ends them, and so does another owner, so whoever reads by a token and then finds it valid has
// read what it stands for. Writes that have their place in the history before a token are part of what it stands for, and
// it is told to nobody before they are committed: until then they are not read.

// TokenWhat is what a TokenCall asks for.
type TokenWhat uint8

// The calls. Numbers are part of the wire format.
const (
	TokenCreate TokenWhat = 1
	TokenUse    TokenWhat = 2
	TokenDrop   TokenWhat = 3
)

// TokenRange is a run of bytes.
type TokenRange struct{ Off, N int64 }

// TokenCall is a request about a token, and its answer.
type TokenCall struct {
	What    TokenWhat
	ID      [16]byte // of the answer, with TokenCreate
	Seconds uint32   // TokenCreate: it ends when it is not used for so long
	Ranges  []TokenRange
}

// Bounds of tokens.
const (
	tokenRangesMax = 64
	tokensMax      = 1024 // of a volume
	tokenHead      = 1 + 1 + 16 + 4 + 2
)

// Append encodes the call; docs/wire.md, "Token".
func (c *TokenCall) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, 1, byte(c.What))
	b = append(b, c.ID[:]...)
	b = le.AppendUint32(b, c.Seconds)
	b = le.AppendUint16(b, uint16(len(c.Ranges)))
	for _, r := range c.Ranges {
		b = le.AppendUint64(b, uint64(r.Off))
		b = le.AppendUint64(b, uint64(r.N))
	}
	return b
}

// DecodeTokenCall reads what Append wrote.
func DecodeTokenCall(b []byte) (c TokenCall, err error) {
	le := binary.LittleEndian
	if len(b) < tokenHead || b[0] != 1 || b[1] < byte(TokenCreate) || b[1] > byte(TokenDrop) {
		return c, wire.Errorf(wire.CodeBadRequest, "token call of %d bytes", len(b))
	}
	c.What, c.Seconds = TokenWhat(b[1]), le.Uint32(b[18:])
	copy(c.ID[:], b[2:])
	n := int(le.Uint16(b[22:]))
	if b = b[tokenHead:]; n > tokenRangesMax || len(b) != 16*n {
		return c, wire.Errorf(wire.CodeBadRequest, "token call: %d ranges in %d bytes", n, len(b))
	}
	for ; len(b) > 0; b = b[16:] {
		r := TokenRange{int64(le.Uint64(b)), int64(le.Uint64(b[8:]))}
		if r.Off < 0 || r.N < 0 || r.Off > journal.BlocksMax*journal.BlockSize || r.N > journal.BlocksMax*journal.BlockSize {
			return c, wire.Errorf(wire.CodeBadRequest, "token call: bytes %d+%d", r.Off, r.N)
		}
		c.Ranges = append(c.Ranges, r)
	}
	return c, nil
}

// tokens is the owner's table.
type tokens struct{ byID map[[16]byte]*tokenOf }

type tokenOf struct {
	ranges []TokenRange
	idle   uint64 // ms
	used   uint64 // tick
}

// overlapped reports that the range has some of these blocks.
func (r TokenRange) overlapped(first, count uint64) bool {
	from, to := uint64(r.Off)/journal.BlockSize, uint64(r.Off+r.N+journal.BlockSize-1)/journal.BlockSize
	return from < first+count && first < to
}

// touched ends the tokens that stand for blocks which are about to change.
func (t *tokens) touched(first, count uint64) {
	for id, x := range t.byID {
		for _, r := range x.ranges {
			if r.overlapped(first, count) {
				delete(t.byID, id)
				break
			}
		}
	}
}

// token serves a call. Like a read it needs the lease (R6): only then is it known that nobody else takes writes.
func (o *Owner) token(op *Op) {
	call, err := DecodeTokenCall(op.Unit)
	switch {
	case err != nil:
	case !o.mayRead():
		o.awaitLease(op, func() { o.token(op) })
		return
	case op.behind == 0:
		if call, err = o.tokens.serve(call, o.tick()); err == nil {
			op.Data = append(op.Data[:0], call.Append(nil))
			op.behind = o.w.At().Seq
		}
	}
	if err == nil && call.What == TokenCreate && o.writesInFlight(op.behind, call.Ranges) {
		o.waiting = append(o.waiting, op)
		return
	}
	if err == nil {
		op.seq = o.lastShown()
		o.answer(op)
		return
	}
	o.finish(op, err)
}

// writesInFlight reports that writes to the ranges, up to a place in the history, are not committed yet.
func (o *Owner) writesInFlight(upTo ident.Seq, ranges []TokenRange) bool {
	for _, u := range o.uncommitted {
		if u.seq <= upTo && u.parts > 0 && slices.ContainsFunc(ranges, func(r TokenRange) bool { return r.overlapped(u.first, u.count) }) {
			return true
		}
	}
	return false
}

func (t *tokens) serve(call TokenCall, now uint64) (TokenCall, error) {
	for id, x := range t.byID {
		if x.used+x.idle < now {
			delete(t.byID, id)
		}
	}
	switch call.What {
	case TokenCreate:
		if len(t.byID) >= tokensMax {
			return call, wire.Errorf(wire.CodeBusy, "too many tokens")
		}
		if t.byID == nil {
			t.byID = map[[16]byte]*tokenOf{}
		}
		_, _ = rand.Read(call.ID[:]) // it never fails
		t.byID[call.ID] = &tokenOf{call.Ranges, uint64(call.Seconds) * 1000, now}
	case TokenUse:
		x := t.byID[call.ID]
		if x == nil {
			return call, wire.Errorf(wire.CodeMismatch, "no such token, or not any more")
		}
		x.used = now
		call.Ranges = x.ranges
	case TokenDrop:
		delete(t.byID, call.ID)
	}
	return call, nil
}

// Token asks the owner about a token. op says for whom.
func (v *Volume) Token(op *Op, call TokenCall, done func(TokenCall, error)) {
	op.Kind, op.Unit = wire.OpToken, call.Append(nil)
	op.Done = func(op *Op, err error) {
		if err == nil {
			if len(op.Data) == 1 {
				call, err = DecodeTokenCall(op.Data[0])
			} else {
				err = wire.Errorf(wire.CodeBadRequest, "no token in the answer")
			}
		}
		op.Release()
		done(call, err)
	}
	v.Submit(op)
}

// readyPatience is how long Ready waits.
const readyPatience = 2 * time.Second

// Ready calls done once a fresh stamp of the volume's owner is known, or after a while without: then what is asked of
// it is answered with BUSY.
func (v *Volume) Ready(done func()) {
	old := v.Stamp()
	if v.owner.Load() != nil || v.users.Load() > 1 && old.Epoch != (ident.Epoch{}) {
		done() // it is kept fresh
		return
	}
	if !v.srv.goWork(func() {
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		for end := time.Now().Add(readyPatience); v.Stamp() == old && v.srv.ctx.Err() == nil && time.Now().Before(end); {
			select {
			case <-t.C:
			case <-v.srv.ctx.Done():
			}
		}
		done()
	}) {
		done()
	}
}
