package sim

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"dozo/internal/access"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// chain is what the nodes have told each other of the one history: every message that carries a commit point passes
// here. Two points of one number and different hashes are two histories, which may only be if a takeover between them
// was not proven.
type chain struct {
	w  *World
	mu sync.Mutex

	at     map[ident.Seq]ident.Position
	starts map[uint64]wire.EpochStart // by epoch, as first appended
	splits []split
	dead   []ident.Position // that are in at no more
	begun  []Epoch
	last   ident.Seq // of the newest point

	promised map[ident.SiteID]ident.Position // what a site was last said to have, when another one was lost for good
}

// split is a pair of commit points that exclude each other.
type split struct {
	a, b ident.Position
	who  string
}

func (c *chain) init(w *World) {
	c.w, c.at, c.starts = w, map[ident.Seq]ident.Position{}, map[uint64]wire.EpochStart{}
}

// saw takes a commit point.
func (c *chain) saw(_ ident.JournalID, p ident.Position, who string) {
	if p.Seq == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = p.Seq
	old, ok := c.at[p.Seq]
	if ok && old.Hash != p.Hash {
		c.splits = append(c.splits, split{old, p, who})
		if p.Epoch.Less(old.Epoch) {
			c.dead = append(c.dead, p)
			return
		}
		c.dead = append(c.dead, old)
	}
	c.at[p.Seq] = p
}

// began looks for the epoch-start in an append by the owner itself.
func (c *chain) began(n *Node, m *wire.Append) {
	if m.Segment.IsCheckpoint() || m.Epoch != m.Segment.Epoch {
		return
	}
	c.mu.Lock()
	began, known := c.starts[m.Epoch.Number]
	c.mu.Unlock()
	if known {
		if !began.Proven && !c.w.claimKnown(m.Epoch.Number) {
			c.letOn(m)
		}
		return
	}
	eachAppended(m, func(r *journal.Record, body []byte) {
		if r.Kind != journal.KindEpochStart || r.Epoch != m.Epoch {
			return
		}
		s, err := journal.DecodeEpochStart(r, body)
		if err != nil {
			c.w.fail("epoch-start of epoch %s: %v", m.Epoch, err)
			return
		}
		c.start(n, m.Epoch, s)
	})
}

// letOn looks for the record by which an owner lets the ports go on that its epoch's start bars, since nothing acknowledged is missing: it may die before
// anybody has looked at what it says of its takeover, and the next one goes by the record.
func (c *chain) letOn(m *wire.Append) {
	eachAppended(m, func(r *journal.Record, body []byte) {
		if r.Kind != journal.KindAttach || r.Epoch != m.Epoch {
			return
		}
		changes, err := journal.DecodePortChanges(body)
		if err == nil && len(changes) > 0 && !slices.ContainsFunc(changes, func(x journal.PortChange) bool { return x.Op != journal.PortAccept }) {
			c.w.letOn(m.Epoch.Number)
		}
	})
}

// eachAppended goes through the records of an append.
func eachAppended(m *wire.Append, f func(r *journal.Record, body []byte)) {
	data := bytes.Join(m.Data, nil)
	if m.Offset == 0 && len(data) >= journal.SegmentHeaderSize {
		data = data[journal.SegmentHeaderSize:]
	}
	for len(data) > 0 {
		size, err := journal.SizeAt(data)
		var r journal.Record
		if err != nil || size > len(data) || r.Decode(data) != nil {
			return
		}
		f(&r, data[journal.BodyOffset(r.StoredLen):][:r.StoredLen])
		data = data[size:]
	}
}

func (c *chain) start(n *Node, e ident.Epoch, s wire.EpochStart) {
	c.mu.Lock()
	_, known := c.starts[e.Number]
	if !known {
		c.starts[e.Number] = s
		c.begun = append(c.begun, Epoch{e.Number, c.w.now(), n.name, s.Proven})
	}
	c.mu.Unlock()
	if known {
		return
	}
	c.w.tracef("epoch %s begins at node %s after %s, proven=%v", e, n.name, s.Before, s.Proven)
	c.w.trace.add(c.w.now(), "epoch", e.Number, uint64(s.Before.Seq), sample(s.Before.Hash[:]))
	c.w.stats.add("epochs begun", 1)
	c.w.cue(cueBegun, n, e.Number)
	c.kept(n, e, s)
	c.w.struck(n, e.Number)
	c.w.struckForced(n, e.Number)
	c.noLess(e, s)
	if e.Number > 1 && !s.Proven {
		if !c.w.lostBytes.Load() && !c.w.forced() {
			c.w.fail("epoch %s begins after %s and is not proven, though no disk has lost anything and nobody was given up (R4)", e, s.Before)
		}
		c.w.stats.add("epochs begun, not proven (R4)", 1)
		c.w.hist.wentBack(e.Number, c.w.forced())
		for _, d := range [...]time.Duration{5 * time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond} {
			c.w.after(d, func() { c.w.lookAtClaim(e.Number) })
		}
	}
}

