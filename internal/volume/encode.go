package volume

import (
	"encoding/binary"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// Bodies of the parts: one encoder and one decoder each, pure functions. docs/format.md, "Checkpoints".

// Forms of a leaf's body.
const (
	leafPacked = 0
	leafRaw    = 1
)

// Bits of the byte before each packed extent: what is as usual and left out.
const (
	packNoGap      = 1 << 0 // begins where the one before ends
	packOne        = 1 << 1 // one block
	packFirst      = 1 << 2 // from the first block of its record
	packSameSlot   = 1 << 3 // in the same segment as the one before
	packSameRecord = 1 << 4 // in the same record as the one before
	packAll        = 1<<5 - 1
)

// appendLeaf appends the body of a leaf's part, packed, or raw where that is shorter.
func appendLeaf(dst []byte, id LeafID, l *leaf) []byte {
	n := len(l.ext)
	if l.flat != nil {
		n = int(l.runs)
	}
	dst = appendHead(slices.Grow(dst, 24+8*n), PartLeaf, uint64(id))
	at := len(dst)
	dst = append(dst, leafPacked)
	dst = binary.AppendUvarint(dst, uint64(n))
	var end int
	var before entry
	l.each(func(x extent) {
		e := x.entry()
		var bits byte
		if int(x.first) == end {
			bits |= packNoGap
		}
		if x.count == 1 {
			bits |= packOne
		}
		if e.first() == 0 {
			bits |= packFirst
		}
		if e.slot() == before.slot() {
			bits |= packSameSlot
			if e.record() == before.record() {
				bits |= packSameRecord
			}
		}
		dst = append(dst, bits)
		if bits&packNoGap == 0 {
			dst = binary.AppendUvarint(dst, uint64(int(x.first)-end))
		}
		if bits&packOne == 0 {
			dst = binary.AppendUvarint(dst, uint64(x.count))
		}
		if bits&packFirst == 0 {
			dst = binary.AppendUvarint(dst, uint64(e.first()))
		}
		if bits&packSameSlot == 0 {
			dst = binary.AppendVarint(dst, int64(e.slot())-int64(before.slot()))
		}
		if bits&packSameRecord == 0 {
			r := e.record() / journal.Alignment
			dst = append(dst, byte(r), byte(r>>8), byte(r>>16))
		}
		end, before = x.end(), e
	})
	if len(dst)-at <= 1+8*leafBlocks {
		return dst
	}
	dst = append(dst[:at], leafRaw)
	at = len(dst)
	dst = append(dst, make([]byte, 8*leafBlocks)...)
	l.each(func(x extent) {
		for i := range int(x.count) {
			binary.LittleEndian.PutUint64(dst[at+8*(int(x.first)+i):], uint64(x.entry().plus(i)))
		}
	})
	return dst
}

// decodeLeaf reads the body of a leaf's part.
func decodeLeaf(id LeafID, body []byte) (*leaf, error) {
	d := decode(PartLeaf, uint64(id), body)
	var ext []extent
	switch form := d.u8(); form {
	case leafRaw:
		if len(d.b) != 8*leafBlocks {
			d.fail("%d bytes of entries", len(d.b))
		}
		ext = make([]extent, 0, leafBlocks)
		for i := range leafBlocks {
			e := entry(d.u64())
			if e == hole {
				continue
			}
			if e.slot() == 0 || e.slot() >= slotMax {
				d.fail("block %d in slot %d", i, e.slot())
				break
			}
			ext = append(ext, makeExtent(i, 1, e))
		}
	case leafPacked:
		n := int(d.uvarint(leafBlocks))
		if n > len(d.b) {
			d.fail("%d extents in %d bytes", n, len(d.b))
			break
		}
		ext = make([]extent, 0, n)
		var end int
		var slot Slot
		var record uint32
		for range n {
			bits := d.u8()
			if bits > packAll || bits&packSameRecord != 0 && bits&packSameSlot == 0 {
				d.fail("bits of an extent: %08b", bits)
			}
			first, count, within := end, 1, uint64(0)
			if bits&packNoGap == 0 {
				first += int(d.uvarint(leafBlocks))
			}
			if bits&packOne == 0 {
				count = int(d.uvarint(1 << firstBits))
			}
			if bits&packFirst == 0 {
				within = d.uvarint(firstMask)
			}
			if bits&packSameSlot == 0 {
				s := int64(slot) + d.varint()
				if s <= 0 || s >= slotMax {
					d.fail("slot %d", s)
					break
				}
				slot = Slot(s)
			}
			if bits&packSameRecord == 0 {
				if b := d.take(3); b != nil {
					record = (uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16) * journal.Alignment
				}
			}
			end = first + count
			if d.err != nil {
				break
			}
			if slot == 0 || record >= journal.SegmentCapacityMax || count == 0 || end > leafBlocks || within+uint64(count) > 1<<firstBits {
				d.fail("extent %d+%d at slot %d, record %d, block %d", first, count, slot, record, within)
				break
			}
			ext = append(ext, makeExtent(first, count, makeEntry(slot, record, uint32(within))))
		}
	default:
		d.fail("form %d", form)
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	l := new(leaf)
	l.adopt(ext)
	return l, nil
}

// indexed is one line of a page, a directory or a list of the root.
type indexed struct {
	index uint64
	loc   location
}

func appendList(dst []byte, list []indexed) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(list)))
	next := uint64(0)
	for _, x := range list {
		dst = binary.AppendUvarint(dst, x.index-next)
		dst = appendLocation(dst, x.loc)
		next = x.index + 1
	}
	return dst
}

