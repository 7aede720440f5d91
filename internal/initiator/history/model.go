package history

import "fmt"

// write is one write of one block. The times count events of the log: a smaller one came first.
type write struct {
	number uint64
	issued uint64
	acked  uint64 // 0: not
	stable uint64 // when a flush or FUA covered it; 0: not
}

// model is what a log says about each block.
type model struct {
	first, n uint64             // the region
	blocks   map[uint64][]write // of each written block, in order; older ones than the newest stable one are dropped
	now      uint64
	// ackedOnly drops what an acknowledged write has replaced, flushed or not.
	ackedOnly bool
	// dirty lists blocks with acknowledged writes that no flush has covered yet.
	dirty   []uint64
	flushes map[uint64]uint64 // under way: number, time of issue
}

func (m *model) init(first, n uint64) {
	m.first, m.n = first, n
	m.blocks = map[uint64][]write{}
	m.flushes = map[uint64]uint64{}
}

func (m *model) apply(e Event) error {
	m.now++
	switch e.Kind {
	case EventFlushIssue:
		m.flushes[e.Number] = m.now
		return nil
	case EventFlushAck:
		at, ok := m.flushes[e.Number]
		if !ok {
			return fmt.Errorf("history: flush %d acknowledged, never issued", e.Number)
		}
		delete(m.flushes, e.Number)
		m.flushed(at)
		return nil
	}
	if e.Block < m.first || uint64(e.Count) > m.n || e.Block-m.first > m.n-uint64(e.Count) || e.Count == 0 {
		return fmt.Errorf("history: write %d of blocks %d+%d outside the region", e.Number, e.Block, e.Count)
	}
	for b := e.Block; b < e.Block+uint64(e.Count); b++ {
		if err := m.applyBlock(e, b); err != nil {
			return err
		}
	}
	return nil
}

func (m *model) applyBlock(e Event, b uint64) error {
	ws := m.blocks[b]
	if e.Kind == EventIssue {
		if n := len(ws); n > 0 && ws[n-1].number >= e.Number {
			return fmt.Errorf("history: block %d: write %d issued after %d", b, e.Number, ws[n-1].number)
		}
		m.blocks[b] = append(ws, write{number: e.Number, issued: m.now})
		return nil
	}
	for i := range ws {
		w := &ws[i]
		if w.number != e.Number {
			continue
		}
		if e.Kind == EventAck {
			w.acked = m.now
			if e.FUA || m.ackedOnly {
				w.stable = m.now
				m.prune(b)
			} else {
				m.dirty = append(m.dirty, b)
			}
		}
		return nil
	}
	return fmt.Errorf("history: block %d: write %d acknowledged, never issued", b, e.Number)
}

// flushed makes stable what was acknowledged before a flush that was issued at the time at.
func (m *model) flushed(at uint64) {
	keep := m.dirty[:0]
	for _, b := range m.dirty {
		rest := false
		ws := m.blocks[b]
		for i := range ws {
			w := &ws[i]
			switch {
			case w.acked == 0 || w.stable != 0:
			case w.acked < at:
				w.stable = m.now
			default:
				rest = true
			}
		}
		m.prune(b)
		if rest {
			keep = append(keep, b)
		}
	}
	m.dirty = keep
}

// prune drops what the newest stable write of a block has replaced.
func (m *model) prune(b uint64) {
	ws := m.blocks[b]
	for i := len(ws) - 1; i > 0; i-- {
		if ws[i].stable != 0 {
			m.blocks[b] = append(ws[:0], ws[i:]...)
			return
		}
	}
}

// Level is what must have survived.
type Level string

// Levels of a check.
const (
	// Acked: every acknowledged write; what a server's death, not a power cut, must leave.
	Acked Level = "acked"
	// Flushed: every flushed write, and of the others a prefix: no write without those that were acknowledged before
	// it was issued.
	Flushed Level = "flushed"
)

// Violation is the first thing that should not be.
type Violation struct {
	Kind   string `json:"kind"`  // lost, torn, corrupt, misplaced, unknown, order
	Block  uint64 `json:"block"` // number, of 4,096 bytes
	Want   uint64 `json:"want"`  // the oldest write that would have been right; 0: any or none
	Got    uint64 `json:"got"`   // write found; 0: content from before the run
	Detail string `json:"detail"`
}

func (v *Violation) Error() string {
	return fmt.Sprintf("block %d (byte %d): %s: %s", v.Block, v.Block*BlockSize, v.Kind, v.Detail)
}

// survivors collects what the prefix rule needs.
type survivors struct {
	latestIssue  uint64 // of a write that survived
	latest       Violation
	earliestLost uint64 // time of acknowledgement of a lost write
	lost         Violation
}

// judge compares what block b contains with its history.
func (m *model) judge(b uint64, c Content, level Level, sv *survivors) *Violation {
	ws := m.blocks[b]
	want := uint64(0)
	for _, w := range ws {
		if level == Acked && w.acked != 0 || w.stable != 0 {
			want = w.number
		}
	}
	v := &Violation{Kind: c.Kind, Block: b, Want: want, Got: c.Write, Detail: c.Detail}
	got := -1
	switch c.Kind {
	case "foreign":
		if want != 0 {
			v.Kind = "lost"
			v.Detail = fmt.Sprintf("write %d was %s, the block has what was there before the run", want, level)
			return v
		}
	case "stamped":
		if c.Write < want {
			v.Kind = "lost"
			v.Detail = fmt.Sprintf("write %d was %s, the block has the older write %d", want, level, c.Write)
			return v
		}
		for i, w := range ws {
			if w.number == c.Write {
				got = i
			}
		}
		if got < 0 {
			v.Kind = "unknown"
			v.Detail = fmt.Sprintf("the block has write %d, which the log does not know", c.Write)
			return v
		}
	default:
		return v
	}
	if got >= 0 && ws[got].issued > sv.latestIssue {
		sv.latestIssue = ws[got].issued
		sv.latest = Violation{Block: b, Got: c.Write}
	}
	for _, w := range ws[got+1:] {
		if w.acked != 0 && (sv.earliestLost == 0 || w.acked < sv.earliestLost) {
			sv.earliestLost = w.acked
			sv.lost = Violation{Block: b, Want: w.number, Got: c.Write}
		}
	}
	return nil
}

// order applies the prefix rule.
func (sv *survivors) order() *Violation {
	if sv.earliestLost == 0 || sv.latestIssue < sv.earliestLost {
		return nil
	}
	v := sv.lost
	v.Kind = "order"
	v.Detail = fmt.Sprintf("write %d is gone, though write %d of block %d, issued after its acknowledgement, is there",
		v.Want, sv.latest.Got, sv.latest.Block)
	return &v
}