// promise notes what a site is said to have. The first epoch that begins there goes on from it, or from what followed.
func (c *chain) promise(site ident.SiteID, p ident.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.promised == nil {
		c.promised = map[ident.SiteID]ident.Position{}
	}
	c.promised[site] = p
	c.w.tracef("site %d is said to have %s", site, p)
}

// kept compares the beginning of an epoch with that.
func (c *chain) kept(n *Node, e ident.Epoch, s wire.EpochStart) {
	c.mu.Lock()
	p, ok := c.promised[n.site]
	delete(c.promised, n.site)
	c.mu.Unlock()
	if ok && s.Before.Seq < p.Seq {
		c.w.fail("epoch %s begins at site %d after %s, and the site was said to have %s (2.3)", e, n.site, s.Before, p)
	}
}

// unproven reports that an epoch above a and up to b began without proof, or one above b and up to a.
func (c *chain) unprovenBetween(a, b ident.Epoch) bool {
	low, high := min(a.Number, b.Number), max(a.Number, b.Number)
	for e, s := range c.starts {
		if low < e && e <= high && !s.Proven {
			return true
		}
	}
	return false
}

// beyond lists the commit points that a takeover has left behind.
func (c *chain) beyond(cut wire.Cut) (list []ident.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.at {
		if p.Epoch.Less(cut.At.Epoch) && p.Seq > cut.Before.Seq {
			list = append(list, p)
		}
	}
	for _, p := range c.dead {
		if p.Epoch.Less(cut.At.Epoch) && p.Seq > cut.Before.Seq {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b ident.Position) int { return cmp.Compare(a.Seq, b.Seq) })
	return list
}

// leftBehind is how many committed records an epoch has left behind.
func (c *chain) leftBehind(epoch uint64) ident.Seq {
	c.mu.Lock()
	s, ok := c.starts[epoch]
	c.mu.Unlock()
	if !ok {
		return 0
	}
	list := c.beyond(wire.Cut{At: s.At, Before: s.Before})
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1].Seq - s.Before.Seq
}

// owner is the node that began an epoch.
func (c *chain) owner(epoch uint64) ident.NodeName {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.begun {
		if e.Number == epoch {
			return e.Node
		}
	}
	return ""
}

// isUnproven reports that an epoch's start says so.
func (c *chain) isUnproven(epoch uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, known := c.starts[epoch]
	return known && epoch > 1 && !s.Proven
}

// newestAt is when the newest epoch began.
func (c *chain) newestAt() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.begun) == 0 {
		return 0
	}
	return c.begun[len(c.begun)-1].At
}

// newestSeq is the number of the commit point that was told of last.
func (c *chain) newestSeq() ident.Seq {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// leftOut reports that what was committed when that number was may be missing in the history of an epoch.
func (c *chain) leftOut(seq ident.Seq, epoch uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, known := c.starts[epoch]
	return known && s.Before.Seq < seq
}

// lostBefore reports that the history which an epoch goes on from may lack something because an earlier one, or that one itself,
// was not proven: those that it is after, not those whose start nobody heard of.
func (c *chain) lostBefore(epoch, by uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := epoch; e >= by; {
		s, known := c.starts[e]
		if e == by {
			return true
		}
		if !known || s.Before.Epoch.Number >= e {
			return known
		}
		e = s.Before.Epoch.Number
	}
	return false
}

// check is §2.2: one history.
func (c *chain) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.splits {
		if !c.unprovenBetween(s.a.Epoch, s.b.Epoch) {
			c.w.fail("two histories (2.2): %s and %s were both committed, the latter in an %s", s.a, s.b, s.who)
			return
		}
	}
}

