package volume

import (
	"errors"

	"dozo/internal/journal"
)

// How a checkpoint ends: announced, so that what it replaces can go, or given up.

// FinishCheckpoint makes the checkpoint the last finished one: all its parts are stable. What it returns is
// announced by a record of the journal (R12).
func (m *Map) FinishCheckpoint(cp *Checkpoint) (journal.CheckpointPoint, error) {
	if m.cp != cp || cp == nil {
		return journal.CheckpointPoint{}, errNoCheckpoint
	}
	if cp.stage != stageDone || len(cp.outstanding) > 0 {
		return journal.CheckpointPoint{}, errors.New("the checkpoint is not complete")
	}
	swap := func(old *location, loc location) {
		if *old != loc {
			m.drop(*old)
			*old = loc
		}
	}
	for _, d := range cp.dirs {
		for _, c := range d.pages {
			m.settle(c)
			swap(&c.p.loc, c.loc)
			if c.p.loc.none() && c.p.leaves == 0 {
				d.d.pages[c.p.index&(dirSize-1)] = nil
				m.mem -= pageMemory
			}
		}
		swap(&d.d.loc, d.loc)
	}
	for i := range cp.chunkLocs {
		swap(&m.table.locs[i], cp.chunkLocs[i])
	}
	if cp.reqDirty {
		for _, loc := range m.extra.requests {
			m.drop(loc)
		}
		m.extra.requests = cp.reqLocs
	}
	states := map[uint16]location{}
	for _, x := range cp.states {
		old := m.extra.states[x.kind]
		swap(&old, x.loc)
		states[x.kind] = x.loc
		delete(m.extra.states, x.kind)
	}
	for _, loc := range m.extra.states {
		m.drop(loc)
	}
	m.extra.states = states
	swap(&m.root, cp.root)
	m.point = journal.CheckpointPoint{At: cp.at, Segment: cp.rootSegment, Offset: cp.root.offset, Digest: cp.root.digest}
	m.end(cp)
	m.bury(cp)
	return m.point, nil
}

// settle takes over where a page's leaves lie now.
func (m *Map) settle(c *cpPage) {
	p := c.p
	for i := p.staged.next(0); i < pageSize; i = p.staged.next(i + 1) {
		r := &p.refs[i]
		m.drop(r.loc)
		r.loc = c.locs[i]
		if r.leaf != nil && !p.dirty.has(i) && r.leaf.empty() {
			m.setLeaf(p, i, nil)
		}
	}
	p.staged, p.was = bitmap{}, bitmap{}
}

// bury notes which segments the finished checkpoint no longer needs.
func (m *Map) bury(cp *Checkpoint) {
	for s, used := range m.table.used {
		slot := Slot(s)
		if !used {
			continue
		}
		if _, ok := m.table.dead[slot]; ok {
			continue
		}
		seg := m.table.at(slot)
		last, ended := seg.Last, seg.Sealed
		if !ended {
			last, ended = m.table.ended[slot]
		}
		if !ended || seg.Retired {
			continue
		}
		if seg.ID.IsCheckpoint() {
			if m.table.parts[slot].live == 0 {
				m.table.dead[slot] = cp.at
			}
		} else if s < len(cp.live) && cp.live[s] == 0 && m.live[s] == 0 && last.Seq <= cp.at.Seq {
			m.table.dead[slot] = cp.at
			m.turn(slot)
		}
	}
}

// AbandonCheckpoint gives a checkpoint up; the last finished one stays what it was. The next one writes what
// this one would have written.
func (m *Map) AbandonCheckpoint(cp *Checkpoint) {
	if m.cp != cp || cp == nil {
		return
	}
	for _, c := range cp.pages {
		p := c.p
		p.dirty.or(&p.was)
		p.todo, p.staged, p.was = bitmap{}, bitmap{}, bitmap{}
	}
	for s, n := range cp.placed {
		have := m.table.parts[s]
		have.live -= n.live
		have.liveBytes -= n.liveBytes
		m.table.parts[s] = have
	}
	for i, dirty := range cp.chunkDirty {
		if dirty || cp.tally.dirty[i] {
			m.tally.dirty[i] = true
		}
	}
	m.requests.dirty = m.requests.dirty || cp.reqDirty
	for _, x := range cp.states {
		if _, ok := m.states.bodies[x.kind]; ok && x.dirty {
			m.states.dirty[x.kind] = true
		}
	}
	m.end(cp)
}

// end lets go of what the map kept for the checkpoint.
func (m *Map) end(cp *Checkpoint) {
	m.mem -= cp.keptMem
	cp.kept, cp.keptMem = nil, 0
	for i := range m.table.shared {
		m.table.shared[i] = false
	}
	m.table.release()
	m.cp = nil
}
