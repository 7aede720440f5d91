package access

import (
	"bytes"
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// watchReads reads block 0 every few milliseconds until stop, and says when the last read was answered with data.
func watchReads(o *Owner) (stop func() time.Time) {
	var last atomic.Pointer[time.Time]
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(3 * time.Millisecond):
			}
			if _, err := readAt(o, 0, 4096); err == nil {
				now := time.Now()
				last.Store(&now)
			}
		}
	}()
	return func() time.Time {
		close(end)
		<-done
		if p := last.Load(); p != nil {
			return *p
		}
		return time.Time{}
	}
}

func granted(t *testing.T, o *Owner) {
	t.Helper()
	eventually(t, "the owner has its grants", func() (ok bool) {
		o.ask(func() { ok = o.mayRead() })
		return ok
	})
}

// An owner that is cut off from its grants is silent before its successor answers, and for no longer than it has to
// be (R6).
func TestACutOffOwnerIsSilentBeforeItsSuccessorSpeaks(t *testing.T) {
	const lease = time.Second
	for _, pause := range []time.Duration{0, 100 * time.Millisecond, 330 * time.Millisecond, 700 * time.Millisecond, 2 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			n := newNodes(t, 1, 3, lease)
			v := n.volume(1<<20, 1, control.Replicated)
			first, second := n.list[0], n.list[1]
			old := first.own(v)
			defer old.Close()
			granted(t, old)
			if err := writeAt(old, 0, bytes.Repeat([]byte{1}, 4096), false); err != nil {
				t.Fatal(err)
			}
			stop := watchReads(old)
			time.Sleep(lease)
			cut := time.Now()
			first.cut.Store(true)
			time.Sleep(pause)
			next := second.own(v)
			defer next.Close()
			serving := time.Now()
			granted(t, next)
			if err := writeAt(next, 0, bytes.Repeat([]byte{2}, 4096), false); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * lease)
			last := stop()
			if !last.Before(serving) {
				t.Errorf("pause %s: the old owner answered a read %s after its successor served", pause, last.Sub(serving))
			}
			if last.Before(cut) || last.Sub(cut) > lease {
				t.Errorf("pause %s: the last read of the old owner was %s after the cut; a lease is %s", pause, last.Sub(cut), lease)
			}
			if took := serving.Sub(cut) - pause; took > 2*lease+100*time.Millisecond {
				t.Errorf("pause %s: the takeover took %s", pause, took)
			}
		})
	}
}

// Leases that were given back are not waited for.
func TestAGrantGivenBackIsNotWaitedFor(t *testing.T) {
	const lease = 10 * time.Second
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, lease)
		v := n.volume(1<<20, 1, control.Replicated)
		old := n.list[0].own(v)
		granted(t, old)
		old.Close()
		time.Sleep(50 * time.Millisecond) // the message
		began := time.Now()
		next := n.list[1].own(v)
		defer next.Close()
		if took := time.Since(began); took >= lease/2 {
			t.Errorf("a takeover after leases were given back took %s", took)
		}
	})
}

// A core server that was started again has forgotten what it granted: it answers no fence for a lease time, so that
// the old owner, which goes on with that grant, is silent by then (R6).
func TestARestartedStoreAnswersNoFenceForALeaseTime(t *testing.T) {
	const lease = time.Second
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, lease)
		v := n.volume(1<<20, 1, control.Replicated)
		first, second, third := n.list[0], n.list[1], n.list[2]
		old := first.own(v)
		defer old.Close()
		granted(t, old)
		if err := writeAt(old, 0, bytes.Repeat([]byte{1}, 4096), false); err != nil {
			t.Fatal(err)
		}
		stop := watchReads(old)
		// The third store's grant is given back for good: what the old owner reads by are the first's and the second's.
		third.home.leases.Load().Handle(context.Background(), &wire.Lease{Owner: first.name, Instance: 1<<32 | uint64(first.home.host[2]), Sent: math.MaxUint64,
			Duration: lease, Leave: []wire.JournalEpoch{{Store: third.home.id, Journal: v.ID, Epoch: old.epoch}}})
		first.cut.Store(true)
		n.kill(second.home)
		n.start(second.home)
		started := time.Now()
		answered := make(chan time.Duration, 1)
		go func() {
			_, err := second.home.Fence(context.Background(), &wire.Fence{Journal: ident.NewJournalID(), Epoch: ident.Epoch{Number: 1}})
			if err != nil {
				t.Error(err)
			}
			answered <- time.Since(started)
		}()
		next := third.own(v)
		defer next.Close()
		serving := time.Now()
		if took := <-answered; took < lease+lease/10 || took > 2*lease {
			t.Errorf("a restarted store answered a fence after %s, a lease is %s", took, lease)
		}
		time.Sleep(2 * lease)
		if last := stop(); !last.Before(serving) {
			t.Errorf("the old owner answered a read %s after its successor served", last.Sub(serving))
		}
	})
}

