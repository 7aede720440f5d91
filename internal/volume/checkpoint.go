package volume

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"unsafe"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// A checkpoint in its stages, each of which needs the places of all parts of the one before:
//
//	leaves -> pages -> directories -> table, requests, states -> root -> done
//
// The driver calls Next, appends the parts as records to checkpoint segments, says by Placed where they
// landed, and goes on until Done; when all is stable it calls FinishCheckpoint and announces the point.
type stage int

const (
	stageLeaves stage = iota
	stagePages
	stageDirs
	stageTable
	stageRequests
	stageStates
	stageRoot
	stageDone
)

// garbageSlack is how much garbage checkpoint segments may have beyond twice what is alive before the next
// checkpoint writes everything anew.
const garbageSlack = 64 << 20

// errNoCheckpoint says that a checkpoint is not the one that is running.
var errNoCheckpoint = errors.New("the checkpoint is not running")

// Checkpoint is one being written: the map as it was at the position that it covers.
type Checkpoint struct {
	m    *Map
	at   ident.Position
	size uint64
	full bool

	stage   stage
	need    LeafID    // what Next asked for last: it stays in memory until it is written
	pages   []*cpPage // with something to write, in order
	page    int       // at which the stage is
	dirs    []*cpDir
	keptMem int64
	kept    map[LeafID]*leaf // versions put aside because a later record changed the leaf

	tally       // the live counts when it began
	chunks      []chunk
	chunkDirty  []bool
	chunkLocs   []location
	chunk       int
	requests    Requests
	reqDirty    bool
	reqLocs     []location
	reqAt       int
	reqFrom     int
	states      []stateCopy
	state       int
	root        location
	rootSegment ident.SegmentID

	next        int                // number of the next part
	outstanding map[int]*placement // parts given out and not placed
	placed      map[Slot]partCount // what Placed has counted, for Abandon
}

type cpPage struct {
	p    *page
	locs [pageSize]location // of leaves in p.staged
	loc  location
}

type cpDir struct {
	index uint64
	d     *dir
	pages []*cpPage
	loc   location
}

type placement struct {
	to      *location
	size    uint32
	root    bool
	request int // index+1 of reqLocs, which moves when it grows
}

// stateCopy is one state as the checkpoint takes it.
type stateCopy struct {
	kind  uint16
	body  []byte
	dirty bool
	loc   location
}

// states are bytes of other packages that are kept with the map: reservations, attachments, pins.
type states struct {
	bodies map[uint16][]byte
	dirty  map[uint16]bool
}

// extraLocs are the places of what hangs on the root beside the tree and the table.
type extraLocs struct {
	requests []location
	states   map[uint16]location
}

// SetState has body written with every checkpoint from the next on; nil takes it away. It belongs to the map
// from then on. What the kinds mean is for those who set them; at most journal.RecordBodyGoal bytes each.
func (m *Map) SetState(kind uint16, body []byte) error {
	if len(body) > journal.RecordBodyGoal {
		return fmt.Errorf("state %d of %d bytes: at most %d", kind, len(body), journal.RecordBodyGoal)
	}
	if body == nil {
		delete(m.states.bodies, kind)
		delete(m.states.dirty, kind)
		return nil
	}
	m.states.bodies[kind] = body
	m.states.dirty[kind] = true
	return nil
}

// State gives what SetState or the loaded checkpoint has; nil if there is none.
func (m *Map) State(kind uint16) []byte { return m.states.bodies[kind] }

// Checkpointed is the last finished checkpoint, or the zero point.
func (m *Map) Checkpointed() journal.CheckpointPoint { return m.point }

// BeginCheckpoint starts a checkpoint of the map as it is now; at is the position of the last record applied.
// Only one runs at a time. It writes what changed since the last finished one, or all when the old parts
// hold too much garbage.
func (m *Map) BeginCheckpoint(at ident.Position) (*Checkpoint, error) {
	live, garbage := m.Garbage()
	return m.begin(at, garbage > 2*live+garbageSlack)
}

// BeginFullCheckpoint starts a checkpoint that writes everything anew and needs no part of an older one: what
// a new owner does at another site (R10).
func (m *Map) BeginFullCheckpoint(at ident.Position) (*Checkpoint, error) { return m.begin(at, true) }

