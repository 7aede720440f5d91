package sim

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/settle"
)

// The control store goes back to a backup (R3, R11): what it says of the volume's owner and ensembles is old then, and does not
// count until every store has answered, or the owner has written its key back.

// controlRestored: since the backup the volume has moved to other stores, at another site or at its own. When the control store
// is restored its owner, or all of its site, can not tell the control store so, and may not be heard by those whom the backup
// names, or dies.
func controlRestored(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies, p.Refer = []int{3 + rng.IntN(3), 2 + rng.IntN(2)}, 2, false
	p.Limits.FollowAfter = -1 // or the volume goes where its clients are
	p.Limits.CheckpointInterval, p.Limits.SegmentBytes = between(rng, 2*time.Second, 8*time.Second), 32<<10
	p.add(Fault{Kind: FaultRestored, At: between(rng, 5*time.Second, 9*time.Second), For: between(rng, 3*time.Second, 12*time.Second), Owner: true, Size: rng.IntN(1 << 20)})
}

// restoreWait is how long the volume may take to move to other stores.
const restoreWait = 25 * time.Second

func (w *World) restoreControl(n *Node, f *Fault) {
	w.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), restoreWait)
		defer cancel()
		backup, err := w.admin.Backup(ctx)
		if err != nil {
			w.tracef("backup: %v", err)
			return
		}
		x := mix(w.plan.Seed, 0x7265)
		if x>>50%3 == 0 { // not when the volume has moved, but while it does
			ctx, cancel = context.WithTimeout(ctx, time.Duration(x>>30%4000)*time.Millisecond)
			defer cancel()
		}
		was, _, _ := w.admin.Journal(w.vol.ID)
		listed := was.Ensembles[len(was.Ensembles)-1].Stores
		here := len(slices.DeleteFunc(slices.Clone(w.nodes), func(x *Node) bool { return x.site != n.site }))
		var emptied []*Node
		if f.Size%2 == 0 && here > 4 {
			emptied = w.leaveListed(ctx, n, listed)
		} else {
			w.moveAway(ctx, n)
		}
		now, _, _ := w.admin.Journal(w.vol.ID)
		if len(now.Ensembles) == 1 && common(now.Ensembles[0].Stores, listed) < 2 {
			w.stats.add("control stores restored since whose backup the volume has moved to other stores", 1)
		}
		w.after(time.Duration(f.Size>>1%300)*time.Millisecond, func() { w.restoredNow(backup, listed, f, x) })
		time.Sleep(f.For)
		for _, e := range emptied {
			w.storeLeaving(e, false)
		}
		w.waitSettled()
	})
}

