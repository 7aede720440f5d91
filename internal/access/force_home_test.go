package access

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// listedStore is a store on which no checkpoints can be made, nor copies for as long as that is said: ensembles stay listed.
type listedStore struct{ shut }

func (s *listedStore) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	if m.Segment.IsCheckpoint() {
		return wire.OpenReply{}, wire.Errorf(wire.CodeBusy, "later")
	}
	return s.shut.OpenSegment(ctx, m)
}

// A site is given up, comes back, and has the volume home again before the ensemble that was given up is off the list. Its stores are
// members of a new ensemble then, and a takeover needs all but one of them, as ever: that they had been given up is over.
func TestAStoreThatIsBackIsNeededAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 3)
	c.limit.UncertainWait = 100 * time.Millisecond
	c.limit.RepairGrace = time.Hour
	var opens, pushes atomic.Bool
	c.wrap = func(s journal.Store) journal.Store { return &listedStore{shut{s, &opens, &pushes}} }
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 20)
	c.inStep(t, o)
	c.killSite(1)
	o.Close()

	c.at(2)
	c.force(t, v, 1)
	pushes.Store(true)
	o = c.own(v)
	n.writes(t, o, 20)
	c.startSite(1)
	o.Close()

	c.at(1)
	o = c.own(v)
	n.writes(t, o, 20)
	state := c.listed(v)
	if state.Forced == nil || len(state.Ensembles) < 2 {
		t.Fatalf("nothing is listed that was given up: %+v", state)
	}
	pushes.Store(false)
	newest, _ := state.Newest()
	if state.GivenUp(newest) {
		t.Errorf("given up at %s, before it was made: %+v", state.Forced.Epoch, newest)
	}
	var back []*seat // the members of the newest ensemble that had been given up, but for one
	for _, id := range newest.Stores {
		if s := c.seat(id); s.site == 1 && len(back) < 2 {
			back = append(back, s)
		}
	}
	if len(back) < 2 {
		t.Fatalf("the newest ensemble: %v", newest.Stores)
	}
	for _, s := range back {
		c.kill(s)
	}
	o.Close()
	for _, s := range c.seats[:3] {
		if s.live.Load() != nil {
			c.local = s.id
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	next, err := TakeOver(ctx, c.env(), v)
	cancel()
	if err == nil {
		next.Close()
		t.Fatalf("without two of %d members it is taken over: %s", len(newest.Stores), next.recovered.Describe())
	}
	if !strings.Contains(err.Error(), "fence") { // it has got further
		t.Errorf("without two of %d members: %v", len(newest.Stores), err)
	}
	c.start(back[0])
	o = c.own(v)
	n.check(t, o, n.acked, "with one of them back")
	o.Close()
}

// What was given up is a word about the ensembles that were listed then.
func TestWhatWasGivenUp(t *testing.T) {
	a, b, x := ident.StoreID{1}, ident.StoreID{2}, ident.StoreID{3}
	at := func(n uint64) ident.Epoch { return ident.Epoch{Number: n} }
	state := control.JournalState{Epoch: at(6), Forced: &control.Forced{Epoch: at(3), Lost: []ident.StoreID{a, b}},
		Ensembles: []control.Ensemble{{Epoch: at(1), Number: 1, Stores: []ident.StoreID{a, b, x}}, {Epoch: at(5), Number: 2, Stores: []ident.StoreID{a, b}}}}
	if e := state.Ensembles; !state.GivenUp(e[0]) || state.GivenUp(e[1]) || !state.Lost(e[0], a) || state.Lost(e[0], x) || state.Lost(e[1], a) {
		t.Errorf("given up: %v and %v", state.GivenUp(e[0]), state.GivenUp(e[1]))
	}
}

// A volume whose site was given up is handed over before the ensemble from before is off the list: the taker waits for nobody who
// was given up, though the former owner's message does not say so.
func TestAHandOverAfterForceWaitsForNobodyWhoWasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second)
		v := n.volume(1<<20, 2, control.Replicated)
		was := n.served(t, v)
		if err := writeAt(was.srv.Load().Owners()[0], 0, make([]byte, 4096), true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		var lost []ident.StoreID
		for _, x := range n.list {
			if x.home.site == was.home.site {
				lost = append(lost, x.home.id)
				x.stop()
				n.kill(x.home)
			}
		}
		to := n.other(was, 3-was.home.site)
		_, rev, err := n.ctl.JournalNow(t.Context(), v.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := n.ctl.ForceJournal(t.Context(), v.ID, rev, to.name, lost, "", 0, false); err != nil {
			t.Fatal(err)
		}
		serves := func(x *node) bool {
			o := x.volumeAt(v).Owner()
			return o != nil && isClosed(o.Serving())
		}
		for begun := time.Now(); !serves(to); time.Sleep(time.Millisecond) {
			if time.Since(begun) > time.Minute {
				t.Fatal("not taken over by force")
			}
		}
		if state := n.listed(v); state.Forced == nil {
			t.Fatalf("nothing is listed that was given up: %+v", state)
		}
		y := n.other(to, to.home.site)
		if _, err := to.moveTo(v, y.name, 0); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		if !serves(y) {
			t.Error("the taker does not serve")
		}
		n.stopAll()
	})
}
