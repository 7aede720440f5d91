package scsi

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Type codes of descriptors (SPC-4 6.4.5, 6.4.6).
const (
	cscdIdentification  = 0xe4
	segmentBlocks       = 0x02
	segmentBlockOffsets = 0x0a
	cscdSelf            = 0xffff // the unit whose copy manager this is
	cscdLength          = 32
)

// prepareCopyList asks for the parameter list of the commands of third-party copy.
func (u *Unit) prepareCopyList(c *Command) {
	c.WantOut = uint64(c.u32(10))
	if c.WantOut > copyListMax+1024 {
		c.illegal(codeParameterListLength)
	}
}

// copyHeader is what both formats of the header say.
type copyHeader struct {
	list             uint32
	usage            byte // LIST ID USAGE
	immediate        bool
	size             int // of the header
	targets, segment int // lengths of the descriptor lists
	inline           uint64
}

// parseHeader reads the header of EXTENDED COPY (LID1) (SPC-4 6.5) or (LID4) (6.4.2).
func parseCopyHeader(b []byte, wide bool) (h copyHeader, code Code, at int) {
	be := binary.BigEndian
	if wide {
		if len(b) < 48 {
			return h, codeParameterListLength, 0
		}
		switch {
		case b[0] != 0x01: // PARAMETER LIST FORMAT
			return h, codeInvalidFieldInParameter, 0
		case b[15]&0x02 != 0 && b[15]&0x01 != 0 || b[15]&0x01 != 0 && b[1]>>3&3 == 3: // IMMED with G_SENSE, or for a list of no name
			return h, codeInvalidFieldInCDB, 0
		case b[15]&0x02 != 0: // sense data with GOOD
			return h, codeInvalidFieldInParameter, 15
		case be.Uint16(b[2:]) != 0x20 || b[16] != 0xff: // HEADER CSCD DESCRIPTOR LIST LENGTH and TYPE CODE
			return h, codeInvalidFieldInParameter, 2
		}
		h = copyHeader{list: be.Uint32(b[20:]), usage: b[1] >> 3 & 3, immediate: b[15]&0x01 != 0, size: 48,
			targets: int(be.Uint16(b[42:])), segment: int(be.Uint16(b[44:])), inline: uint64(be.Uint16(b[46:]))}
	} else {
		if len(b) < 16 {
			return h, codeParameterListLength, 0
		}
		h = copyHeader{list: uint32(b[0]), usage: b[1] >> 3 & 3, size: 16, targets: int(be.Uint16(b[2:])),
			segment: int(min(be.Uint32(b[8:]), 1<<20)), inline: uint64(be.Uint32(b[12:]))}
	}
	switch {
	case h.targets+h.segment > copyListMax:
		return h, codeParameterListLength, 0
	case h.inline != 0:
		return h, codeParameterListLength, 0 // MAXIMUM INLINE DATA LENGTH is 0
	case len(b) < h.size+h.targets+h.segment:
		return h, codeParameterListLength, 0
	case h.targets%cscdLength != 0:
		return h, codeParameterListLength, 0
	case h.targets/cscdLength > copyTargetsMax:
		return h, codeTooManyTargets, 0
	case h.usage == 3 && h.list != 0, h.usage == 1:
		return h, codeInvalidFieldInParameter, 1
	}
	return h, 0, 0
}

// copySegment is a segment descriptor before its targets are known.
type copySegment struct {
	src, dst         uint16
	srcLBA, dstLBA   uint64
	srcByte, dstByte uint64
	blocks           uint64
	byDestination    bool // blocks are the destination's
	bytes            uint64
	inBytes          bool
}

