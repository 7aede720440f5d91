package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// moveTo hands a volume over from x and waits for the end.
func (x *node) moveTo(v control.VolumeSpec, to ident.NodeName, site ident.SiteID) (wire.HandOverReply, error) {
	ctx := context.Background()
	s := x.srv.Load()
	r, err := s.HandOver(ctx, x.name, &wire.HandOver{Journal: v.ID, Step: wire.HandBegin, Node: to, Site: site})
	for err == nil && !r.Done {
		time.Sleep(5 * time.Millisecond)
		r, err = s.HandOver(ctx, x.name, &wire.HandOver{Journal: v.ID, Step: wire.HandStatus})
	}
	if err == nil && r.Failed != 0 {
		err = wire.Errorf(r.Failed, "%s", r.Detail)
	}
	return r, err
}

// served starts all access roles and a volume, and gives the node that owns it.
func (n *nodes) served(t *testing.T, v control.VolumeSpec) *node {
	t.Helper()
	for _, x := range n.list {
		x.serve()
	}
	// The first one may have taken it before it saw the others.
	time.Sleep(time.Second)
	eventually(t, "an owner", func() bool { return n.owner(v.ID, nil) != nil })
	return n.owner(v.ID, nil)
}

func (n *nodes) stopAll() {
	for _, x := range n.list {
		x.stop()
	}
}

func (n *nodes) other(x *node, site ident.SiteID) *node {
	for _, y := range n.list {
		if y != x && y.home.site == site {
			return y
		}
	}
	return nil
}

// volumeAt is a volume as a node sees it.
func (x *node) volumeAt(v control.VolumeSpec) *Volume {
	vol, ok := x.srv.Load().Volume(v.ID)
	if !ok {
		x.n.t.Fatalf("volume %s is not known at %s", v.Name, x.name)
	}
	return vol
}

// through does commands by way of a node.
func through(x *node, v control.VolumeSpec, kind wire.ForwardOp, off int64, data []byte, n int64) ([]byte, error) {
	op := NewOp()
	op.Kind, op.Offset, op.Length = kind, off, n
	if kind == wire.OpWrite {
		op.Length = int64(len(data))
		op.Buf = NewWriteBuf(off, len(data))
		copy(op.Buf.Bytes(), data)
	}
	requests.Lock()
	requests.n++
	op.Request = wire.RequestID{Forwarder: 99, Number: requests.n}
	requests.Unlock()
	vol := x.volumeAt(v)
	vol.Open()
	defer vol.Close()
	for range 200 {
		if vol.Stamp().Tick != 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	op.Stamp = vol.Stamp()
	done := make(chan error, 1)
	op.Done = func(_ *Op, err error) { done <- err }
	vol.Submit(op)
	err := <-done
	var out []byte
	for _, d := range op.Data {
		out = append(out, d...)
	}
	op.Release()
	return out, err
}

var requests struct {
	sync.Mutex
	n uint64
}

// A hand-over within the site under load: one history, and not one command fails.
func TestAHandOverIsNoErrorToAnybody(t *testing.T) {
	t.Parallel()
	for _, sites := range []int{1, 2} {
		t.Run(fmt.Sprint(sites, " sites"), func(t *testing.T) {
			for seed := range uint64(3) {
				rec := &blockHistory{}
				synctest.Test(t, func(t *testing.T) { handOverUnderLoad(t, seed, sites, rec) })
				res, _ := porcupine.CheckOperationsVerbose(blockModel, rec.ops, time.Minute)
				if res != porcupine.Ok {
					t.Errorf("seed %d: the history of %d commands is not linearizable: %v", seed, len(rec.ops), res)
				}
			}
		})
	}
}

func handOverUnderLoad(t *testing.T, seed uint64, sites int, rec *blockHistory) {
	const blocks, lease = 3, time.Second
	n := newNodes(t, sites, 3, lease)
	n.limit.SegmentBytes = 128 << 10
	v := n.volume(1<<20, sites, control.Replicated)
	n.served(t, v)
	for _, x := range n.list {
		vol := x.volumeAt(v)
		vol.Open()
		defer vol.Close()
		eventually(t, "a stamp", func() bool { return vol.Stamp().Tick != 0 })
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	answers := 0
	var clients []*linearClient
	for i := range 5 {
		c := &linearClient{n: n, id: i, v: v.ID, rng: rand.New(rand.NewPCG(seed, uint64(i))), rec: rec, seen: map[int]blockState{}}
		clients = append(clients, c)
		wg.Go(func() { c.run(t, blocks, stop) })
	}
	rng := rand.New(rand.NewPCG(seed, 77))
	time.Sleep(300 * time.Millisecond)
	for i := range 4 {
		x := n.owner(v.ID, nil)
		site := ident.SiteID(1 + (i+1)%sites)
		y := n.other(x, site)
		began := time.Now()
		r, err := x.moveTo(v, y.name, 0)
		if err != nil {
			t.Fatalf("%s to %s: %v", x.name, y.name, err)
		}
		if now := n.owner(v.ID, nil); now != y || r.Taker != y.name {
			t.Fatalf("%s was to own it, %+v", y.name, r)
		}
		t.Logf("%s to %s: pause %v of %v", x.name, y.name, r.Pause, time.Since(began))
		// Every node has to hear of the new owner's clock in between: stamps of two hand-overs ago are refused.
		time.Sleep(tickEvery + time.Duration(50+rng.IntN(500))*time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	close(stop)
	wg.Wait()
	for _, c := range clients {
		answers += c.answers
		for _, err := range c.failed {
			t.Errorf("client %d: %v", c.id, err)
		}
	}
	if answers < 300 {
		t.Errorf("only %d answers", answers)
	}
	n.stopAll()
}

// The ensemble of a site of two nodes lists a store of another site (R3). Moved to that one, the volume gets an ensemble
// of its own there: its writes would cross the distance otherwise. The old owner fences the stores of its site for it.
func TestAHandOverToASiteOfWhichTheEnsembleHasAStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 3, 2, time.Second)
		v := n.volume(1<<20, 3, control.Replicated)
		x := n.served(t, v)
		if _, err := through(x, v, wire.OpWrite, 0, bytes.Repeat([]byte{1}, 4096), 0); err != nil {
			t.Fatal(err)
		}
		state, _, _ := n.ctl.Journal(v.ID)
		third := n.Site(state.Ensembles[0].Stores[2])
		if third == x.home.site {
			t.Fatalf("the ensemble is %+v: no store of another site", state.Ensembles)
		}
		fences := -1
		n.onHandOver = func(_ *node, m *wire.HandOver, done bool) {
			if m.Step == wire.HandTake && !done {
				fences = len(m.Fences)
			}
		}
		if _, err := x.moveTo(v, "", third); err != nil {
			t.Fatal(err)
		}
		if fences != 2 {
			t.Errorf("%d stores were fenced by the old owner, want the two of its site", fences)
		}
		y := n.owner(v.ID, nil)
		state, _, _ = n.ctl.Journal(v.ID)
		newest, _ := state.Newest()
		for _, s := range newest.Stores[:2] {
			if y.home.site != third || n.Site(s) != third {
				t.Errorf("owned at site %d by the ensemble %+v, want that of site %d", y.home.site, newest, third)
			}
		}
		if got, err := through(y, v, wire.OpRead, 0, nil, 4096); err != nil || got[0] != 1 {
			t.Errorf("what was written before: %v", err)
		}
		n.stopAll()
	})
}

