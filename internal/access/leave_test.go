package access

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A hand-over to another site in which the key names the taker before the owner stops (R10), with whatever can happen between
// that and the taker's serving. Clients at all nodes work throughout, and see one history.

// leaving is such a hand-over: of x's volume to y at the other site. z is of x's site.
type leaving struct {
	t       *testing.T
	n       *nodes
	v       control.VolumeSpec
	x, y, z *node
	err     error // how it ended for x
}

// key is the journal's key.
func (l *leaving) key() control.JournalState {
	state, _, err := l.n.ctl.JournalNow(context.Background(), l.v.ID)
	if err != nil {
		l.t.Error(err)
	}
	return state
}

func (l *leaving) writes(by *node, what string) {
	l.t.Helper()
	for range 100 {
		_, err := through(by, l.v, wire.OpWrite, 512<<10, bytes.Repeat([]byte{1}, 4096), 0)
		if err == nil {
			return
		}
		if !errors.Is(err, wire.ErrStale) { // it has not heard of the owner's clock yet
			l.t.Errorf("%s: %v", what, err)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	l.t.Errorf("%s: every stamp is too old", what)
}

// ownedAt waits for an owner other than one and checks its site.
func (l *leaving) ownedAt(site ident.SiteID, but *node) *node {
	l.t.Helper()
	eventually(l.t, "an owner", func() bool { return l.n.owner(l.v.ID, but) != nil })
	o := l.n.owner(l.v.ID, but)
	if o != nil && o.home.site != site {
		l.t.Errorf("%s of site %d owns the volume, want one of site %d", o.name, o.home.site, site)
	}
	return o
}

// leaves hands over. arrange sets what is to happen; then says what has to be true after it, with the clients still there.
func leaves(t *testing.T, arrange func(*leaving), then func(*leaving)) {
	t.Helper()
	rec := &blockHistory{}
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 3, time.Second)
		n.limit.SegmentBytes = 128 << 10
		v := n.volume(1<<20, 2, control.Replicated)
		for _, x := range n.list {
			for _, s := range n.seats {
				if s.site == 2 {
					x.lane(s)
				}
			}
		}
		x := n.served(t, v)
		l := &leaving{t: t, n: n, v: v, x: x, y: n.other(x, 2), z: n.other(x, 1)}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 4 {
			c := &linearClient{n: n, id: i, v: v.ID, rng: rand.New(rand.NewPCG(11, uint64(i))), rec: rec, seen: map[int]blockState{}}
			wg.Go(func() { c.run(t, 3, stop) })
		}
		defer n.stopAll()
		defer wg.Wait()
		defer close(stop)
		time.Sleep(500 * time.Millisecond)
		arrange(l)
		_, l.err = x.moveTo(v, l.y.name, 0)
		then(l)
		n.away.Store(0)
		n.mem.SetFault(nil)
		n.mem.SetDown(false)
		for _, o := range n.list {
			o.cut.Store(false)
			o.deaf.Store(false)
		}
		time.Sleep(2 * time.Second)
		eventually(t, "an owner in the end", func() bool { return n.owner(v.ID, nil) != nil })
		for _, o := range n.list {
			l.writes(o, "in the end, by way of "+string(o.name))
		}
	})
	if res, _ := porcupine.CheckOperationsVerbose(blockModel, rec.ops, time.Minute); res != porcupine.Ok {
		t.Errorf("the history of %d commands is not linearizable: %v", len(rec.ops), res)
	}
}

// named calls f the first time that x has had the control store name y.
func (l *leaving) named(f func()) {
	var done atomic.Bool
	l.n.onNamed = func(by *node) {
		if by == l.x && done.CompareAndSwap(false, true) {
			f()
		}
	}
}

// left calls f when the leave is on its way (after false), or was answered.
func (l *leaving) left(after bool, f func(m *wire.HandOver)) {
	var done atomic.Bool
	l.n.onHandOver = func(to *node, m *wire.HandOver, was bool) {
		if to == l.y && m.Step == wire.HandTake && was == after && done.CompareAndSwap(false, true) {
			f(m)
		}
	}
}

// The owner serves while the control store is asked, and stops behind its answer; with a node of an older version in the cluster,
// which would not wait for the last records, it stops before.
func TestTheKeyIsChangedWhileTheOwnerServes(t *testing.T) {
	for _, older := range []bool{false, true} {
		leaves(t, func(l *leaving) {
			if older {
				l.n.mem.Downgrade(l.z.name)
				eventually(t, "a node is known to be older", func() bool { return l.n.ctl.Level() < control.LevelHandEarly })
			}
			o := l.n.owner(l.v.ID, nil).volumeAt(l.v).Owner()
			l.named(func() {
				frozen := false
				o.ask(func() { frozen = o.move.frozen })
				if frozen != older {
					t.Errorf("older %v: frozen %v when the key names the taker", older, frozen)
				}
			})
		}, func(l *leaving) {
			if l.err != nil {
				t.Errorf("older %v: %v", older, l.err)
			}
			l.ownedAt(2, l.x)
		})
	}
}

