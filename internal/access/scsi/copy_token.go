package scsi

import (
	"bytes"
	"encoding/binary"
	"time"
)

// parseRanges reads block device range descriptors (SBC-3 5.21.2, 5.21.3): those that are not there as a whole are ignored.
func (u *Unit) parseRanges(c *Command, list []byte, head int) (ranges []Range, total int64, ok bool) {
	be := binary.BigEndian
	if len(list) < head {
		c.illegal(codeParameterListLength)
		return nil, 0, false
	}
	length := int(be.Uint16(list[head-2:]))
	n := min(length, len(list)-head) / 16 * 16
	switch {
	case int(be.Uint16(list)) < head+16-2: // the length of the list itself
		c.badParameter(0)
		return nil, 0, false
	case length < 16:
		c.badParameter(head - 2)
		return nil, 0, false
	case n/16 > copyRangesMax:
		c.illegal(codeTooManySegments)
		return nil, 0, false
	}
	size := int64(c.geo.BlockSize)
	for at := head; at < head+n; at += 16 {
		lba, blocks := be.Uint64(list[at:]), uint64(be.Uint32(list[at+8:]))
		if lba > c.geo.Blocks || blocks > c.geo.Blocks-lba {
			c.outOfRange(lba)
			return nil, 0, false
		}
		r := Range{int64(lba) * size, int64(blocks) * size}
		for _, x := range ranges {
			if r.N > 0 && x.N > 0 && r.Off < x.Off+x.N && x.Off < r.Off+r.N {
				c.badParameter(at) // SBC-3 5.21.3: ranges don't overlap
				return nil, 0, false
			}
		}
		ranges = append(ranges, r)
		if total += r.N; total > copyTokenMax {
			c.badParameter(at + 8)
			return nil, 0, false
		}
	}
	return ranges, total, true
}

// populateToken is POPULATE TOKEN (SBC-3 5.21).
func (u *Unit) populateToken(c *Command) {
	be := binary.BigEndian
	list := c.outBuf
	if len(list) == 0 {
		c.finish()
		return
	}
	ranges, total, ok := u.parseRanges(c, list, 16)
	kind := uint32(rodPointInTime)
	if ok {
		if list[2]&0x02 != 0 { // RTV
			kind = be.Uint32(list[8:])
		}
		switch {
		case kind == rodAny:
			kind = rodVulnerable
		case kind != rodPointInTime && kind != rodVulnerable:
			c.badParameter(8)
		}
		if be.Uint32(list[4:]) > tokenSecondsMax && !c.failed {
			c.badParameter(4)
		}
	}
	if c.failed {
		c.finish()
		return
	}
	idle := be.Uint32(list[4:])
	if idle == 0 {
		idle = tokenDefaultSeconds
	}
	o := &copyOp{list: c.u32(6), action: 0x10, immediate: list[2]&0x01 != 0}
	if !u.enter(c, o) {
		return
	}
	o.finished = func(o *copyOp) { c.copied(o) }
	if o.immediate {
		o.finished = func(*copyOp) {}
		c.finish()
	}
	times := TokenTimes{Idle: time.Duration(idle) * time.Second, Life: tokenLifeSeconds * time.Second}
	var token Token
	var sealed [tokenLength]byte
	u.disk.CreateToken(o.request, ranges, times, func(id TokenID) (digest [32]byte) {
		token.TokenID = id
		sealed, token.Digest = u.sealToken(kind, id, total)
		return token.Digest
	}, func(err error) {
		switch {
		case err == nil && o.stopped(): // nobody will ask for it
			o.stepped()
			u.disk.DropToken(o.on(u.disk), token, func() { o.endWith(ErrAborted) })
			return
		case err == nil:
			o.tokenData = sealed[:]
			o.mu.Lock()
			o.mu.bytes = uint64(total)
			o.mu.updates++
			o.mu.Unlock()
		}
		o.endWith(err)
	})
}

// endWith ends an operation that has nothing under way.
func (o *copyOp) endWith(err error) {
	o.mu.Lock()
	if o.mu.err == nil {
		o.mu.err = err
	}
	o.mu.Unlock()
	o.end()
}