// list takes a list whose indexes are below limit.
func (d *decoder) list(limit uint64) []indexed {
	n := d.count(1 + locationLeast)
	list := make([]indexed, 0, n)
	next := uint64(0)
	for range n {
		x := indexed{index: next + d.uvarint(limit)}
		x.loc = d.location()
		if d.err == nil && x.index >= limit {
			d.fail("index %d of %d", x.index, limit)
		}
		if d.err != nil {
			return nil
		}
		list = append(list, x)
		next = x.index + 1
	}
	return list
}

// appendIndex appends the body of a page's or a directory's part.
func appendIndex(dst []byte, t PartType, id uint64, list []indexed) []byte {
	return appendList(appendHead(dst, t, id), list)
}

func decodeIndex(t PartType, id uint64, body []byte) ([]indexed, error) {
	limit := uint64(pageSize)
	if t == PartDirectory {
		limit = dirSize
	}
	d := decode(t, id, body)
	list := d.list(limit)
	return list, d.end()
}

// slotted is one segment of the table with its slot.
type slotted struct {
	slot Slot
	seg  Segment
}

const (
	segmentLeast   = 1 + 1 + 34 + 36 + 36 + 4 + 4 + 8
	segmentSealed  = 1 << 0
	segmentRetired = 1 << 1
)

func appendSegments(dst []byte, list []slotted) []byte {
	le := binary.LittleEndian
	dst = binary.AppendUvarint(dst, uint64(len(list)))
	for _, x := range list {
		dst = binary.AppendUvarint(dst, uint64(x.slot))
		var flags byte
		if x.seg.Sealed {
			flags |= segmentSealed
		}
		if x.seg.Retired {
			flags |= segmentRetired
		}
		dst = append(dst, flags)
		dst = appendSegmentID(dst, x.seg.ID)
		dst = appendPosition(dst, x.seg.Before)
		dst = appendPosition(dst, x.seg.Last)
		dst = le.AppendUint32(dst, x.seg.End)
		dst = le.AppendUint32(dst, x.seg.Live)
		dst = le.AppendUint64(dst, x.seg.PartBytes)
	}
	return dst
}

func (d *decoder) segments() []slotted {
	n := d.count(segmentLeast)
	list := make([]slotted, 0, n)
	last := Slot(0)
	for range n {
		x := slotted{slot: Slot(d.uvarint(slotMax - 1))}
		flags := d.u8()
		if flags > segmentSealed|segmentRetired || x.slot <= last {
			d.fail("slot %d after %d, flags %02x", x.slot, last, flags)
		}
		x.seg.Sealed, x.seg.Retired = flags&segmentSealed != 0, flags&segmentRetired != 0
		x.seg.ID = d.segmentID()
		x.seg.Before, x.seg.Last = d.position(), d.position()
		x.seg.End, x.seg.Live, x.seg.PartBytes = d.u32(), d.u32(), d.u64()
		if d.err != nil {
			return nil
		}
		list = append(list, x)
		last = x.slot
	}
	return list
}

// appendTable appends the body of a chunk's part.
func appendTable(dst []byte, id uint64, list []slotted) []byte {
	return appendSegments(appendHead(dst, PartTable, id), list)
}

func decodeTable(id uint64, body []byte) ([]slotted, error) {
	d := decode(PartTable, id, body)
	list := d.segments()
	for _, x := range list {
		if uint64(x.slot/chunkSlots) != id {
			d.fail("slot %d", x.slot)
		}
	}
	return list, d.end()
}