func (m *Map) begin(at ident.Position, full bool) (*Checkpoint, error) {
	if m.cp != nil {
		return nil, errors.New("a checkpoint is running already")
	}
	if at.Seq != m.applied {
		return nil, fmt.Errorf("checkpoint at %s, but the map is at %d", at, m.applied)
	}
	cp := &Checkpoint{m: m, at: at, size: m.size, full: full, need: NoLeaf, kept: map[LeafID]*leaf{},
		tally:  tally{live: slices.Clone(m.live), dirty: make([]bool, len(m.tally.dirty)), mapped: m.mapped},
		chunks: slices.Clone(m.table.chunks), chunkDirty: slices.Clone(m.tally.dirty), chunkLocs: slices.Clone(m.table.locs),
		requests: m.requests.clone(), reqDirty: m.requests.dirty, reqLocs: slices.Clone(m.extra.requests),
		outstanding: map[int]*placement{}, placed: map[Slot]partCount{}}
	clear(m.tally.dirty)
	for i := range m.table.shared {
		m.table.shared[i] = true
	}
	m.requests.dirty = false
	for _, kind := range slices.Sorted(maps.Keys(m.states.bodies)) {
		cp.states = append(cp.states, stateCopy{kind, m.states.bodies[kind], m.states.dirty[kind], m.extra.states[kind]})
	}
	clear(m.states.dirty)
	if full {
		for i := range cp.chunkDirty {
			cp.chunkDirty[i] = true
		}
		for i := range cp.states {
			cp.states[i].dirty = true
		}
		cp.reqDirty = true
	}
	m.eachPage(func(p *page) {
		p.was = p.dirty
		p.todo = p.dirty
		if full {
			for i := range p.refs {
				if r := &p.refs[i]; r.leaf != nil || !r.loc.none() {
					p.todo.set(i)
				}
			}
		}
		p.dirty = bitmap{}
		if !p.todo.any() {
			return
		}
		c := &cpPage{p: p}
		cp.pages = append(cp.pages, c)
		index := p.index >> dirShift
		if n := len(cp.dirs); n == 0 || cp.dirs[n-1].index != index {
			cp.dirs = append(cp.dirs, &cpDir{index: index, d: m.dirs[index]})
		}
		d := cp.dirs[len(cp.dirs)-1]
		d.pages = append(d.pages, c)
	})
	cp.keptMem = int64(len(cp.pages)) * int64(unsafe.Sizeof(cpPage{}))
	m.mem += cp.keptMem
	m.cp = cp
	return cp, nil
}

// keep puts the version of a leaf aside that the checkpoint has still to write.
func (cp *Checkpoint) keep(id LeafID, l *leaf) {
	cp.kept[id] = l
	cp.keptMem += l.memory()
	cp.m.mem += l.memory()
}

func (cp *Checkpoint) unkeep(id LeafID) {
	if l := cp.kept[id]; l != nil {
		cp.keptMem -= l.memory()
		cp.m.mem -= l.memory()
		delete(cp.kept, id)
	}
}

// At is what the checkpoint covers.
func (cp *Checkpoint) At() ident.Position { return cp.at }

// Full reports that it writes everything anew.
func (cp *Checkpoint) Full() bool { return cp.full }

// Step is what a driver does next.
type Step struct {
	Parts []Part // to be appended and reported by Placed
	Need  LeafID // unless NoLeaf: load it (Locate, Loaded) before calling Next again
	Done  bool   // all parts are placed
}