// writeUsingToken is WRITE USING TOKEN (SBC-3 5.50): of this unit's token or another's, made through any access
// server. The token is looked at before a command with IMMED is answered.
func (u *Unit) writeUsingToken(c *Command) {
	be := binary.BigEndian
	list := c.outBuf
	if len(list) == 0 {
		c.finish()
		return
	}
	ranges, _, ok := u.parseRanges(c, list, 536)
	offset := uint64(0)
	if ok {
		offset = be.Uint64(list[8:])
		switch {
		case offset > copyTokenMax/uint64(c.geo.BlockSize):
			c.badParameter(8)
		case be.Uint16(list[16+6:]) != tokenLength-8:
			c.illegal(codeTokenLength)
		}
	}
	if c.failed {
		c.finish()
		return
	}
	o := &copyOp{list: c.u32(6), action: 0x11, immediate: list[2]&0x01 != 0}
	if !u.enter(c, o) {
		return
	}
	token := bytes.Clone(list[16 : 16+tokenLength])
	if be.Uint32(token) == rodZero {
		for _, r := range ranges {
			o.pieces = append(o.pieces, copyPiece{dst: u.disk, dstOff: r.Off, n: r.N})
		}
		u.begin(c, o)
		return
	}
	end := list[2]&0x02 != 0 // DEL_TKN
	o.finished = func(o *copyOp) { c.copied(o) }
	u.resolve(o, token, func(src Disk, t Token, from []Range, err error) {
		switch {
		case err != nil:
		case o.stopped():
			err = ErrAborted
		case !o.slice(src, t, from, int64(offset)*int64(c.geo.BlockSize), u.disk, ranges):
			err = &refusal{senseData{key: IllegalRequest, code: codeInvalidFieldInParameter, field: 8, fieldValid: true}}
		}
		if err != nil {
			o.endWith(err)
			return
		}
		if end {
			o.ended = func(then func()) { src.DropToken(o.on(src), t, then) }
		}
		u.begin(c, o)
	})
}

// resolve finds the unit that has made a token, and what the token stands for there. The errors are those of SPC-4 5.17.6.5.2.3, in its
// order.
func (u *Unit) resolve(o *copyOp, token []byte, then func(Disk, Token, []Range, error)) {
	t, ok := u.parseToken(token)
	if !ok || !t.intact && t.ours {
		then(nil, t.Token, nil, ErrTokenCorrupt)
		return
	}
	find := &targetFinder{unit: u, names: []designator{t.creator}, disks: make([]Disk, 1)}
	find.then = func(disks []Disk, release []func()) {
		o.release = release
		src := disks[0]
		switch {
		case src != nil && !t.intact:
			then(nil, t.Token, nil, ErrTokenCorrupt)
		case t.kind != rodPointInTime && t.kind != rodVulnerable:
			then(nil, t.Token, nil, &refusal{senseData{key: IllegalRequest, code: codeTokenUnsupported}})
		case src == nil: // tokens of other targets are known (REMOTE TOKENS), and whose this is can't be asked
			then(nil, t.Token, nil, &refusal{senseData{key: CopyAborted, code: codeTargetUnreachable}})
		default:
			o.stepped() // a unit that nobody has used here for long takes its time
			src.UseToken(o.on(src), t.Token, func(from []Range, err error) { then(src, t.Token, from, err) })
		}
	}
	find.next()
}

// slice makes pieces of the ranges to write and the ranges that the token stands for, from offset on. False says that the token
// has nothing there. Where it has less than is to be written (SBC-3 5.50.2), so many whole blocks are written.
func (o *copyOp) slice(src Disk, t Token, from []Range, offset int64, dst Disk, to []Range) bool {
	var have int64
	for _, r := range from {
		have += r.N
	}
	if offset >= have {
		return false
	}
	size := int64(dst.Geometry().BlockSize)
	left := (have - offset) / size * size
	skip := offset
	for _, r := range to {
		for at := int64(0); at < r.N; {
			if left == 0 {
				o.short = true
				return true
			}
			for skip >= from[0].N {
				skip -= from[0].N
				from = from[1:]
			}
			n := min(r.N-at, from[0].N-skip, left)
			o.pieces = append(o.pieces, copyPiece{src: src, dst: dst, srcOff: from[0].Off + skip, dstOff: r.Off + at, n: n, token: &t})
			skip, at, left = skip+n, at+n, left-n
		}
	}
	return true
}
