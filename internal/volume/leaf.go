package volume

import (
	"sort"
	"unsafe"
)

// leafBlocks is what a leaf maps: 4 MiB of the volume.
const (
	leafShift  = 10
	leafBlocks = 1 << leafShift
)

// A leaf goes flat with more than extentsMax extents and back with fewer than extentsMin runs. 512 extents
// take 6 KiB where the flat form takes 8; the gap keeps a leaf at the border from changing with each write.
const (
	extentsMax = 512
	extentsMin = 192
)

// extent maps count blocks from first on to consecutive blocks of one record. The entry is cut in two so
// that an extent takes 12 bytes.
type extent struct {
	first, count uint16
	lo, hi       uint32
}

func makeExtent(first, count int, e entry) extent {
	return extent{uint16(first), uint16(count), uint32(e), uint32(e >> 32)}
}

func (x extent) entry() entry { return entry(x.hi)<<32 | entry(x.lo) }
func (x extent) end() int     { return int(x.first) + int(x.count) }

// follows reports that y begins where x ends, in the volume and in the record.
func (x extent) follows(y extent) bool {
	return x.end() == int(y.first) && follows(x.entry(), int(x.count), y.entry())
}

// leaf maps leafBlocks blocks, in one of two forms: extents in order while they are few, else an array.
// Neither has pointers within, so the garbage collector doesn't look inside.
type leaf struct {
	flat    *[leafBlocks]entry
	ext     []extent // ordered, disjoint, none of a hole; neighbours that could be one are one
	runs    uint16   // of the flat form: how many extents it would be
	pending bool     // its part in the last checkpoint is not merged in yet; see Map.Loaded
	used    bool     // since the clock hand passed
}

const leafSize = int64(unsafe.Sizeof(leaf{}))

// memory is what the leaf takes.
func (l *leaf) memory() int64 {
	n := leafSize + int64(cap(l.ext))*int64(unsafe.Sizeof(extent{}))
	if l.flat != nil {
		n += int64(unsafe.Sizeof(*l.flat))
	}
	return n
}

// newPending makes a leaf of which nothing is known.
func newPending() *leaf {
	return &leaf{pending: true, ext: append(make([]extent, 0, 4), makeExtent(0, leafBlocks, unknown))}
}

func (l *leaf) clone() *leaf {
	c := *l
	if l.flat != nil {
		f := *l.flat
		c.flat = &f
	} else {
		c.ext = append(make([]extent, 0, max(4, len(l.ext))), l.ext...)
	}
	return &c
}

func (l *leaf) empty() bool {
	return !l.pending && (l.flat == nil && len(l.ext) == 0 || l.flat != nil && l.runs == 0)
}

