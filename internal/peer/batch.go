package peer

import "dozo/internal/wire"

// copyMax is the largest piece of data that is copied behind its header rather than given to the kernel as
// a piece of its own: below it the copy is cheaper than another iovec.
const copyMax = 1 << 10

// batch is a run of encoded frames. Data stay where they are.
type batch struct {
	version uint16 // of the messages: what both sides have agreed upon
	small   []byte // headers, fields and small data, in the order of frames
	mark    int    // small[mark:] is not yet in pieces
	pieces  [][]byte
	scratch [][]byte
	bytes   int
	credit  int64    // returned to the link's budget once written: server side
	after   []func() // run once written or given up
}

// add encodes a message as one frame, or several if its fields are long. release, which may be nil, runs
// when the data of m are no longer used.
func (b *batch) add(h wire.Header, m wire.Message, checked bool, release func()) {
	start := len(b.small)
	b.small = append(b.small, zeroHeader[:]...)
	b.small = wire.AppendFieldsAt(b.small, m, b.version)
	fields := len(b.small) - start - wire.HeaderSize
	if h.Type == 0 {
		h.Type = m.Type() // a reply may be shared by several types: then h says which
	}
	b.scratch = wire.DataOf(b.scratch[:0], m)
	dataLen := 0
	for _, p := range b.scratch {
		dataLen += len(p)
	}
	if fields+dataLen > wire.PayloadMax {
		b.split(h, start, checked)
		return
	}
	h.Length = uint32(fields + dataLen)
	if checked {
		h.Flags |= wire.FlagChecked
		h.PayloadCRC = wire.Extend(0, b.small[start+wire.HeaderSize:])
		if _, own := wire.SelfChecking(h.Type); !own || h.Flags&wire.FlagReply != 0 {
			for _, p := range b.scratch {
				h.PayloadCRC = wire.Extend(h.PayloadCRC, p)
			}
		}
	}
	wire.PutHeader(b.small[start:], &h)
	for _, p := range b.scratch {
		if len(p) <= copyMax {
			b.small = append(b.small, p...)
			continue
		}
		b.cut()
		b.pieces = append(b.pieces, p)
	}
	clear(b.scratch)
	if release != nil {
		b.after = append(b.after, release)
	}
	b.bytes += wire.HeaderSize + fields + dataLen
}

var zeroHeader [wire.HeaderSize]byte

// split makes the long message whose fields are small[start+HeaderSize:] several frames.
func (b *batch) split(h wire.Header, start int, checked bool) {
	fields := append([]byte(nil), b.small[start+wire.HeaderSize:]...)
	b.small = b.small[:start]
	for len(fields) > 0 {
		part := fields[:min(len(fields), wire.PayloadMax)]
		fields = fields[len(part):]
		f := h
		f.Length = uint32(len(part))
		if len(fields) > 0 {
			f.Flags |= wire.FlagMore
		}
		if checked {
			f.Flags |= wire.FlagChecked
			f.PayloadCRC = wire.Extend(0, part)
		}
		at := len(b.small)
		b.small = append(b.small, zeroHeader[:]...)
		wire.PutHeader(b.small[at:], &f)
		b.small = append(b.small, part...)
		b.bytes += wire.HeaderSize + len(part)
	}
}

// addError encodes a reply that says no.
func (b *batch) addError(h wire.Header, e *wire.Error, checked bool) {
	start := len(b.small)
	b.small = append(b.small, zeroHeader[:]...)
	b.small = wire.AppendError(b.small, e)
	payload := b.small[start+wire.HeaderSize:]
	h.Flags |= wire.FlagReply
	h.Code = e.Code
	h.Length = uint32(len(payload))
	if checked {
		h.Flags |= wire.FlagChecked
		h.PayloadCRC = wire.Extend(0, payload)
	}
	wire.PutHeader(b.small[start:], &h)
	b.bytes += wire.HeaderSize + len(payload)
}

// cut closes the run of small bytes. When small grows later, what was cut stays valid in the old array.
func (b *batch) cut() {
	if b.mark < len(b.small) {
		b.pieces = append(b.pieces, b.small[b.mark:len(b.small):len(b.small)])
		b.mark = len(b.small)
	}
}

// smallKeep bounds what an idle link keeps of a buffer that a long message has made large.
const smallKeep = 256 << 10

// reset makes the batch empty for the next use. The caller has run after.
func (b *batch) reset() {
	clear(b.pieces)
	clear(b.after)
	b.small, b.mark, b.pieces, b.after, b.bytes, b.credit = b.small[:0], 0, b.pieces[:0], b.after[:0], 0, 0
	if cap(b.small) > smallKeep {
		b.small = nil
	}
}
