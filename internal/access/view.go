package access

import (
	"fmt"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// View is how a journal is, as its owner last saw it (about once a second). It is never modified.
type View struct {
	wire.JournalStatus
	At       ident.Position
	Proven   bool
	Members  []journal.Member
	MapBytes int64
	Repairs  int
	Blocks   wire.JournalBlocks
	Strays   int // replicas that belong to no segment, and their bytes
	StrayLen uint64
	Ships    []string // states, in the order of Sites
}

// SegmentView is one segment for `dozo volume show --segments`.
type SegmentView struct {
	ID      ident.SegmentID
	First   ident.Seq
	Last    ident.Seq
	Bytes   uint32
	Sealed  bool
	Holders []HolderView
}

// HolderView is one replica of a SegmentView.
type HolderView struct {
	Store  ident.StoreID
	Stable bool
	Going  bool
	Bad    bool
}

// View gives the last view; nil before the owner serves.
func (o *Owner) View() *View { return o.view.Load() }

// Segments lists the segments and where their replicas are.
func (o *Owner) Segments() (list []SegmentView) {
	o.ask(func() {
		add := func(s *segment) {
			v := SegmentView{ID: s.id, First: s.before.Seq + 1, Last: s.last.Seq, Bytes: s.end, Sealed: s.sealed}
			for _, h := range s.holders {
				v.Holders = append(v.Holders, HolderView{h.store, h.stable, h.going, h.bad})
			}
			list = append(list, v)
		}
		for _, s := range o.order {
			add(s)
		}
		for id, s := range o.segs {
			if id.IsCheckpoint() {
				add(s)
			}
		}
	})
	return list
}

// tailStamp remembers when the commit point was where, for the age of what a site lacks.
type tailStamp struct {
	seq  ident.Seq
	tick uint64
}

// tailsMax bounds the memory of commit times; older ones are thinned out.
const tailsMax = 4096

func (o *Owner) noteTail(seq ident.Seq, now uint64) {
	if n := len(o.tails); n == 0 || now-o.tails[n-1].tick >= 50 {
		if n >= tailsMax {
			for i := range n / 2 {
				o.tails[i] = o.tails[2*i]
			}
			o.tails = o.tails[:n/2]
		}
		o.tails = append(o.tails, tailStamp{seq, now})
	}
	o.wakeShips()
}

// publish makes a new View.
func (o *Owner) publish() {
	v := &View{At: o.w.At(), Proven: o.proven, Members: o.members, MapBytes: o.m.Memory(), Repairs: o.repair.running}
	v.Journal, v.Owner, v.Epoch = o.journalID, o.env.Node, o.epoch
	v.Strays = len(o.strays.found)
	for _, r := range o.strays.found {
		v.StrayLen += uint64(r.End)
	}
	v.Commit, v.Stable, v.Written = o.w.Commit(), o.w.Stable(), o.written
	v.Checkpoint = o.w.Point().At
	v.Mapped = o.m.Mapped()
	v.Segments = uint32(len(o.order))
	v.Blocks = o.repair.JournalBlocks
	v.Degraded, v.DegradedBytes = v.Blocks.Degraded, v.Blocks.DegradedBytes
	v.Unproven, v.Lost = !o.proven, o.loss.records
	v.LostBytes, v.LostNanos = o.loss.bytes, uint64(o.loss.span)
	v.Attached, v.Barred, v.Ports = uint32(len(o.ports.order)), uint32(o.ports.barred), o.ports.barredPorts()
	for _, c := range o.forks.cuts {
		v.Cuts = append(v.Cuts, wire.Cut{At: c.At, Before: c.Before, Forgotten: slices.Contains(o.forks.forgotten, c.At.Epoch)})
	}
	for _, f := range o.forks.at {
		v.Forks += uint32(f.segments)
		v.ForkBytes += f.bytes
	}
	waits, _ := o.acksWait(o.tick())
	v.Kept = o.ack.kept
	switch {
	case o.stopErr != nil:
		v.State = "stopped: " + o.stopErr.Error()
	case !o.w.Serving():
		v.State = "recovering"
	case o.w.Blocked():
		v.State = "waiting for a second core server"
	case waits != "": // what hinders writes comes before what endangers copies
		v.State = waits
	case o.w.Degraded():
		v.State = "degraded: one core server of the site, the second copy at another"
	case o.repair.awaited > 0:
		v.State = fmt.Sprintf("degraded: %d segments are only at stores that can not be reached", o.repair.awaited)
	default:
		v.State = "serving"
		for _, a := range o.env.Health.Avoided() {
			if slices.ContainsFunc(o.members, func(m journal.Member) bool { return m.Store == a.Store }) {
				v.State = fmt.Sprintf("degraded: store %s is avoided after %d failures, the last: %s", a.Store, a.Failures, a.Why)
			}
		}
	}
	now := o.tick()
	oldest := v.Commit.Seq
	for _, s := range o.ships {
		s.mu.Lock()
		x := wire.SiteStatus{Site: s.site, Watermark: s.mu.mark, StableWatermark: s.mu.stable}
		if !s.mu.confirmed.IsZero() {
			x.Confirmed = uint64(s.mu.confirmed.UnixNano())
		}
		state := s.mu.state
		s.mu.Unlock()
		x.LagBytes = o.lagOf(s)
		if x.Watermark.Seq < v.Commit.Seq {
			for _, t := range o.tails {
				if t.seq > x.Watermark.Seq {
					x.LagNanos = (now - t.tick) * uint64(time.Millisecond)
					break
				}
			}
		}
		oldest = min(oldest, x.Watermark.Seq)
		v.Sites = append(v.Sites, x)
		v.Ships = append(v.Ships, state)
	}
	for len(o.tails) > 1 && o.tails[1].seq <= oldest {
		o.tails = o.tails[1:]
	}
	o.view.Store(v)
}
