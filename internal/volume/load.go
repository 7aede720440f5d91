package volume

import (
	"errors"
	"fmt"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// PartReader reads a part of a checkpoint: the record whose header lies at offset in the segment, chained or
// not, header and body verified against their CRCs, and the body's digest the one that its parent says. A store whose
// disk has lost the part may have an older one there, which is whole: the reader asks others until one has what is wanted.
type PartReader interface {
	ReadPart(segment ident.SegmentID, offset uint32, digest uint64) (*journal.Record, []byte, error)
}

// Load makes the map that a checkpoint describes: root, segment table, requests, states and the places of
// all leaves. Leaves are absent until somebody asks for them. Records after point.At are applied by the
// caller then.
func Load(id ident.JournalID, point journal.CheckpointPoint, reader PartReader) (*Map, error) {
	m, err := load(id, point, reader)
	if err != nil {
		return nil, fmt.Errorf("checkpoint at %s: %w", point.At, err)
	}
	return m, nil
}

func load(id ident.JournalID, point journal.CheckpointPoint, reader PartReader) (*Map, error) {
	rec, body, err := reader.ReadPart(point.Segment, point.Offset, point.Digest)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := checkPart(id, rec, PartRoot, 0, point.Digest); err != nil {
		return nil, err
	}
	r, err := decodeRoot(body)
	if err != nil {
		return nil, err
	}
	if r.journal != id || r.at != point.At {
		return nil, corrupt("root of a checkpoint of %s at %s", r.journal, r.at)
	}
	m, err := New(id, r.size)
	if err != nil {
		return nil, err
	}
	m.applied, m.point = r.at.Seq, point
	l := loader{m: m, reader: reader, bytes: map[Slot]uint64{}}
	if err := l.table(r); err != nil {
		return nil, err
	}
	if err := l.tree(r); err != nil {
		return nil, err
	}
	if err := l.rest(r); err != nil {
		return nil, err
	}
	// The root lies in a segment that may be younger than the table.
	slot, err := m.AddSegment(Segment{ID: point.Segment})
	if err != nil {
		return nil, err
	}
	m.root = location{slot, point.Offset, uint32(len(body)), point.Digest}
	if err := l.hold(m.root); err != nil {
		return nil, err
	}
	clear(m.tally.dirty)
	l.account()
	m.buryLoaded(r.at)
	return m, nil
}

type loader struct {
	m      *Map
	reader PartReader
	bytes  map[Slot]uint64 // of parts in checkpoint segments, as the table has it
}

// part reads the part at loc.
func (l *loader) part(t PartType, id uint64, loc location) ([]byte, error) {
	if !l.m.table.has(loc.slot) {
		return nil, corrupt("checkpoint part %s %d lies in slot %d, which is free", t, id, loc.slot)
	}
	rec, body, err := l.reader.ReadPart(l.m.table.at(loc.slot).ID, loc.offset, loc.digest)
	if err != nil {
		return nil, fmt.Errorf("%s %d: %w", t, id, err)
	}
	if err := checkPart(l.m.journal, rec, t, id, loc.digest); err != nil {
		return nil, err
	}
	if uint32(len(body)) != loc.size {
		return nil, corrupt("checkpoint part %s %d has %d bytes, its parent says %d", t, id, len(body), loc.size)
	}
	return body, nil
}

// hold counts a part that the checkpoint needs.
func (l *loader) hold(loc location) error {
	if !l.m.table.has(loc.slot) || !l.m.table.at(loc.slot).ID.IsCheckpoint() {
		return corrupt("a checkpoint part in slot %d, which is no checkpoint segment", loc.slot)
	}
	l.m.hold(loc)
	return nil
}

// enter puts a segment from the checkpoint into its slot. The root's word comes first: it is the younger.
func (l *loader) enter(x slotted) error {
	m := l.m
	if s, ok := m.table.slots[x.seg.ID]; ok {
		if s != x.slot {
			return corrupt("segment %s in slots %d and %d", x.seg.ID, s, x.slot)
		}
		return nil
	}
	if m.table.has(x.slot) {
		return corrupt("slot %d of segments %s and %s", x.slot, m.table.at(x.slot).ID, x.seg.ID)
	}
	m.place(x.slot, x.seg)
	m.fresh = max(m.fresh, x.slot+1)
	if x.seg.ID.IsCheckpoint() {
		l.bytes[x.slot] = x.seg.PartBytes
		return nil
	}
	m.live[x.slot] = x.seg.Live
	m.turn(x.slot)
	m.mapped += uint64(x.seg.Live)
	return nil
}

func (l *loader) table(r *root) error {
	for _, x := range r.segments {
		if err := l.enter(x); err != nil {
			return err
		}
	}
	for _, c := range r.chunks {
		body, err := l.part(PartTable, c.index, c.loc)
		if err != nil {
			return err
		}
		list, err := decodeTable(c.index, body)
		if err != nil {
			return err
		}
		for _, x := range list {
			if err := l.enter(x); err != nil {
				return err
			}
		}
		l.m.grow(Slot(c.index * chunkSlots))
		l.m.table.locs[c.index] = c.loc
		if err := l.hold(c.loc); err != nil {
			return err
		}
	}
	for s := l.m.fresh; s > 1; s-- {
		if !l.m.table.has(s - 1) {
			l.m.table.free = append(l.m.table.free, s-1)
		}
	}
	if l.m.mapped != r.mapped {
		return corrupt("checkpoint of %d mapped blocks, its segments have %d", r.mapped, l.m.mapped)
	}
	return nil
}

func (l *loader) tree(r *root) error {
	for _, x := range r.dirs {
		body, err := l.part(PartDirectory, x.index, x.loc)
		if err != nil {
			return err
		}
		pages, err := decodeIndex(PartDirectory, x.index, body)
		if err != nil {
			return err
		}
		l.m.makeDir(x.index).loc = x.loc
		if err := l.hold(x.loc); err != nil {
			return err
		}
		for _, y := range pages {
			if err := l.page(x.index<<dirShift+y.index, y.loc); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *loader) page(index uint64, loc location) error {
	body, err := l.part(PartPage, index, loc)
	if err != nil {
		return err
	}
	leaves, err := decodeIndex(PartPage, index, body)
	if err != nil {
		return err
	}
	p := l.m.makePage(index)
	p.loc = loc
	if err := l.hold(loc); err != nil {
		return err
	}
	for _, x := range leaves {
		p.refs[x.index].loc = x.loc
		if err := l.hold(x.loc); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) rest(r *root) error {
	for i, x := range r.requests {
		if x.index != uint64(i) {
			return corrupt("part %d of the requests is missing", i)
		}
		body, err := l.part(PartRequests, x.index, x.loc)
		if err != nil {
			return err
		}
		if err := decodeRequests(x.index, body, &l.m.requests); err != nil {
			return err
		}
		l.m.extra.requests = append(l.m.extra.requests, x.loc)
		if err := l.hold(x.loc); err != nil {
			return err
		}
	}
	l.m.extra.states = map[uint16]location{}
	for _, x := range r.states {
		body, err := l.part(PartState, x.index, x.loc)
		if err != nil {
			return err
		}
		state, err := decodeState(x.index, body)
		if err != nil {
			return err
		}
		l.m.states.bodies[uint16(x.index)] = state
		l.m.extra.states[uint16(x.index)] = x.loc
		if err := l.hold(x.loc); err != nil {
			return err
		}
	}
	return nil
}

func decodeState(kind uint64, body []byte) ([]byte, error) {
	d := decode(PartState, kind, body)
	if d.err != nil {
		return nil, d.err
	}
	return append(make([]byte, 0, len(d.b)), d.b...), nil
}

// account takes over how many bytes of parts the checkpoint segments have: as many as are said to lie there,
// and at least what is alive. Their chunks are written with the next checkpoint: the root and the parts of
// the table came after what the table says of them.
func (l *loader) account() {
	for s, n := range l.m.table.parts {
		n.bytes = max(n.liveBytes, l.bytes[s])
		l.m.table.parts[s] = n
		l.m.tally.dirty[s/chunkSlots] = true
	}
}

// buryLoaded finds the segments that the checkpoint doesn't need.
func (m *Map) buryLoaded(at ident.Position) {
	for s, used := range m.table.used {
		slot := Slot(s)
		if !used {
			continue
		}
		seg := m.table.at(slot)
		switch {
		case seg.Retired || m.live[s] != 0 || m.table.parts[slot].live != 0:
		case seg.Sealed:
			m.table.dead[slot] = at
			m.turn(slot)
		case !seg.ID.IsCheckpoint():
			m.table.bare = append(m.table.bare, slot)
		}
	}
}

// PartPlace is where the part of a leaf lies, and its digest.
type PartPlace struct {
	Segment ident.SegmentID
	Offset  uint32
	Digest  uint64
}

// Locate says where the part of a leaf lies, in the last finished checkpoint.
func (m *Map) Locate(id LeafID) (place PartPlace, ok bool) {
	p := m.page(uint64(id) >> pageShift)
	if p == nil {
		return place, false
	}
	loc := p.refs[int(id)&(pageSize-1)].loc
	if loc.none() {
		return place, false
	}
	return PartPlace{m.table.at(loc.slot).ID, loc.offset, loc.digest}, true
}

// ErrStale says that a leaf has another place by now: ask Locate again.
var ErrStale = errors.New("the leaf's part lies elsewhere by now")

// Loaded takes the part of a leaf. What was written since the checkpoint stays above it. A leaf that is in
// memory already is left as it is.
func (m *Map) Loaded(id LeafID, rec *journal.Record, body []byte) error {
	p := m.page(uint64(id) >> pageShift)
	if p == nil {
		return ErrStale
	}
	i := int(id) & (pageSize - 1)
	r := &p.refs[i]
	if r.leaf != nil && !r.leaf.pending {
		return nil
	}
	if r.loc.none() || rec.BodyDigest != r.loc.digest {
		return ErrStale
	}
	if err := checkPart(m.journal, rec, PartLeaf, uint64(id), r.loc.digest); err != nil {
		return err
	}
	base, err := decodeLeaf(id, body)
	if err != nil {
		return err
	}
	if err := m.checkBase(id, base); err != nil {
		return err
	}
	if r.leaf == nil {
		base.used = true
		m.setLeaf(p, i, base)
		return nil
	}
	current := r.leaf
	m.setLeaf(p, i, nil)
	if !p.todo.has(i) {
		current.merge(base, &m.tally)
		m.setLeaf(p, i, current)
		return nil
	}
	// The running checkpoint has still to write this leaf as it was.
	cp := m.cp
	switch kept := cp.kept[id]; {
	case kept != nil:
		cp.unkeep(id)
		kept.merge(base, &cp.tally)
		cp.keep(id, kept)
		current.merge(base, &m.tally)
	case p.dirty.has(i):
		// It was absent then: the part itself is what it was.
		current.merge(base, &m.tally)
		cp.keep(id, base)
	default:
		current.merge(base, &m.tally, &cp.tally)
	}
	m.setLeaf(p, i, current)
	return nil
}

// checkBase holds that a leaf maps only to segments of the history that the table counts blocks in.
func (m *Map) checkBase(id LeafID, l *leaf) (err error) {
	l.each(func(x extent) {
		s := x.entry().slot()
		if err == nil && (!m.table.has(s) || m.table.at(s).ID.IsCheckpoint() || m.live[s] < uint32(x.count)) {
			err = corrupt("checkpoint leaf %d maps to slot %d, in which nothing is alive", id, s)
		}
	})
	return err
}

// Pending gives the first leaf from id on that waits for its part, or NoLeaf. They are to be loaded in the
// background: until then live counts are too high, and the next checkpoint has to wait for them.
func (m *Map) Pending(id LeafID) LeafID {
	if m.pending == 0 {
		return NoLeaf
	}
	for index := uint64(id) >> pageShift; index < uint64(len(m.dirs))<<dirShift; index++ {
		if m.dirs[index>>dirShift] == nil {
			index |= dirSize - 1
			continue
		}
		p := m.page(index)
		if p == nil || p.pending == 0 {
			continue
		}
		for i := range p.refs {
			if l := p.refs[i].leaf; l != nil && l.pending && p.id(i) >= id {
				return p.id(i)
			}
		}
	}
	return NoLeaf
}

// PendingLen is the number of leaves that wait for their part.
func (m *Map) PendingLen() int { return m.pending }

// LoadLeaf loads a leaf at once, for those who may wait: a replay, an inspection, a test.
func (m *Map) LoadLeaf(id LeafID, reader PartReader) error {
	at, ok := m.Locate(id)
	if !ok {
		return ErrStale
	}
	rec, body, err := reader.ReadPart(at.Segment, at.Offset, at.Digest)
	if err != nil {
		return fmt.Errorf("leaf %d: %w", id, err)
	}
	return m.Loaded(id, rec, body)
}

// Complete verifies that every part of the checkpoint can be read and decoded, that each is what its parent
// says, and that the blocks mapped are as many as the segments count (R12). Other than Load it reads the
// leaves, one at a time.
func Complete(id ident.JournalID, point journal.CheckpointPoint, reader PartReader) error {
	m, err := Load(id, point, reader)
	if err != nil {
		return err
	}
	count := make([]uint32, len(m.live))
	m.eachPage(func(p *page) {
		for i := range p.refs {
			if err != nil || p.refs[i].loc.none() {
				continue
			}
			leafID := p.id(i)
			if err = m.LoadLeaf(leafID, reader); err != nil {
				return
			}
			p.refs[i].leaf.each(func(x extent) { count[x.entry().slot()] += uint32(x.count) })
			m.setLeaf(p, i, nil)
		}
	})
	if err != nil {
		return fmt.Errorf("checkpoint at %s: %w", point.At, err)
	}
	for s := range count {
		if count[s] != m.live[s] {
			return fmt.Errorf("checkpoint at %s: %w", point.At,
				corrupt("segment %s has %d live blocks, its count says %d", m.table.at(Slot(s)).ID, count[s], m.live[s]))
		}
	}
	return nil
}
