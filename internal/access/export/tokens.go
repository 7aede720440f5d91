package export

import (
	"crypto/rand"
	"errors"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/scsi"
	"dozo/internal/wire"
)

// tokenStates is the one table from what an owner says of a token to SCSI's errors.
var tokenStates = [...]error{
	access.TokenGood:      nil,
	access.TokenUnknown:   scsi.ErrTokenUnknown,
	access.TokenCorrupt:   scsi.ErrTokenCorrupt,
	access.TokenExpired:   scsi.ErrTokenExpired,
	access.TokenCancelled: scsi.ErrTokenCancelled,
	access.TokenDeleted:   scsi.ErrTokenDeleted,
	access.TokenNoRoom:    scsi.ErrTokenNoRoom,
}

// token asks the volume's owner about a token.
func (d *disk) token(req scsi.Request, call access.TokenCall, done func(access.TokenCall, error)) {
	d.v.Token(d.op(req, wire.OpToken, 0, 0), call, func(c access.TokenCall, err error) {
		switch {
		case err == nil && c.State != access.TokenGood:
			err = &wrapped{tokenStates[c.State], errors.New("token is " + c.State.String())}
		case errors.Is(err, wire.ErrMismatch), call.Whole && call.What != access.TokenCreate && errors.Is(err, wire.ErrBadRequest):
			err = &wrapped{scsi.ErrTokenUnknown, err} // the latter by an owner whose node was downgraded: it has no such tokens
		default:
			err = translate(err, false)
		}
		done(c, err)
	})
}

// tokenCall is a call about a token that was made.
func tokenCall(what access.TokenWhat, t scsi.Token) access.TokenCall {
	return access.TokenCall{What: what, ID: t.ID, Whole: !t.Bare(), Made: t.Made, Digest: t.Digest}
}

func (d *disk) CreateToken(req scsi.Request, ranges []scsi.Range, times scsi.TokenTimes, seal func(scsi.TokenID) [32]byte, done func(error)) {
	call := access.TokenCall{What: access.TokenCreate, Seconds: uint32(times.Idle / time.Second)}
	for _, r := range ranges {
		call.Ranges = append(call.Ranges, access.TokenRange{Off: r.Off, N: r.N})
	}
	if d.v.WholeTokens() {
		_, _ = rand.Read(call.ID[:]) // it never fails
		call.Whole, call.Life, call.Made = true, uint32(times.Life/time.Second), d.stamp(req.Stamp).Epoch
		call.Digest = seal(scsi.TokenID{ID: call.ID, Made: call.Made})
		d.token(req, call, func(_ access.TokenCall, err error) { done(err) })
		return
	}
	d.token(req, call, func(c access.TokenCall, err error) {
		if err == nil {
			seal(scsi.TokenID{ID: c.ID})
		}
		done(err)
	})
}

func (d *disk) UseToken(req scsi.Request, t scsi.Token, done func([]scsi.Range, error)) {
	d.token(req, tokenCall(access.TokenUse, t), func(c access.TokenCall, err error) {
		var ranges []scsi.Range
		for _, r := range c.Ranges {
			ranges = append(ranges, scsi.Range{Off: r.Off, N: r.N})
		}
		done(ranges, err)
	})
}

func (d *disk) DropToken(req scsi.Request, t scsi.Token, done func()) {
	d.token(req, tokenCall(access.TokenDrop, t), func(access.TokenCall, error) { done() })
}
