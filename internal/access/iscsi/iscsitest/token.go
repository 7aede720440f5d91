package iscsitest

import (
	"crypto/rand"

	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
	"dozo/internal/ident"
)

// token is one that a Disk has made.
type token struct {
	ranges []scsi.Range
	digest [32]byte
	times  scsi.TokenTimes
	ended  error // why it is not good any more
}

// refusal says why t is not this token, or not any more.
func (x *token) refusal(t scsi.Token) error {
	switch {
	case x == nil:
		return scsi.ErrTokenUnknown
	case x.digest != t.Digest:
		return scsi.ErrTokenCorrupt
	}
	return x.ended
}

// CreateToken keeps the ranges until something is written there. It is held and delayed like other calls.
func (d *Disk) CreateToken(req scsi.Request, ranges []scsi.Range, times scsi.TokenTimes, seal func(scsi.TokenID) [32]byte, done func(error)) {
	d.later(func() {
		err := d.failure(OpToken, req, 0, 0)
		if err == nil {
			id := scsi.TokenID{Made: ident.Epoch{Number: 1, Lineage: 1}}
			d.mu.RLock()
			if d.bare {
				id.Made = ident.Epoch{}
			}
			d.mu.RUnlock()
			_, _ = rand.Read(id.ID[:])
			digest := seal(id)
			d.mu.Lock()
			if err = d.allowed(req, reserve.AccessRead); err == nil {
				d.tokens[id.ID] = &token{ranges: ranges, digest: digest, times: times}
			}
			d.mu.Unlock()
		}
		done(err)
	})
}

// UseToken gives them.
func (d *Disk) UseToken(_ scsi.Request, t scsi.Token, done func([]scsi.Range, error)) {
	d.mu.RLock()
	x := d.tokens[t.ID]
	err := x.refusal(t)
	d.mu.RUnlock()
	if err != nil {
		done(nil, err)
		return
	}
	done(x.ranges, nil)
}

// DropToken ends one.
func (d *Disk) DropToken(_ scsi.Request, t scsi.Token, done func()) {
	d.mu.Lock()
	if x := d.tokens[t.ID]; x.refusal(t) == nil {
		x.ended = scsi.ErrTokenDeleted
	}
	d.mu.Unlock()
	done()
}

// EndTokens ends all tokens as if err were the reason, and says for how many.
func (d *Disk) EndTokens(err error) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range d.tokens {
		if x.ended == nil {
			x.ended = err
			n++
		}
	}
	return n
}

// BareTokens has tokens made as in a cluster of which not all nodes know more of a token than its ID.
func (d *Disk) BareTokens() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bare = true
}

// touched ends the tokens that a write makes void; in d.mu.
func (d *Disk) touched(off, n int64) {
	for _, x := range d.tokens {
		for _, r := range x.ranges {
			if x.ended == nil && r.Off < off+n && off < r.Off+r.N {
				x.ended = scsi.ErrTokenCancelled
				break
			}
		}
	}
}
