package access

import (
	"encoding/binary"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Tokens stand for what ranges of a volume hold now (POPULATE TOKEN). They live in the owner's memory: a write
// to their ranges ends them, and so does another owner, so whoever reads by a token and then finds it valid has
// read what it stands for. Writes that have their place in the history before a token are part of what it stands for, and
// it is told to nobody before they are committed: until then they are not read.
//
// The bytes that an initiator has of a token are made by the access server that it asked, which tells the owner their digest:
// whoever comes with other bytes has a token that was never made.

// TokenWhat is what a TokenCall asks for.
type TokenWhat uint8

// The calls. Numbers are part of the wire format.
const (
	TokenCreate TokenWhat = 1
	TokenUse    TokenWhat = 2
	TokenDrop   TokenWhat = 3
)

// TokenState is what the owner says of a token.
type TokenState uint8

// The states (SPC-4 5.17.6.5.2.3). Numbers are part of the wire format. Of the dead ones the owner knows so many, and so
// long, as token_table.go says; then they are unknown.
const (
	TokenGood      TokenState = 0
	TokenUnknown   TokenState = 1
	TokenCorrupt   TokenState = 2 // it is not as it was made
	TokenExpired   TokenState = 3 // its lifetime is over, or it was not used for its inactivity timeout
	TokenCancelled TokenState = 4 // its data were written to, or the volume has got another owner
	TokenDeleted   TokenState = 5 // by who used it
	TokenNoRoom    TokenState = 6 // it was not made: there are too many
)

func (s TokenState) String() string {
	return [...]string{"good", "unknown", "corrupt", "expired", "cancelled", "deleted", "not made: there are too many"}[s]
}

// TokenRange is a run of bytes.
type TokenRange struct{ Off, N int64 }

// TokenCall is a request about a token, and its answer.
type TokenCall struct {
	What    TokenWhat
	ID      [16]byte // drawn by who asks for it; by the owner if Whole is not set
	Seconds uint32   // TokenCreate: it ends when it is not used for so long
	Ranges  []TokenRange

	// Whole has the encoding of nodes of control.LevelTokens on, with the fields below. Without them a token is known by its ID
	// alone, and what is not good is an error.
	Whole  bool
	State  TokenState  // of the answer
	Life   uint32      // TokenCreate: seconds after which it ends, used or not
	Made   ident.Epoch // of the owner that it was asked of
	Digest [32]byte    // of its bytes
}

// Bounds of tokens.
const (
	tokenRangesMax = 64
	tokensMax      = 1024 // of a volume
	tokenHead      = 1 + 1 + 16 + 4 + 2
	tokenWholeHead = tokenHead + 1 + 4 + 12 + 32
)

// Append encodes the call; docs/wire.md, "Token".
func (c *TokenCall) Append(b []byte) []byte {
	le := binary.LittleEndian
	version := byte(1)
	if c.Whole {
		version = 2
	}
	b = append(b, version, byte(c.What))
	b = append(b, c.ID[:]...)
	b = le.AppendUint32(b, c.Seconds)
	b = le.AppendUint16(b, uint16(len(c.Ranges)))
	if c.Whole {
		b = append(b, byte(c.State))
		b = le.AppendUint32(b, c.Life)
		b = le.AppendUint64(b, c.Made.Number)
		b = le.AppendUint32(b, c.Made.Lineage)
		b = append(b, c.Digest[:]...)
	}
	for _, r := range c.Ranges {
		b = le.AppendUint64(b, uint64(r.Off))
		b = le.AppendUint64(b, uint64(r.N))
	}
	return b
}

// DecodeTokenCall reads what Append wrote.
func DecodeTokenCall(b []byte) (c TokenCall, err error) {
	le := binary.LittleEndian
	if len(b) < tokenHead || b[0] < 1 || b[0] > 2 || b[1] < byte(TokenCreate) || b[1] > byte(TokenDrop) {
		return c, wire.Errorf(wire.CodeBadRequest, "token call of %d bytes", len(b))
	}
	c.Whole, c.What, c.Seconds = b[0] == 2, TokenWhat(b[1]), le.Uint32(b[18:])
	copy(c.ID[:], b[2:])
	n, head := int(le.Uint16(b[22:])), tokenHead
	if c.Whole {
		if head = tokenWholeHead; len(b) < head || TokenState(b[24]) > TokenNoRoom {
			return c, wire.Errorf(wire.CodeBadRequest, "token call of %d bytes", len(b))
		}
		c.State, c.Life = TokenState(b[24]), le.Uint32(b[25:])
		c.Made = ident.Epoch{Number: le.Uint64(b[29:]), Lineage: le.Uint32(b[37:])}
		copy(c.Digest[:], b[41:])
	}
	if b = b[head:]; n > tokenRangesMax || len(b) != 16*n {
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

// token serves a call. Like a read it needs the lease (R6): only then is it known that nobody else takes writes.
func (o *Owner) token(op *Op) {
	call, err := DecodeTokenCall(op.Unit)
	switch {
	case err != nil:
	case !o.mayRead():
		o.awaitLease(op, func() { o.token(op) })
		return
	case op.behind == 0:
		if call, err = o.tokens.serve(call, o.tick(), o.epoch); err == nil {
			op.Data = append(op.Data[:0], call.Append(nil))
			op.behind = o.w.At().Seq
		}
	}
	if err == nil && call.What == TokenCreate && call.State == TokenGood && o.writesInFlight(op.behind, call.Ranges) {
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

// WholeTokens says that all of this cluster's nodes tell tokens by more than their IDs.
func (v *Volume) WholeTokens() bool { return v.srv.env.Control.Level() >= control.LevelTokens }

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