// The owner dies once the key names the taker, and what it has acknowledged last is only at its own site. The taker's site
// must not begin: it would follow what it does not have, and lose it with the other site (R10).
func TestTheGiverDiesBeforeTheLeave(t *testing.T) {
	var release func()
	leaves(t, func(l *leaving) {
		l.named(func() {
			release = l.x.holdAll(2)
			l.writes(l.x, "the owner goes on")
			l.x.cut.Store(true)
		})
	}, func(l *leaving) {
		defer release()
		l.ownedAt(1, l.x)
	})
}

// There is nobody to pass it on to: the volume waits, says why, and goes where an operator says.
func TestNobodyIsThereToPassItOnTo(t *testing.T) {
	var release func()
	var gone []*node
	leaves(t, func(l *leaving) {
		l.named(func() {
			release = l.x.holdAll(2)
			l.writes(l.x, "the owner goes on")
			l.x.cut.Store(true)
			for _, o := range l.n.list {
				if o.home.site == 1 && o != l.x {
					gone = append(gone, o)
				}
			}
			go func() {
				for _, o := range gone {
					o.stop()
				}
			}()
		})
	}, func(l *leaving) {
		defer release()
		ctx := context.Background()
		vol := l.y.volumeAt(l.v)
		eventually(t, "the reason why it waits", func() bool {
			l.y.srv.Load().mu.Lock()
			defer l.y.srv.Load().mu.Unlock()
			return vol.why != nil
		})
		if o := l.n.owner(l.v.ID, l.x); o != nil {
			t.Errorf("%s owns it, and its site lacks the end", o.name)
		}
		for end := time.Now().Add(time.Minute); l.key().Handed && time.Now().Before(end); time.Sleep(time.Millisecond) {
			_, rev, err := l.n.ctl.JournalNow(ctx, l.v.ID)
			if err == nil {
				_, _, _ = l.n.ctl.ForceJournal(ctx, l.v.ID, rev, l.y.name, nil, "", 0, false)
			}
		}
		l.ownedAt(2, l.x)
		for _, o := range gone {
			o.serve()
		}
	})
}

// The same, and everything was sent: the taker's site goes on, with or without its taker.
func TestTheGiverDiesBehindTheLeave(t *testing.T) {
	t.Run("before the taker has begun", func(t *testing.T) {
		leaves(t, func(l *leaving) {
			l.left(false, func(*wire.HandOver) {
				time.Sleep(10 * time.Millisecond) // the tail is there
				release := l.y.holdAll(2)         // the taker's epoch-start is not
				go func() {
					time.Sleep(10 * time.Millisecond)
					l.x.cut.Store(true)
					time.Sleep(500 * time.Millisecond)
					release()
				}()
			})
		}, func(l *leaving) { l.ownedAt(2, l.x) })
	})
	t.Run("before the last records have arrived", func(t *testing.T) {
		var release func()
		leaves(t, func(l *leaving) {
			l.named(func() {
				release = l.x.holdAll(2)
				l.writes(l.x, "the owner goes on")
				go func() {
					time.Sleep(50 * time.Millisecond) // the leave is on its way, unless a segment has just ended
					l.x.cut.Store(true)
				}()
			})
		}, func(l *leaving) {
			l.ownedAt(1, l.x)
			release()
		})
	})
}

// The last records do not arrive, and both live: the taker says that it has not begun, and the owner takes the volume back.
func TestTheTakerLacksTheLastRecords(t *testing.T) {
	var release func()
	leaves(t, func(l *leaving) {
		l.named(func() {
			release = l.x.holdAll(2)
			l.writes(l.x, "the owner goes on")
		})
	}, func(l *leaving) {
		if l.err == nil {
			t.Error("handed over without the last records")
		}
		if o := l.n.owner(l.v.ID, nil); o != l.x {
			t.Errorf("it is said to have failed, and %s has not taken it back", l.x.name)
		}
		release()
	})
}