// An owner that can reach all stores, but is not answered about leases, refuses reads and goes on once it is.
func TestWithoutGrantsThereAreNoReads(t *testing.T) {
	const lease = time.Second
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, lease)
		v := n.volume(1<<20, 1, control.Replicated)
		x := n.list[0]
		o := x.own(v)
		defer o.Close()
		granted(t, o)
		x.dark.Store(true)
		time.Sleep(lease + time.Millisecond)
		if _, err := readAt(o, 0, 4096); err == nil {
			t.Error("a read was answered without a grant")
		}
		if err := writeAt(o, 0, make([]byte, 4096), false); err != nil {
			t.Errorf("a write needs no grant: %v", err)
		}
		x.dark.Store(false)
		time.Sleep(lease / 2)
		if _, err := readAt(o, 0, 4096); err != nil {
			t.Errorf("with grants again: %v", err)
		}
	})
}

// used has every node know the owner's clock.
func (n *nodes) used(t *testing.T, v control.VolumeSpec) {
	for _, x := range n.list {
		vol := x.volumeAt(v)
		vol.Open()
		t.Cleanup(vol.Close)
		eventually(t, "a stamp", func() bool { return vol.Stamp().Tick != 0 })
	}
}

// A hand-over whose taker gets its first grants late is a pause for reads at every node, and an error for nobody. Without a
// lease for seconds they are refused.
func TestReadsWaitForTheTakersLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		x := n.served(t, v)
		y := n.other(x, 1)
		data := bytes.Repeat([]byte{7}, 4096)
		if err := writeAt(x.srv.Load().Owners()[0], 0, data, false); err != nil {
			t.Fatal(err)
		}
		n.used(t, v)
		y.dark.Store(true)
		if _, err := x.moveTo(v, y.name, 0); err != nil {
			t.Fatal(err)
		}
		o := y.srv.Load().Owners()[0]
		read := func(kind wire.ForwardOp, through *node) (got []byte, err error) {
			op := NewOp()
			op.Kind, op.Length = kind, 4096
			done := make(chan error, 1)
			op.Done = func(_ *Op, err error) { done <- err }
			op.Stamp = through.volumeAt(v).Stamp()
			through.volumeAt(v).Submit(op)
			err = <-done
			for _, d := range op.Data {
				got = append(got, d...)
			}
			op.Release()
			return got, err
		}
		var wg sync.WaitGroup
		for _, through := range n.list {
			for _, kind := range []wire.ForwardOp{wire.OpRead, wire.OpUnitState} {
				wg.Go(func() {
					got, err := read(kind, through)
					if err != nil || kind == wire.OpRead && !bytes.Equal(got, data) {
						t.Errorf("%s, %d: %v", through.name, kind, err)
					}
				})
			}
		}
		began := time.Now()
		wg.Go(func() {
			// A partial write reads the rest of its block.
			if err := writeAt(o, 4096+512, data[:512], false); err != nil {
				t.Errorf("write: %v", err)
			}
		})
		time.Sleep(700 * time.Millisecond)
		y.dark.Store(false)
		wg.Wait()
		if waited := time.Since(began); waited < 700*time.Millisecond || waited > 2*time.Second {
			t.Errorf("they waited for %v", waited)
		}
		if got := counter(o.env.Metrics.NoLease); got != 0 {
			t.Errorf("%v reads were refused", got)
		}
		y.dark.Store(true)
		time.Sleep(2 * time.Second)
		if _, err := read(wire.OpRead, y); !errors.Is(err, wire.ErrBusy) {
			t.Errorf("without a lease: %v", err)
		}
		if got := counter(o.env.Metrics.NoLease); got != 1 {
			t.Errorf("%v reads were refused", got)
		}
		n.stopAll()
	})
}

// Reads that wait for a lease when their owner is deposed are answered by the next one.
func TestReadsThatWaitForALeaseGoToTheNextOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		x := n.served(t, v)
		y := n.other(x, 1)
		n.used(t, v)
		x.dark.Store(true)
		time.Sleep(2 * time.Second) // its grants have run out
		op := NewOp()
		op.Kind, op.Length = wire.OpRead, 4096
		done := make(chan error, 1)
		op.Done = func(_ *Op, err error) { done <- err }
		op.Stamp = x.volumeAt(v).Stamp()
		x.volumeAt(v).Submit(op)
		time.Sleep(500 * time.Millisecond)
		if _, err := x.moveTo(v, y.name, 0); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("read: %v", err)
		}
		op.Release()
		n.stopAll()
	})
}
