package scsi

import (
	"encoding/binary"
	"errors"
	"time"
)

// Range is a run of bytes of a disk.
type Range struct{ Off, N int64 }

// TokenID names a token at the unit that made it.
type TokenID [16]byte

// ROD types (SPC-4 5.17.6.2, SBC-3 4.24).
const (
	rodPointInTime      = 0x00800000 // a copy of one moment, kept in a way of our own: it ends when its source changes
	rodVulnerable       = 0x00800001 // the same, by a name that says so
	rodAny              = 0x0080ffff // asks for one or the other
	rodZero             = 0xffff0001
	tokenLength         = 512
	tokenDefaultSeconds = 60
	tokenSecondsMax     = 3600
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
			if r.Off < x.Off+x.N && x.Off < r.Off+r.N {
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
	seconds := be.Uint32(list[4:])
	if seconds == 0 {
		seconds = tokenDefaultSeconds
	}
	o := &copyOp{list: c.u32(6), action: 0x10}
	o.unit, o.request, o.parent = u, c.Request, &c.cancelled
	o.finished = func(*copyOp) {}
	if err := u.copies.enter(o); err != nil {
		c.notEntered(err)
		return
	}
	u.disk.CreateToken(c.Request, ranges, time.Duration(seconds)*time.Second, func(id TokenID, err error) {
		if err == nil {
			o.tokenData = u.appendToken(nil, kind, id, total)
			o.mu.Lock()
			o.mu.bytes = uint64(total)
			o.mu.Unlock()
		} else {
			o.mu.Lock()
			o.mu.err = err
			o.mu.Unlock()
			c.fail(err)
		}
		o.end()
		c.finish()
	})
}

// appendToken encodes a ROD token (SPC-4 5.17.6.5). Who made it and the token's ID are all that counts.
func (u *Unit) appendToken(b []byte, kind uint32, id TokenID, total int64) []byte {
	be := binary.BigEndian
	t := make([]byte, tokenLength)
	be.PutUint32(t, kind)
	be.PutUint16(t[6:], tokenLength-8)
	copy(t[8:16], id[:8])
	unit := u.disk.Identity()
	naa := unit.NAA()
	t[16], t[20], t[21], t[23] = cscdIdentification, 0x01, 0x03, byte(len(naa))
	copy(t[24:], naa[:])
	be.PutUint64(t[56:], uint64(total)) // NUMBER OF BYTES REPRESENTED, 16 bytes
	copy(t[128:], id[:])
	return append(b, t...)
}

// writeUsingToken is WRITE USING TOKEN (SBC-3 5.50): of this unit's token or another's, made through any access
// server.
func (u *Unit) writeUsingToken(c *Command) {
	be := binary.BigEndian
	list := c.outBuf
	if len(list) == 0 {
		c.finish()
		return
	}
	ranges, _, ok := u.parseRanges(c, list, 536)
	if !ok {
		c.finish()
		return
	}
	offset := be.Uint64(list[8:])
	if offset > copyTokenMax/uint64(c.geo.BlockSize) {
		c.badParameter(8)
		c.finish()
		return
	}
	o := &copyOp{list: c.u32(6), action: 0x11, immediate: list[2]&0x01 != 0}
	failed := func(c *Command, o *copyOp) {
		if o.mu.sense.key == IllegalRequest || errors.Is(o.mu.err, ErrAborted) {
			c.check(o.mu.sense)
		} else {
			c.fail(o.mu.err)
		}
	}
	token := list[16 : 16+tokenLength]
	if be.Uint16(token[6:]) != tokenLength-8 {
		c.illegal(codeTokenLength)
		c.finish()
		return
	}
	if be.Uint32(token) == rodZero {
		for _, r := range ranges {
			o.pieces = append(o.pieces, copyPiece{dst: u.disk, dstOff: r.Off, n: r.N})
		}
		u.launch(c, o, failed)
		return
	}
	switch {
	case token[16] != cscdIdentification:
		c.illegal(codeTokenCorrupt)
	case be.Uint32(token) != rodPointInTime && be.Uint32(token) != rodVulnerable:
		c.illegal(codeTokenUnsupported)
	}
	if c.failed {
		c.finish()
		return
	}
	var id TokenID
	copy(id[:], token[128:])
	end := list[2]&0x02 != 0 // DEL_TKN
	find := &targetFinder{unit: u, names: []designator{{token[21], append([]byte(nil), token[24:24+min(20, int(token[23]))]...)}}, disks: make([]Disk, 1)}
	find.then = func(disks []Disk, release []func()) {
		o.release = release
		src := disks[0]
		if src == nil { // SPC-4 5.17.6.5.2.3: tokens of other targets are known, and whose this is can't be asked
			c.check(senseData{key: CopyAborted, code: codeTargetUnreachable})
			c.finish()
			return
		}
		o.unit, o.request = u, c.Request
		o.mu.stepped = time.Now()
		src.UseToken(o.on(src), id, func(from []Range, err error) {
			fits := err == nil && o.slice(src, id, from, int64(offset)*int64(c.geo.BlockSize), u.disk, ranges)
			if !fits {
				for _, f := range release {
					f()
				}
				if err != nil {
					c.fail(err)
				} else {
					c.badParameter(8)
				}
				c.finish()
				return
			}
			if end {
				o.ended = func() { src.DropToken(o.on(src), id) }
			}
			u.launch(c, o, failed)
		})
	}
	find.next()
}

// slice makes pieces of the ranges to write and the ranges that the token stands for, from offset on. False says that the token
// has nothing there. Where it has less than is to be written (SBC-3 5.50.2), so many whole blocks are written.
func (o *copyOp) slice(src Disk, id TokenID, from []Range, offset int64, dst Disk, to []Range) bool {
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
			o.pieces = append(o.pieces, copyPiece{src: src, dst: dst, srcOff: from[0].Off + skip, dstOff: r.Off + at, n: n, token: &id})
			skip, at, left = skip+n, at+n, left-n
		}
	}
	return true
}