// parseSegments reads the segment descriptor list.
func parseSegments(b []byte) (list []copySegment, code Code, at int) {
	be := binary.BigEndian
	for at < len(b) {
		d := b[at:]
		if len(d) < 4 {
			return nil, codeParameterListLength, at
		}
		n := 4 + int(be.Uint16(d[2:]))
		want := 28
		switch d[0] {
		case segmentBlocks:
		case segmentBlockOffsets:
			want = 32
		default:
			return nil, codeUnsupportedSegment, at
		}
		if len(d) < n {
			return nil, codeParameterListLength, at
		}
		if n != want {
			return nil, codeInvalidFieldInParameter, at + 2
		}
		s := copySegment{src: be.Uint16(d[4:]), dst: be.Uint16(d[6:]), srcLBA: be.Uint64(d[12:]), dstLBA: be.Uint64(d[20:])}
		if d[0] == segmentBlocks {
			s.blocks, s.byDestination = uint64(be.Uint16(d[10:])), d[1]&0x02 != 0
		} else {
			s.inBytes, s.bytes = true, uint64(be.Uint32(d[8:]))
			s.srcByte, s.dstByte = uint64(be.Uint16(d[28:])), uint64(be.Uint16(d[30:]))
		}
		list = append(list, s)
		if len(list) > copySegmentsMax {
			return nil, codeTooManySegments, at
		}
		at += n
	}
	return list, 0, 0
}

// designator is how an identification descriptor names a unit.
type designator struct {
	kind  byte
	bytes []byte
}

// parseTargets reads the CSCD descriptor list.
func parseTargets(b []byte) (list []designator, code Code, at int) {
	for at := 0; at < len(b); at += cscdLength {
		d := b[at : at+cscdLength]
		if d[0] != cscdIdentification || d[1]&0x1f != 0 {
			return nil, codeUnsupportedTarget, at
		}
		n := int(d[7])
		if d[5]&0x30 != 0 || n > 20 { // association: the logical unit
			return nil, codeInvalidFieldInParameter, at + 5
		}
		list = append(list, designator{d[5] & 0x0f, d[8 : 8+n]})
	}
	return list, 0, 0
}

// names reports that the designator is one of a disk's, as page 83h has them.
func (g designator) names(id Identity) bool {
	switch naa, eui := id.NAA(), id.EUI64(); g.kind {
	case 0x3:
		return bytes.Equal(g.bytes, naa[:])
	case 0x2:
		return bytes.Equal(g.bytes, eui[:])
	}
	return false
}

// extendedCopy is EXTENDED COPY (LID1) and (LID4): everything is checked first, then the units are found, then
// the segments are copied in order.
func (u *Unit) extendedCopy(c *Command) {
	list := c.outBuf
	if len(list) == 0 {
		c.finish()
		return
	}
	bad := func(code Code, at int) {
		if code == codeInvalidFieldInParameter {
			c.badParameter(at)
		} else {
			c.illegal(code)
		}
		c.finish()
	}
	h, code, at := parseCopyHeader(list, c.CDB[1]&0x1f == 0x01)
	if code != 0 {
		bad(code, at)
		return
	}
	list = list[h.size:]
	targets, code, at := parseTargets(list[:h.targets])
	if code != 0 {
		bad(code, h.size+at)
		return
	}
	segments, code, at := parseSegments(list[h.targets : h.targets+h.segment])
	if code != 0 {
		bad(code, h.size+h.targets+at)
		return
	}
	o := &copyOp{list: h.list, action: c.CDB[1] & 0x1f, immediate: h.immediate, segments: true, discard: h.usage != 0, unnamed: h.usage == 3}
	if !u.enter(c, o) {
		return
	}
	o.finished = func(o *copyOp) { c.copied(o) }
	find := &targetFinder{unit: u, names: targets, disks: make([]Disk, len(targets)), then: func(disks []Disk, release []func()) {
		o.release = release
		if o.stopped() {
			o.endWith(ErrAborted)
			return
		}
		o.place(u, disks, segments, h.size)
		u.begin(c, o)
	}}
	find.next()
}

// targetFinder finds the units of a list, one after the other.
type targetFinder struct {
	unit    *Unit
	names   []designator
	disks   []Disk
	release []func()
	at      int
	then    func([]Disk, []func())
}