// Next gives the next parts, of maxBytes in all or little more. A Step without parts, need and Done asks for
// the parts that are out to be placed first. The bodies belong to the caller.
func (cp *Checkpoint) Next(maxBytes int) (Step, error) {
	s := Step{Need: NoLeaf}
	if cp.m.cp != cp {
		return s, errNoCheckpoint
	}
	maxBytes = max(maxBytes, 1)
	bytes := 0
	give := func(t PartType, id uint64, body []byte, to placement) {
		to.size = uint32(len(body))
		cp.outstanding[cp.next] = &to
		s.Parts = append(s.Parts, Part{cp.next, t, id, body})
		cp.next++
		bytes += len(body)
	}
	for bytes < maxBytes {
		if cp.stage != stageLeaves && cp.stage != stageDone && cp.waits() {
			return s, nil
		}
		switch cp.stage {
		case stageLeaves:
			if cp.page == len(cp.pages) {
				cp.stage, cp.page = stagePages, 0
				continue
			}
			c := cp.pages[cp.page]
			i := c.p.todo.next(0)
			if i == pageSize {
				cp.page++
				continue
			}
			id := c.p.id(i)
			l := cp.version(c.p, i)
			if l == nil || l.pending {
				s.Need, cp.need = id, id
				return s, nil
			}
			if l.empty() {
				c.locs[i] = location{}
			} else {
				give(PartLeaf, uint64(id), appendLeaf(nil, id, l), placement{to: &c.locs[i]})
			}
			c.p.todo.clear(i)
			c.p.staged.set(i)
			cp.unkeep(id)
		case stagePages:
			if cp.page == len(cp.pages) {
				cp.stage, cp.page = stageDirs, 0
				continue
			}
			c := cp.pages[cp.page]
			if list := c.list(); len(list) > 0 {
				give(PartPage, c.p.index, appendIndex(nil, PartPage, c.p.index, list), placement{to: &c.loc})
			}
			cp.page++
		case stageDirs:
			if cp.page == len(cp.dirs) {
				cp.stage = stageTable
				continue
			}
			d := cp.dirs[cp.page]
			if list := d.list(); len(list) > 0 {
				give(PartDirectory, d.index, appendIndex(nil, PartDirectory, d.index, list), placement{to: &d.loc})
			}
			cp.page++
		case stageTable:
			if cp.chunk == len(cp.chunks) {
				cp.stage = stageRequests
				continue
			}
			if c := cp.chunk; cp.chunkDirty[c] || cp.tally.dirty[c] {
				cp.chunkLocs[c] = location{}
				if list := cp.segments(c); len(list) > 0 {
					give(PartTable, uint64(c), appendTable(nil, uint64(c), list), placement{to: &cp.chunkLocs[c]})
				}
			}
			cp.chunk++
		case stageRequests:
			if !cp.reqDirty || cp.reqAt == len(cp.requests.by) {
				if cp.reqDirty && len(cp.requests.by) == 0 {
					cp.reqLocs = nil
				}
				cp.stage = stageStates
				continue
			}
			if cp.reqAt == 0 && cp.reqFrom == 0 {
				cp.reqLocs = nil
			}
			n := len(cp.reqLocs)
			cp.reqLocs = append(cp.reqLocs, location{})
			var body []byte
			body, cp.reqAt, cp.reqFrom = appendRequests(nil, uint64(n), &cp.requests, cp.reqAt, cp.reqFrom)
			give(PartRequests, uint64(n), body, placement{request: n + 1})
		case stageStates:
			if cp.state == len(cp.states) {
				cp.stage = stageRoot
				continue
			}
			if x := &cp.states[cp.state]; x.dirty {
				body := append(appendHead(nil, PartState, uint64(x.kind)), x.body...)
				give(PartState, uint64(x.kind), body, placement{to: &x.loc})
			}
			cp.state++
		case stageRoot:
			body := appendRoot(nil, cp.makeRoot())
			if len(body) > journal.RecordBodyMax {
				return s, fmt.Errorf("root of the checkpoint takes %d bytes: at most %d", len(body), journal.RecordBodyMax)
			}
			give(PartRoot, 0, body, placement{to: &cp.root, root: true})
			cp.stage = stageDone
			return s, nil
		case stageDone:
			s.Done = len(cp.outstanding) == 0
			return s, nil
		}
	}
	return s, nil
}

// waits reports that the stage needs places which are not known yet. Table, requests and states need none.
func (cp *Checkpoint) waits() bool {
	if len(cp.outstanding) == 0 {
		return false
	}
	switch cp.stage {
	case stagePages, stageDirs:
		return cp.page == 0
	case stageRoot:
		return true
	}
	return false
}

// version gives leaf i of a page as it was when the checkpoint began, or nil if that isn't in memory.
func (cp *Checkpoint) version(p *page, i int) *leaf {
	if l := cp.kept[p.id(i)]; l != nil {
		return l
	}
	if p.dirty.has(i) {
		// Absent when the checkpoint began, so it equals its part; written to since.
		return nil
	}
	return p.refs[i].leaf
}

// list gives the places of a page's leaves in this checkpoint.
func (c *cpPage) list() (list []indexed) {
	for i := range c.p.refs {
		loc := c.p.refs[i].loc
		if c.p.staged.has(i) {
			loc = c.locs[i]
		}
		if !loc.none() {
			list = append(list, indexed{uint64(i), loc})
		}
	}
	return list
}