// Nothing can be sent any more: the leave is not either.
func TestTheGiverTakesBackWhatItHasNotLeft(t *testing.T) {
	leaves(t, func(l *leaving) {
		l.named(func() {
			for _, s := range l.n.seats {
				if s.site == 2 {
					l.n.kill(s)
				}
			}
			l.writes(l.x, "the owner goes on")
		})
		l.left(false, func(*wire.HandOver) { t.Error("a leave without the last records") })
	}, func(l *leaving) {
		if o := l.n.owner(l.v.ID, nil); o != l.x || l.err == nil {
			t.Errorf("%s has not taken it back: %v", l.x.name, l.err)
		}
		for _, s := range l.n.seats {
			if s.site == 2 {
				l.n.start(s)
			}
		}
	})
}

// The sites are apart when the leave is sent, for longer than anybody waits.
func TestTheLeaveIsLost(t *testing.T) {
	leaves(t, func(l *leaving) {
		l.left(false, func(*wire.HandOver) { l.n.away.Store(1) })
	}, func(l *leaving) {
		if l.err == nil {
			t.Error("done without a word of the taker")
		}
		time.Sleep(8 * time.Second)
		l.n.away.Store(0)
		eventually(t, "an owner", func() bool { return l.n.owner(l.v.ID, nil) != nil })
	})
}

// A leave that comes again does nothing, neither at once nor when the volume has moved on and the taker is to have it again.
func TestTheLeaveComesAgain(t *testing.T) {
	var leave wire.HandOver
	leaves(t, func(l *leaving) {
		l.left(true, func(m *wire.HandOver) {
			leave = *m
			again := leave
			if r, err := l.y.srv.Load().HandOver(context.Background(), l.x.name, &again); err == nil {
				t.Errorf("the same leave again: %+v", r)
			}
		})
	}, func(l *leaving) {
		if o := l.ownedAt(2, nil); o == nil || l.err != nil {
			t.Fatal(l.err)
		}
		l.n.onHandOver = nil
		if _, err := l.y.moveTo(l.v, l.x.name, 0); err != nil {
			t.Fatal(err)
		}
		again := leave
		if r, err := l.y.srv.Load().HandOver(context.Background(), l.x.name, &again); err == nil {
			t.Errorf("after a later epoch: %+v", r)
		}
		// And once more while it is prepared for the next one.
		l.left(false, func(*wire.HandOver) {
			again := leave
			if r, err := l.y.srv.Load().HandOver(context.Background(), l.x.name, &again); err == nil {
				t.Errorf("an old leave while another is expected: %+v", r)
			}
		})
		if _, err := l.x.moveTo(l.v, l.y.name, 0); err != nil {
			t.Error(err)
		}
	})
}

// Another node has taken the volume over when the leave arrives, and the taker has not heard of it.
func TestTheLeaveComesAfterALaterEpoch(t *testing.T) {
	leaves(t, func(l *leaving) {
		l.left(false, func(*wire.HandOver) {
			l.y.deaf.Store(true)
			// The node may be taking it over by itself at this moment: then one of the two attempts deposes the other.
			vol := l.z.volumeAt(l.v)
			for range 20 {
				l.z.srv.Load().takeOver(vol, nil, nil)
				time.Sleep(50 * time.Millisecond)
				if o := vol.Owner(); o != nil && isClosed(o.Serving()) {
					return
				}
			}
			t.Error("nobody else has taken it over")
			l.writes(l.z, "by the third node")
		})
	}, func(l *leaving) {
		if l.err == nil {
			t.Error("done, though a later epoch had begun")
		}
		if o := l.y.volumeAt(l.v).Owner(); o != nil && o.epoch.Less(l.key().Epoch) && isClosed(o.Serving()) && !isClosed(o.Stopped()) {
			t.Error("the taker serves at an epoch that is over")
		}
		l.ownedAt(1, nil)
	})
}

// A third node takes over between the key's change and the leave: the giver is deposed, and leaves it at that.
func TestAThirdNodeTakesOverBeforeTheLeave(t *testing.T) {
	leaves(t, func(l *leaving) {
		l.named(func() {
			// The node may be taking it over by itself at this moment: then one of the two attempts deposes the other.
			vol := l.z.volumeAt(l.v)
			for range 20 {
				l.z.srv.Load().takeOver(vol, nil, nil)
				time.Sleep(50 * time.Millisecond)
				if o := vol.Owner(); o != nil && isClosed(o.Serving()) {
					return
				}
			}
			t.Error("nobody else has taken it over")
		})
	}, func(l *leaving) {
		if l.err == nil {
			t.Error("handed over by an owner that was deposed")
		}
		if o := l.ownedAt(1, nil); o != nil && o != l.z {
			t.Errorf("%s owns it, not the one that took it over", o.name)
		}
	})
}