// What can't be is refused, with the reason.
func TestAHandOverThatCanNotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		x := n.served(t, v)
		y := n.other(x, 1)
		for name, want := range map[ident.NodeName]error{"n9": wire.ErrAbsent, n.list[2].name: wire.ErrBadRequest} {
			if _, err := x.moveTo(v, name, 0); !errorsIs(err, want) {
				t.Errorf("to %s: %v, want %v", name, err, want)
			}
		}
		if _, err := y.moveTo(v, x.name, 0); !errorsIs(err, wire.ErrNotOwner) {
			t.Errorf("by a node that does not own it: %v", err)
		}
		if r, err := x.moveTo(v, x.name, 0); err != nil || !r.Done {
			t.Errorf("to where it is: %v", err)
		}
		if _, err := n.ctl.SetDraining(context.Background(), y.name, true); err != nil {
			t.Fatal(err)
		}
		if _, err := x.moveTo(v, y.name, 0); !errorsIs(err, wire.ErrBadRequest) {
			t.Errorf("to a node that drains: %v", err)
		}
		y.stop()
		if _, err := n.ctl.SetDraining(context.Background(), y.name, false); err != nil {
			t.Fatal(err)
		}
		if _, err := x.moveTo(v, y.name, 0); !errorsIs(err, wire.ErrUnreached) {
			t.Errorf("to a node that is down: %v", err)
		}
		if _, err := through(x, v, wire.OpWrite, 0, bytes.Repeat([]byte{1}, 4096), 0); err != nil {
			t.Errorf("after all that: %v", err)
		}
		n.stopAll()
	})
}

func errorsIs(err, want error) bool {
	e, ok := err.(*wire.Error)
	return ok && e.Is(want)
}

// Who has asked for a volume whose owner is dead asks again once there is another one: what was wanted of the first need not be
// wanted of the second.
func TestAHandOverIsNotWantedAfterATakeover(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second)
		v := n.volume(8<<20, 2, control.Replicated)
		first := n.served(t, v)
		far := n.other(first, 3-first.home.site)
		if _, err := through(far, v, wire.OpWrite, 0, make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
		vol := far.volumeAt(v)
		vol.Open()
		defer vol.Close()
		first.stop()
		unwanted := errors.New("it has changed hands")
		got := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			got <- far.srv.Load().MoveToIf(ctx, vol, far.name, func() error {
				if owner, _, _ := vol.Ownership(); owner != first.name {
					return unwanted
				}
				return nil
			})
		}()
		next := n.awaitOwner(v.ID, first)
		if err := <-got; !errors.Is(err, unwanted) {
			t.Errorf("the hand-over that was asked of the dead owner: %v", err)
		}
		if owner, _, _ := vol.Ownership(); owner != next.name || next == far {
			t.Errorf("the owner is %s, want %s", owner, next.name)
		}
		n.stopAll()
	})
}