func (d *cpDir) list() (list []indexed) {
	k := 0
	for i, p := range d.d.pages {
		if p == nil {
			continue
		}
		loc := p.loc
		if k < len(d.pages) && d.pages[k].p == p {
			loc = d.pages[k].loc
			k++
		}
		if !loc.none() {
			list = append(list, indexed{uint64(i), loc})
		}
	}
	return list
}

// segments gives chunk c of the table as it was when the checkpoint began.
func (cp *Checkpoint) segments(c int) (list []slotted) {
	for i := range cp.chunks[c] {
		s := Slot(c*chunkSlots + i)
		seg := cp.chunks[c][i]
		if seg.ID == (ident.SegmentID{}) {
			continue
		}
		list = append(list, slotted{s, cp.describe(s, seg)})
	}
	return list
}

// describe fills in what the table's chunks don't hold.
func (cp *Checkpoint) describe(s Slot, seg Segment) Segment {
	if seg.ID.IsCheckpoint() {
		seg.PartBytes = cp.m.table.parts[s].bytes
		return seg
	}
	if int(s) < len(cp.live) {
		seg.Live = cp.live[s]
	}
	if seg.Last.Seq > cp.at.Seq {
		// The owner knows more of an open segment than the checkpoint covers; what lies behind may yet be
		// recovered otherwise.
		seg.Last, seg.Sealed, seg.End = cp.at, false, 0
	}
	return seg
}

func (cp *Checkpoint) makeRoot() *root {
	m := cp.m
	r := &root{journal: m.journal, at: cp.at, size: cp.size, mapped: cp.mapped}
	k := 0
	for i, d := range m.dirs {
		if d == nil {
			continue
		}
		loc := d.loc
		if k < len(cp.dirs) && cp.dirs[k].index == uint64(i) {
			loc = cp.dirs[k].loc
			k++
		}
		if !loc.none() {
			r.dirs = append(r.dirs, indexed{uint64(i), loc})
		}
	}
	holds := map[Slot]bool{}
	add := func(list *[]indexed, index uint64, loc location) {
		if !loc.none() {
			*list = append(*list, indexed{index, loc})
			holds[loc.slot] = true
		}
	}
	for i, loc := range cp.chunkLocs {
		add(&r.chunks, uint64(i), loc)
	}
	for i, loc := range cp.reqLocs {
		add(&r.requests, uint64(i), loc)
	}
	for _, x := range cp.states {
		add(&r.states, uint64(x.kind), x.loc)
	}
	for s := range cp.placed {
		holds[s] = true
	}
	for _, s := range slices.Sorted(maps.Keys(holds)) {
		r.segments = append(r.segments, slotted{s, cp.describe(s, *m.table.at(s))})
	}
	return r
}

// Placed says that a part was appended as a record to the checkpoint segment in slot, its header at offset,
// and has that digest. It counts as durable only when FinishCheckpoint is called.
func (cp *Checkpoint) Placed(part int, slot Slot, offset uint32, digest uint64) error {
	m := cp.m
	if m.cp != cp {
		return errNoCheckpoint
	}
	p := cp.outstanding[part]
	switch {
	case p == nil:
		return fmt.Errorf("part %d of the checkpoint is not waiting for a place", part)
	case !m.table.has(slot) || !m.table.at(slot).ID.IsCheckpoint():
		return fmt.Errorf("part %d of the checkpoint: slot %d is no checkpoint segment", part, slot)
	case offset%journal.Alignment != 0 || offset >= journal.SegmentCapacityMax:
		return fmt.Errorf("part %d of the checkpoint: offset %d can't be a record's", part, offset)
	}
	loc := location{slot, offset, p.size, digest}
	if p.request > 0 {
		cp.reqLocs[p.request-1] = loc
	} else {
		*p.to = loc
	}
	if p.root {
		cp.rootSegment = m.table.at(slot).ID
	}
	delete(cp.outstanding, part)
	m.hold(loc)
	n := cp.placed[slot]
	n.live++
	n.liveBytes += uint64(partSize(p.size))
	cp.placed[slot] = n
	m.tally.dirty[slot/chunkSlots] = true
	return nil
}