// The taker dies behind the leave, before its epoch-start is anywhere; that arrives late, when another epoch has begun.
func TestTheTakerDiesBeforeItsEpochStart(t *testing.T) {
	var release func()
	leaves(t, func(l *leaving) {
		l.left(false, func(*wire.HandOver) {
			time.Sleep(10 * time.Millisecond)
			release = l.y.holdAll(2)
			go func() {
				time.Sleep(50 * time.Millisecond)
				l.y.cut.Store(true)
			}()
		})
	}, func(l *leaving) {
		if l.err == nil {
			t.Error("done, and the taker has not begun")
		}
		eventually(t, "another owner", func() bool { return l.n.owner(l.v.ID, l.y) != nil })
		l.writes(l.z, "at another owner")
		release()
		time.Sleep(100 * time.Millisecond)
		if o := l.y.volumeAt(l.v).Owner(); o != nil && isClosed(o.Serving()) && !isClosed(o.Stopped()) {
			t.Error("the taker serves by an epoch-start that came too late")
		}
	})
}

// Nothing in the pause needs the control store.
func TestTheControlStoreIsAwayFromThePauseOn(t *testing.T) {
	leaves(t, func(l *leaving) {
		l.named(func() { l.n.mem.SetDown(true) })
	}, func(l *leaving) {
		if l.err != nil {
			t.Error(l.err)
		}
		l.ownedAt(2, l.x)
		l.writes(l.y, "at the new owner")
	})
}

// The control store has the change, and its answer is lost: the owner serves until it knows.
func TestTheOwnerServesWhileTheChangeIsUncertain(t *testing.T) {
	var armed, lost atomic.Bool
	leaves(t, func(l *leaving) {
		readies := 0
		l.n.onHandOver = func(_ *node, m *wire.HandOver, done bool) {
			if m.Step == wire.HandReady && done {
				readies++
				armed.Store(readies == 2) // the last step before the change
			}
		}
		l.n.mem.SetFault(func() control.Fault {
			if !armed.Load() {
				return control.FaultNone
			}
			if lost.CompareAndSwap(false, true) {
				return control.FaultAnswerLost
			}
			return control.FaultRequestLost
		})
		go func() {
			for !lost.Load() {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Second)
			if o := l.n.owner(l.v.ID, nil); o != l.x {
				t.Error("the owner does not serve while the change is uncertain")
			}
			l.writes(l.x, "while the change is uncertain")
			armed.Store(false)
		}()
	}, func(l *leaving) {
		if l.err != nil {
			t.Error(l.err)
		}
		l.ownedAt(2, l.x)
	})
}

// The control store is lost in the pause, and made anew from a backup of before the hand-over began, or of when its key named
// the taker already: whoever serves writes its key back, and the lists of both sites' stores are asked.
func TestTheControlStoreIsRestoredAfterTheLeave(t *testing.T) {
	for _, knows := range []bool{false, true} {
		leaves(t, func(l *leaving) {
			ctx := context.Background()
			backup, err := l.n.ctl.Backup(ctx)
			l.named(func() {
				if knows {
					backup, err = l.n.ctl.Backup(ctx)
				}
				var anew *control.Snapshot
				if err == nil {
					anew, err = backup.Anew(control.NewLineage(), time.Now())
				}
				if err != nil {
					t.Error(err)
					return
				}
				l.n.mem.Renew(anew)
			})
		}, func(l *leaving) {
			eventually(t, "an owner", func() bool { return l.n.owner(l.v.ID, nil) != nil })
			o := l.n.owner(l.v.ID, nil)
			eventually(t, "its key", func() bool {
				state := l.key()
				return !state.Unheard && state.Owner == o.name || l.n.owner(l.v.ID, nil) != o
			})
		})
	}
}

// A hand-over asks for a checkpoint, which has to be at the other site before the rest goes on: it is copied when it is there, and
// not when the owner looks the next time for some that a site lacks, seconds later where there was none for long.
func TestACheckpointIsShippedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 3, time.Second)
		defer n.stopAll()
		v := n.volume(1<<20, 2, control.Replicated)
		x := n.served(t, v)
		l := &leaving{t: t, n: n, v: v, x: x, y: n.other(x, 2)}
		for range 40 {
			l.writes(x, "before")
			time.Sleep(time.Second)
		}
		begun := time.Now() // of the bubble: nothing takes time but waiting
		if _, err := x.moveTo(v, l.y.name, 0); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > 500*time.Millisecond {
			t.Errorf("the hand-over took %v", took)
		}
		l.writes(l.y, "after")
	})
}