// requestsBodyMax is where a part of requests ends and the next begins.
const requestsBodyMax = 256 << 10

// requestLeast is what a request takes at least.
const requestLeast = 3

// appendRequests appends the body of part id, with the requests from forwarder at and its request from on
// until it is full. It returns where the next part goes on; done with at == len(r.by).
func appendRequests(dst []byte, id uint64, r *Requests, at, from int) (body []byte, nextAt, nextFrom int) {
	dst = appendHead(dst, PartRequests, id)
	for ; at < len(r.by) && len(dst) < requestsBodyMax; at, from = at+1, 0 {
		f := &r.by[at]
		// At most 21 bytes each.
		n := min(len(f.open)-from, (requestsBodyMax-len(dst))/8+1)
		dst = binary.LittleEndian.AppendUint64(dst, f.id)
		dst = binary.AppendUvarint(dst, f.upTo)
		dst = binary.AppendUvarint(dst, uint64(n))
		number, seq := f.upTo, ident.Seq(0)
		for _, q := range f.open[from : from+n] {
			dst = binary.AppendUvarint(dst, q.number-number)
			dst = append(dst, q.part)
			dst = binary.AppendVarint(dst, int64(q.seq-seq))
			number, seq = q.number, q.seq
		}
		if from+n < len(f.open) {
			return dst, at, from + n
		}
	}
	return dst, at, from
}

// decodeRequests adds what the body of part id has to r.
func decodeRequests(id uint64, body []byte, r *Requests) error {
	d := decode(PartRequests, id, body)
	for d.err == nil && len(d.b) > 0 {
		fid, upTo := d.u64(), d.uvarint(^uint64(0))
		n := d.count(requestLeast)
		if d.err != nil {
			break
		}
		if k := len(r.by); k == 0 || r.by[k-1].id < fid {
			if k >= 2*ForwardersMax {
				d.fail("more than %d forwarders", 2*ForwardersMax)
				break
			}
			r.by = append(r.by, forwarder{id: fid, upTo: upTo})
		} else if r.by[k-1].id != fid || r.by[k-1].upTo != upTo {
			d.fail("forwarder %016x after %016x", fid, r.by[k-1].id)
			break
		}
		f := &r.by[len(r.by)-1]
		number, seq := upTo, ident.Seq(0)
		for range n {
			q := request{number: number + d.uvarint(^uint64(0)), part: d.u8(), seq: seq + ident.Seq(d.varint())}
			if d.err != nil {
				break
			}
			k := len(f.open)
			if q.number < number || q.number <= upTo || k > 0 && f.open[k-1].compare(q.number, q.part) >= 0 || k >= 2*RequestsMax {
				d.fail("request %d part %d of forwarder %016x out of order", q.number, q.part, fid)
				break
			}
			f.open = append(f.open, q)
			r.count++
			number, seq = q.number, q.seq
		}
	}
	return d.end()
}

// root is the body of the root part.
type root struct {
	journal  ident.JournalID
	at       ident.Position
	size     uint64
	mapped   uint64
	dirs     []indexed
	chunks   []indexed
	requests []indexed
	states   []indexed
	segments []slotted // that hold table, requests and states, or parts of this very checkpoint
}

func appendRoot(dst []byte, r *root) []byte {
	le := binary.LittleEndian
	dst = appendHead(dst, PartRoot, 0)
	dst = append(dst, r.journal[:]...)
	dst = appendPosition(dst, r.at)
	dst = le.AppendUint64(dst, r.size)
	dst = le.AppendUint64(dst, r.mapped)
	for _, list := range [][]indexed{r.dirs, r.chunks, r.requests, r.states} {
		dst = appendList(dst, list)
	}
	return appendSegments(dst, r.segments)
}

func decodeRoot(body []byte) (*root, error) {
	d := decode(PartRoot, 0, body)
	r := new(root)
	copy(r.journal[:], d.take(len(r.journal)))
	r.at = d.position()
	r.size, r.mapped = d.u64(), d.u64()
	r.dirs = d.list(dirMax)
	r.chunks = d.list(slotMax / chunkSlots)
	r.requests = d.list(1 << 16)
	r.states = d.list(1 << 16)
	r.segments = d.segments()
	if r.size > BlocksMax || r.mapped > BlocksMax {
		d.fail("size of %d blocks, %d mapped", r.size, r.mapped)
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	return r, nil
}