func (f *targetFinder) next() {
	for ; f.at < len(f.names); f.at++ {
		g := f.names[f.at]
		if g.names(f.unit.disk.Identity()) {
			f.disks[f.at] = f.unit.disk
			continue
		}
		// One unit is one Disk, however often and by whichever name the list has it: whether ranges overlap goes by that.
		if i := slices.IndexFunc(f.disks[:f.at], func(d Disk) bool { return d != nil && g.names(d.Identity()) }); i >= 0 {
			f.disks[f.at] = f.disks[i]
			continue
		}
		f.unit.disk.Other(g.names, func(d Disk, release func()) {
			if d != nil { // nil: only a segment that uses it fails
				f.disks[f.at] = d
				f.release = append(f.release, release)
			}
			f.at++
			f.next()
		})
		return
	}
	f.then(f.disks, f.release)
}

// unreachableError is a segment of a unit that isn't there, or that the initiator may not use.
type unreachableError struct{ field uint16 } // of the list, where it names the unit; 0: nowhere

func (e *unreachableError) Error() string { return "copy target is not reachable" }

// place turns segments into pieces. One whose range or unit isn't there is kept: it fails when its turn comes, after the
// segments before it were copied (SPC-4 5.17.7.4). The descriptors of the units begin at byte head of the list.
func (o *copyOp) place(u *Unit, disks []Disk, segments []copySegment, head int) {
	get := func(id uint16) Disk {
		switch {
		case id == cscdSelf:
			return u.disk
		case int(id) < len(disks):
			return disks[id]
		}
		return nil
	}
	for _, s := range segments {
		src, dst := get(s.src), get(s.dst)
		if src == nil || dst == nil {
			id := s.dst
			if src == nil {
				id = s.src
			}
			e := &unreachableError{}
			if int(id) < len(disks) {
				e.field = uint16(head + int(id)*cscdLength)
			}
			o.pieces = append(o.pieces, copyPiece{src: refused{u.disk, e}, dst: u.disk, n: 1})
			continue
		}
		gs, gd := src.Geometry(), dst.Geometry()
		bs, bd := uint64(gs.BlockSize), uint64(gd.BlockSize)
		n := s.blocks * bs
		if s.byDestination {
			n = s.blocks * bd
		}
		if s.inBytes {
			n = s.bytes
		}
		p := copyPiece{src: src, dst: dst, n: int64(n)}
		// Bytes that are no whole blocks of either unit would need a merge of two commands' data.
		fits := func(g Geometry, lba, off uint64) (int64, bool) {
			size := uint64(g.BlockSize)
			if lba > g.Blocks || off%size != 0 || n%size != 0 || n > copyLengthMax {
				return 0, false
			}
			at := lba*size + off
			return int64(at), at <= g.Blocks*size && n <= g.Blocks*size-at
		}
		var okSrc, okDst bool
		p.srcOff, okSrc = fits(gs, s.srcLBA, s.srcByte)
		p.dstOff, okDst = fits(gd, s.dstLBA, s.dstByte)
		switch {
		case !okSrc || !okDst:
			p = copyPiece{src: refused{src, ErrOutOfRange}, dst: dst, n: 1}
		case gd.ReadOnly:
			p = copyPiece{src: refused{src, ErrWriteProtected}, dst: dst, n: 1}
		}
		o.pieces = append(o.pieces, p)
	}
}

// refused is a disk of which a segment asked for what can't be done.
type refused struct {
	Disk
	err error
}

// Read fails.
func (r refused) Read(_ Request, _ int64, _ int, done func(ReadResult, error)) { done(nil, r.err) }

// copyAbort is COPY OPERATION ABORT (SPC-4 6.3): of what is being processed; what is over can't be aborted.
func (u *Unit) copyAbort(c *Command) {
	if o := u.copies.find(c.u32(2)); o != nil && !o.over() {
		o.cancel(c.finish)
		return
	}
	c.badField(2, 7)
	c.finish()
}