// verify compares what the stores hold when everything has settled: every segment of the owner's table is at every
// holder, byte for byte the same; every site has all of them (2.3); what else a store has is accounted for (2.5).
func (w *World) verify(o *access.Owner) (wrong []string) {
	ctx := context.Background()
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	table := map[ident.SegmentID]access.SegmentView{}
	for _, s := range o.Segments() {
		table[s.ID] = s
	}
	have := map[ident.SegmentID]map[*Node][]byte{}
	for _, n := range w.nodes {
		p := n.running()
		if p == nil {
			continue
		}
		r, err := p.store.Inventory(ctx, &wire.Inventory{Journal: w.vol.ID})
		if err != nil {
			bad("inventory of %s: %v", n.name, err)
			continue
		}
		for _, x := range r.Replicas {
			if x.State == wire.ReplicaFork {
				w.stats.add("forks kept (R14)", 1)
				continue
			}
			s, known := table[x.Segment]
			if !known {
				w.stats.add("replicas of no segment, not yet taken away", 1)
				if v := o.View(); v != nil && leftBehind(v.Cuts, &x) && (x.State == wire.ReplicaOpen || x.State == wire.ReplicaShort) && x.End > 0 && !x.Segment.IsCheckpoint() && x.Segment.Epoch.Less(o.Epoch()) {
					bad("%s has records up to %s in an open replica of segment %s, which a takeover has left behind, and it is no fork (R14)", n.name, x.Last, x.Segment)
				}
				continue
			}
			i := slices.IndexFunc(s.Holders, func(h access.HolderView) bool { return h.Store == n.store })
			if i < 0 || s.Holders[i].Bad || s.Holders[i].Going || x.State != wire.ReplicaSealed {
				continue
			}
			raw, err := readAll(ctx, p, x)
			if len(n.rot) > 0 {
				raw = nil // what has rotted and was not read since looks good
			}
			if err != nil {
				bad("replica of %s at %s: %v", x.Segment, n.name, err)
				continue
			}
			if have[x.Segment] == nil {
				have[x.Segment] = map[*Node][]byte{}
			}
			have[x.Segment][n] = raw
		}
	}
	for _, s := range o.Segments() {
		if _, there := table[s.ID]; there {
			table[s.ID] = s // a newer look
		}
	}
	state, _, _ := w.admin.Journal(w.vol.ID)
	for id, s := range table {
		// A retired one stays in the table until its replicas have gone.
		if !s.Sealed || !slices.ContainsFunc(s.Holders, func(h access.HolderView) bool { return h.Stable && !h.Going && !h.Bad }) {
			continue
		}
		var first []byte
		var at *Node
		sites := map[ident.SiteID]bool{}
		for _, n := range w.nodes {
			raw, ok := have[id][n]
			if !ok {
				continue
			}
			sites[n.site] = true
			if raw == nil {
				continue
			}
			if first == nil {
				first, at = raw, n
			} else if !bytes.Equal(first, raw) {
				bad("the replicas of segment %s at %s and %s differ", id, at.name, n.name)
			}
		}
		if first != nil && !id.IsCheckpoint() {
			w.chain.compare(id, first)
		}
		for _, site := range state.Sites {
			if !sites[site] && !id.IsCheckpoint() { // checkpoints are shipped beside the history
				bad("site %d has no replica of segment %s (%d to %d) although it has caught up", site, id, s.First, s.Last)
			}
		}
	}
	return wrong
}

func readAll(ctx context.Context, p *Proc, x wire.Replica) ([]byte, error) {
	var all []byte
	for off := uint32(0); off < x.End; {
		r, err := p.store.ReadRaw(ctx, &wire.ReadRaw{Segment: x.Segment, Offset: off, Len: min(x.End-off, 1<<20)})
		if err != nil {
			return nil, err
		}
		all = append(all, r.Data...)
		off += uint32(len(r.Data))
		n := len(r.Data)
		if r.Release != nil {
			r.Release()
		}
		if n == 0 {
			return nil, fmt.Errorf("ends at %d of %d", off, x.End)
		}
	}
	return all, nil
}

// eachRecord goes through a replica's records, as far as they are whole.
func eachRecord(id ident.SegmentID, raw []byte, f func(at ident.Position, r *journal.Record, body []byte)) {
	h, err := journal.DecodeSegmentHeader(raw)
	if err != nil {
		return
	}
	run := journal.Run{Segment: id.Original(), At: h.Before}
	for data := raw[journal.SegmentHeaderSize:]; len(data) > 0; {
		n, err := run.Next(data)
		if err != nil {
			return
		}
		f(run.At, &run.Record, data[journal.BodyOffset(run.Record.StoredLen):][:run.Record.StoredLen])
		data = data[n:]
	}
}

// compare has a segment's records be part of the one history.
func (c *chain) compare(id ident.SegmentID, raw []byte) {
	h, err := journal.DecodeSegmentHeader(raw)
	if err != nil {
		c.w.fail("header of segment %s: %v", id, err)
		return
	}
	run := journal.Run{Segment: id, At: h.Before, Offset: journal.SegmentHeaderSize, Bodies: true}
	data := raw[journal.SegmentHeaderSize:]
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(data) > 0 {
		n, err := run.Next(data)
		if err != nil {
			c.w.fail("segment %s: %v", id, err)
			return
		}
		data = data[n:]
		if p, ok := c.at[run.At.Seq]; ok && p.Hash != run.At.Hash && !c.unprovenBetween(p.Epoch, id.Epoch) {
			c.w.fail("segment %s has %s, but %s was committed", id, run.At, p)
			return
		}
	}
}

// leftBehind reports that an epoch-start which was not proven has left what a replica has behind.
func leftBehind(cuts []wire.Cut, r *wire.Replica) bool {
	_, ok := access.LeftBy(cuts, r)
	return ok
}