func common(a, b []ident.StoreID) (n int) {
	for _, x := range a {
		if slices.Contains(b, x) {
			n++
		}
	}
	return n
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// moveAway hands the volume over to another site, and waits until only ensembles of that one are listed.
func (w *World) moveAway(ctx context.Context, n *Node) {
	var to ident.SiteID
	for _, x := range w.nodes {
		if x.site != n.site {
			to = x.site
		}
	}
	for ctx.Err() == nil && !w.stopped() {
		if o := w.owner(); o != nil && o.site != to {
			w.move(o, "", to)
		}
		rest(ctx, 3*time.Second)
		if s, _, ok := w.admin.Journal(w.vol.ID); ok && len(s.Ensembles) == 1 && w.nodeOf(s.Owner).site == to {
			return
		}
	}
}

// leaveListed has the members of an ensemble emptied that are not the owner's, one after the other, until there is one that shares no two members
// with it.
func (w *World) leaveListed(ctx context.Context, n *Node, listed []ident.StoreID) (emptied []*Node) {
	for _, id := range listed {
		x := w.nodeOfStore(id)
		if x == n || x.site != n.site || len(emptied) == 2 {
			continue
		}
		w.storeLeaving(x, true)
		emptied = append(emptied, x)
		for ctx.Err() == nil && !w.stopped() {
			rest(ctx, 100*time.Millisecond)
			if s, _, ok := w.admin.Journal(w.vol.ID); ok && len(s.Ensembles) == 1 && !slices.Contains(s.Ensembles[0].Stores, id) {
				break
			}
		}
	}
	return emptied
}

// restoredNow puts the backup in the control store's place. Some can not say what they know, for a while.
func (w *World) restoredNow(backup *control.Snapshot, listed []ident.StoreID, f *Fault, x uint64) {
	if w.stopped() || w.now() >= w.plan.Heal {
		return
	}
	anew, err := backup.Anew(uint32(x)|1, time.Now())
	if err != nil {
		w.fail("restore: %v", err)
		return
	}
	w.stats.add("control stores restored", 1)
	w.trouble()
	o := w.owner()
	w.tracef("the control store is restored from a backup")
	end := min(w.now()+f.For, w.plan.Heal-100*time.Millisecond)
	undo := func(g func()) { w.at(end, func() { g(); w.trouble() }) }
	w.ctl.Renew(anew)
	if o == nil {
		return
	}
	cutOff := func(n *Node) {
		n.cutOff.Add(1)
		undo(func() { n.cutOff.Add(-1) })
	}
	// Who can not speak to the control store: nobody, the owner, or all that its history is at.
	var apart []*Node
	for _, n := range w.nodes {
		if n == o || !slices.Contains(listed, n.store) {
			apart = append(apart, n)
		}
	}
	late := time.Duration(x>>20%1500) * time.Millisecond // some say something first
	if x>>8&3 > 0 {
		late = 0
	}
	switch x >> 10 % 4 {
	case 0:
	case 1:
		w.after(late, func() { cutOff(o) })
	default:
		for _, n := range apart {
			w.after(late, func() { cutOff(n) })
		}
	}
	if x>>12%3 > 0 { // nor with those who are named
		var cut [][2]*Node
		for _, a := range w.nodes {
			for _, b := range apart {
				if !slices.Contains(apart, a) {
					cut = append(cut, [2]*Node{a, b}, [2]*Node{b, a})
				}
			}
		}
		w.cut(cut, undo)
	}
	// One node dies, the owner's as a rule, and is back when it is over; or it does not come back, and the operator says so.
	dies := o
	if x>>14%4 == 0 {
		dies = apart[int(x>>16%uint64(len(apart)))]
	}
	w.after(time.Duration(x>>40%2500)*time.Millisecond, func() {
		switch {
		case w.now() >= end || x>>18&3 == 0:
		case x>>18&3 == 1:
			g := *f
			g.Stays = true
			w.leave(&g, dies)
			w.after(2*time.Second, func() { w.wg.Go(func() { w.declareLost(dies.store) }) })
		case x>>60&1 == 0:
			dies.kill()
			undo(dies.restart)
		default:
			dies.powerCut(percentOf(f))
			undo(dies.restart)
		}
	})
}

// declareLost is `dozo control lost`: the settling waits for a store no more.
func (w *World) declareLost(id ident.StoreID) {
	for ; !w.stopped(); time.Sleep(time.Second) {
		if r, ok := w.admin.Restoration(); ok && !r.Pending() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := w.admin.DeclareLost(ctx, []ident.StoreID{id})
		cancel()
		if w.tracef("operator: store of %s is declared lost: %v", w.nodeOfStore(id).name, err); err == nil {
			w.stats.add("stores declared lost to a restored control store", 1)
			return
		}
		if errors.Is(err, control.ErrInUse) {
			return // it has answered
		}
	}
}

// waitSettled counts how it has ended.
func (w *World) waitSettled() {
	for !w.isOver() {
		if r, ok := w.admin.Restoration(); ok && !r.Pending() {
			w.tracef("the restored control store is settled: %s", r.Report)
			s, _, _ := w.admin.Journal(w.vol.ID)
			if e, ok := s.Newest(); ok && e.Wide {
				w.stats.add("control stores settled with what stores have said", 1)
			} else {
				w.stats.add("control stores settled with what an owner has written back", 1)
			}
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// isRestored reports that the plan has the control store restored.
func (p *Plan) isRestored() bool {
	return slices.ContainsFunc(p.Faults, func(f Fault) bool { return f.Kind == FaultRestored })
}

const settleEvery = time.Second

// settle is what a node does for a control store that was restored (node.settleControl), until ctx ends.
func (p *Proc) settle(ctx context.Context) {
	h := settle.Helper{Control: p.ctl, Node: p.node.name, Stores: map[ident.StoreID]*core.Store{p.store.ID(): p.store}, Log: p.w.log.With("node", p.node.name)}
	changed, cancel := p.ctl.Subscribe()
	defer cancel()
	for ctx.Err() == nil {
		wait := time.Minute
		if r, ok := p.ctl.Restoration(); ok && r.Pending() {
			wait = settleEvery
			if err := h.Settle(ctx, r); err != nil {
				p.w.tracef("%s: the restored control store is not settled yet: %v", p.node.name, err)
			}
		}
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-changed:
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		t.Stop()
	}
}