// search gives the first extent that ends behind block a.
func (l *leaf) search(a int) int {
	lo, hi := 0, len(l.ext)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if l.ext[mid].end() > a {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// run gives the entry of block a and for how many blocks it goes on, at most to end: consecutive blocks of a
// record, a hole, or unknown.
func (l *leaf) run(a, end int) (e entry, n int) {
	if f := l.flat; f != nil {
		e = f[a&(leafBlocks-1)]
		n = 1
		if e == hole {
			for a+n < end && f[(a+n)&(leafBlocks-1)] == hole {
				n++
			}
			return e, n
		}
		for a+n < end && follows(e, n, f[(a+n)&(leafBlocks-1)]) {
			n++
		}
		return e, n
	}
	i := l.search(a)
	if i == len(l.ext) {
		return hole, end - a
	}
	x := l.ext[i]
	if int(x.first) > a {
		return hole, min(end, int(x.first)) - a
	}
	return x.entry().plus(a - int(x.first)), min(end, x.end()) - a
}

// set maps n blocks from a on to e and what follows it, or to nothing. t loses what was there and gets what
// is.
func (l *leaf) set(a, n int, e entry, t *tally) {
	if l.flat != nil {
		l.setFlat(a, n, e, t)
		if l.runs < extentsMin {
			l.toExtents()
		}
	} else {
		l.setExtents(a, n, e, t)
		if len(l.ext) > extentsMax {
			l.toFlat()
		}
	}
	t.add(e, n)
}

func (l *leaf) setFlat(a, n int, e entry, t *tally) {
	f := l.flat
	end := a + n
	var left, prev entry
	if a > 0 {
		left = f[a-1]
		prev = left
	}
	runs := int(l.runs)
	for i := a; i < end; i++ {
		old := f[i]
		if old != hole {
			if prev == hole || !follows(prev, 1, old) {
				runs--
			}
			t.drop(old, 1)
		}
		prev = old
		f[i] = e
		if e > unknown {
			f[i] = e + entry(i-a)
		}
	}
	if e != hole && (left == hole || !follows(left, 1, e)) {
		runs++
	}
	if end < leafBlocks && f[end] != hole {
		if prev == hole || !follows(prev, 1, f[end]) {
			runs--
		}
		if last := f[end-1]; last == hole || !follows(last, 1, f[end]) {
			runs++
		}
	}
	l.runs = uint16(runs)
}

func (l *leaf) setExtents(a, n int, e entry, t *tally) {
	end := a + n
	i := l.search(a)
	j := i
	for ; j < len(l.ext) && int(l.ext[j].first) < end; j++ {
		x := l.ext[j]
		from, to := max(a, int(x.first)), min(end, x.end())
		t.drop(x.entry().plus(from-int(x.first)), to-from)
	}
	var repl [3]extent
	k := 0
	var right extent
	if i < j {
		if x := l.ext[i]; int(x.first) < a {
			repl[0] = makeExtent(int(x.first), a-int(x.first), x.entry())
			k = 1
		}
		if x := l.ext[j-1]; x.end() > end {
			right = makeExtent(end, x.end()-end, x.entry().plus(end-int(x.first)))
		}
	}
	if e != hole {
		x := makeExtent(a, n, e)
		if k == 1 && repl[0].follows(x) {
			x, k = makeExtent(int(repl[0].first), int(repl[0].count)+n, repl[0].entry()), 0
		} else if k == 0 && i > 0 && l.ext[i-1].follows(x) {
			i--
			x = makeExtent(int(l.ext[i].first), int(l.ext[i].count)+n, l.ext[i].entry())
		}
		if right.count > 0 && x.follows(right) {
			x.count, right.count = x.count+right.count, 0
		} else if right.count == 0 && j < len(l.ext) && x.follows(l.ext[j]) {
			x.count += l.ext[j].count
			j++
		}
		repl[k] = x
		k++
	}
	if right.count > 0 {
		repl[k] = right
		k++
	}
	l.splice(i, j, repl[:k])
}

// splice replaces the extents [i, j) by repl.
func (l *leaf) splice(i, j int, repl []extent) {
	was := len(l.ext)
	now := was - (j - i) + len(repl)
	if now > cap(l.ext) || cap(l.ext) > 16 && now < cap(l.ext)/4 {
		grown := make([]extent, was, extentCap(max(was, now)))
		copy(grown, l.ext)
		l.ext = grown
	}
	switch {
	case now > was:
		l.ext = l.ext[:now]
		copy(l.ext[i+len(repl):], l.ext[j:was])
	case now < was:
		copy(l.ext[i+len(repl):], l.ext[j:was])
		l.ext = l.ext[:now]
	}
	copy(l.ext[i:], repl)
}

// extentCap rounds up to sizes that the allocator has, or nearly.
func extentCap(n int) int {
	for c := 4; c < 128; c *= 2 {
		if n <= c {
			return c
		}
	}
	return min((n+127)/128*128, extentsMax+2)
}

func (l *leaf) toFlat() {
	f := new([leafBlocks]entry)
	for _, x := range l.ext {
		e := x.entry()
		for i := range int(x.count) {
			f[int(x.first)+i] = e.plus(i)
		}
	}
	l.runs = uint16(len(l.ext))
	l.flat, l.ext = f, nil
}

func (l *leaf) toExtents() {
	ext := make([]extent, 0, extentCap(int(l.runs)+2))
	l.each(func(x extent) { ext = append(ext, x) })
	l.flat, l.ext, l.runs = nil, ext, 0
}

// each calls fn with every extent, in order.
func (l *leaf) each(fn func(extent)) {
	if l.flat == nil {
		for _, x := range l.ext {
			fn(x)
		}
		return
	}
	for a := 0; a < leafBlocks; {
		e, n := l.run(a, leafBlocks)
		if e != hole {
			fn(makeExtent(a, n, e))
		}
		a += n
	}
}

// anyUnknown reports whether something in [a, end) needs the part that isn't merged in yet.
func (l *leaf) anyUnknown(a, end int) bool {
	if !l.pending {
		return false
	}
	for a < end {
		e, n := l.run(a, end)
		if e == unknown {
			return true
		}
		a += n
	}
	return false
}

// merge puts base, the leaf's part, under what was written since. The tallies still count all of base: they
// lose what it maps where something newer stands.
func (l *leaf) merge(base *leaf, tallies ...*tally) {
	var known []extent // what base maps and l knows better, as base has it
	var filled []extent
	base.each(func(x extent) {
		for a := int(x.first); a < x.end(); {
			e, n := l.run(a, x.end())
			y := makeExtent(a, n, x.entry().plus(a-int(x.first)))
			if e == unknown {
				filled = append(filled, y)
			} else {
				known = append(known, y)
			}
			a += n
		}
	})
	for _, t := range tallies {
		for _, x := range known {
			t.drop(x.entry(), int(x.count))
		}
	}
	// What was unknown and base doesn't map is a hole. Built anew from the newer extents and the filled ones:
	// they are disjoint, so putting them in order is enough.
	all := filled
	l.each(func(x extent) {
		if x.entry() != unknown {
			all = append(all, x)
		}
	})
	sort.Slice(all, func(i, j int) bool { return all[i].first < all[j].first })
	l.adopt(all)
	l.pending = false
}

// adopt makes the leaf consist of extents, which are in order and disjoint.
func (l *leaf) adopt(ext []extent) {
	out := make([]extent, 0, extentCap(min(len(ext), extentsMax)))
	for _, x := range ext {
		if n := len(out); n > 0 && out[n-1].follows(x) {
			out[n-1].count += x.count
		} else {
			out = append(out, x)
		}
	}
	l.flat, l.runs, l.ext = nil, 0, out
	if len(out) > extentsMax {
		l.toFlat()
	}
}
