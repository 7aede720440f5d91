package volume

import (
	"math/bits"
	"unsafe"
)

// The tree: directories of 512 pages of 512 leaves of 1,024 blocks. A page maps 2 GiB, a directory 1 TiB.
const (
	pageShift = 9
	pageSize  = 1 << pageShift // leaves of a page
	dirShift  = 9
	dirSize   = 1 << dirShift // pages of a directory
	dirMax    = 1 << 15       // directories of a volume
)

// BlocksMax bounds a volume's size: 32 PiB, so that the list of directories fits the root of a checkpoint.
const BlocksMax = dirMax << (dirShift + pageShift + leafShift)

// LeafID numbers the leaves: leaf i maps the blocks from i*1024 on.
type LeafID uint64

// NoLeaf stands for no leaf.
const NoLeaf = ^LeafID(0)

// First is the first block that the leaf maps.
func (id LeafID) First() uint64 { return uint64(id) << leafShift }

// location is where a part lies. The zero location is no part: what it would say is all holes.
type location struct {
	slot   Slot
	offset uint32 // of the record in the segment
	size   uint32 // of the body
	digest uint64 // of the body, as in the record's header
}

func (l location) none() bool { return l.slot == 0 }

// bitmap has a bit for each leaf of a page.
type bitmap [pageSize / 64]uint64

func (b *bitmap) has(i int) bool { return b[i>>6]>>(i&63)&1 != 0 }
func (b *bitmap) set(i int)      { b[i>>6] |= 1 << (i & 63) }
func (b *bitmap) clear(i int)    { b[i>>6] &^= 1 << (i & 63) }
func (b *bitmap) any() bool      { return *b != bitmap{} }

func (b *bitmap) or(o *bitmap) {
	for i := range b {
		b[i] |= o[i]
	}
}

// next gives the first set bit from i on, or pageSize.
func (b *bitmap) next(i int) int {
	for w := i >> 6; w < len(b); w++ {
		v := b[w]
		if w == i>>6 {
			v &= ^uint64(0) << (i & 63)
		}
		if v != 0 {
			return w<<6 + bits.TrailingZeros64(v)
		}
	}
	return pageSize
}

// leafRef is a leaf in its page. No leaf and no location: all holes. No leaf but a location: absent.
type leafRef struct {
	leaf *leaf
	loc  location // of its part in the last finished checkpoint
}

// page holds 512 leaves. Of each it knows, by bitmap:
//
//	dirty   changed since the last checkpoint began (or, with none running, since the last one finished)
//	was     dirty when the running checkpoint began
//	todo    the running checkpoint has still to write the leaf as it was when it began
//	staged  the running checkpoint has written it; its new location counts once the checkpoint is finished
//
// A leaf in none of them equals its part and may leave memory, and so does one in todo or staged that was not dirty: a checkpoint that
// writes everything anew has it too.
type page struct {
	index   uint64
	refs    [pageSize]leafRef
	loc     location
	leaves  int // refs with a leaf
	pending int // of those, pending

	dirty, was, todo, staged bitmap
}

type dir struct {
	pages [dirSize]*page
	loc   location
}

const (
	pageMemory = int64(unsafe.Sizeof(page{}))
	dirMemory  = int64(unsafe.Sizeof(dir{}))
)

// page gives the page with that index, or nil.
func (m *Map) page(index uint64) *page {
	d := index >> dirShift
	if d >= uint64(len(m.dirs)) || m.dirs[d] == nil {
		return nil
	}
	return m.dirs[d].pages[index&(dirSize-1)]
}

func (m *Map) makeDir(d uint64) *dir {
	for uint64(len(m.dirs)) <= d {
		m.dirs = append(m.dirs, nil)
	}
	if m.dirs[d] == nil {
		m.dirs[d] = new(dir)
		m.mem += dirMemory
	}
	return m.dirs[d]
}

func (m *Map) makePage(index uint64) *page {
	d := m.makeDir(index >> dirShift)
	p := d.pages[index&(dirSize-1)]
	if p == nil {
		p = &page{index: index}
		d.pages[index&(dirSize-1)] = p
		m.mem += pageMemory
	}
	return p
}

// eachPage calls fn with every page, in order.
func (m *Map) eachPage(fn func(*page)) {
	for _, d := range m.dirs {
		if d == nil {
			continue
		}
		for _, p := range d.pages {
			if p != nil {
				fn(p)
			}
		}
	}
}

// setLeaf puts a leaf in its place, or takes it away (nil), and keeps the accounts.
func (m *Map) setLeaf(p *page, i int, l *leaf) {
	r := &p.refs[i]
	if r.leaf != nil {
		m.mem -= r.leaf.memory()
		m.leaves--
		p.leaves--
		if r.leaf.pending {
			m.pending--
			p.pending--
		}
	}
	r.leaf = l
	if l != nil {
		m.mem += l.memory()
		m.leaves++
		p.leaves++
		if l.pending {
			m.pending++
			p.pending++
		}
	}
}

func (p *page) id(i int) LeafID { return LeafID(p.index<<pageShift) + LeafID(i) }

// Memory is what leaves, pages, directories, the segment table and the requests take, in bytes; what a
// running checkpoint holds back of older leaves included.
func (m *Map) Memory() int64 { return m.mem + m.table.memory() + m.requests.memory() }

// Leaves is the number of leaves in memory.
func (m *Map) Leaves() int { return m.leaves }

// Evict takes clean leaves out of memory that were not used lately, until Memory is at most budget or one
// round found nothing more. It returns the bytes freed. Leaves that changed since the last finished
// checkpoint stay, so under a budget checkpoints have to keep up.
func (m *Map) Evict(budget int64) (freed int64) {
	was := m.mem
	budget -= m.Memory() - m.mem // what else there is doesn't change meanwhile, and takes long to count
	// Two rounds: the first may only take away the marks of use.
	for left := 2 * m.leaves; left > 0 && m.mem > budget; {
		p := m.hand()
		if p == nil {
			break
		}
		for i := 0; i < pageSize && m.mem > budget; i++ {
			l := p.refs[i].leaf
			if l == nil {
				continue
			}
			left--
			switch {
			case l.used:
				l.used = false
			case !p.refs[i].loc.none() && !m.busy(p, i):
				m.setLeaf(p, i, nil)
			}
		}
	}
	return was - m.mem
}

// busy reports that a leaf in memory is more than its part in the last finished checkpoint says, or is what the running one has just asked for.
func (m *Map) busy(p *page, i int) bool {
	switch {
	case p.dirty.has(i):
		return true
	case p.todo.has(i):
		return p.was.has(i) || m.cp.need == p.id(i)
	}
	return p.staged.has(i) && p.was.has(i)
}

// hand moves the clock hand to the next page with leaves in memory.
func (m *Map) hand() *page {
	total := uint64(len(m.dirs)) << dirShift
	for range total {
		m.clock++
		if m.clock >= total {
			m.clock = 0
		}
		if m.dirs[m.clock>>dirShift] == nil {
			m.clock |= dirSize - 1
			continue
		}
		if p := m.page(m.clock); p != nil && p.leaves > 0 {
			return p
		}
	}
	return nil
}
