package access

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// Scripted scenarios: failures of docs/internals/rules.md that need an owner. Each stands for a clause, and fails in a program
// that leaves the clause out (internal/mutant).

// hold keeps a seat that is far from taking appends, until release.
func (s *seat) hold() (release func()) {
	gate := make(chan struct{})
	s.far.c <- func() { <-gate }
	return sync.OnceFunc(func() { close(gate) })
}

// send submits a command; what it is answered comes by the channel.
func send(o *Owner, op *Op) chan error {
	done := make(chan error, 1)
	op.Done = func(_ *Op, err error) { done <- err }
	o.Submit(op)
	return done
}

func writeOp(off int64, data []byte) *Op {
	op := NewOp()
	op.Kind, op.Offset, op.Length = wire.OpWrite, off, int64(len(data))
	op.Buf = NewWriteBuf(off, len(data))
	copy(op.Buf.Bytes(), data)
	return op
}

func swapOp(off int64, from, to byte) *Op {
	op := writeOp(off, bytes.Repeat([]byte{to}, 512))
	op.Kind, op.Compare = wire.OpCompareAndWrite, bytes.Repeat([]byte{from}, 512)
	return op
}

// waits reports that a command waits for its turn, or for what is in flight.
func (o *Owner) waits(op *Op) (yes bool) {
	o.ask(func() { yes = slices.Contains(o.waiting, op) && !op.merging })
	return yes
}

func (o *Owner) inFlight() (n int) {
	o.ask(func() { n = len(o.uncommitted) })
	return n
}

// decided waits until a command has been answered or is known to wait; it gives the answer, if there is one.
func decided(t *testing.T, o *Owner, op *Op, answer chan error) (answered bool) {
	t.Helper()
	eventually(t, "the command waits or is answered", func() bool {
		answered = len(answer) > 0
		return answered || o.waits(op)
	})
	return answered
}

// A write is on A only when its owner dies. The next one finds it; were it to serve a read before it has it, and its own
// epoch's start, on two stores, and died, the one after could hear B and C and undo the read (R1).
func TestNothingIsReadBeforeTheStartIsStable(t *testing.T) {
	c := newFaultyCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	old := c.own(v)
	if err := writeAt(old, 0, bytes.Repeat([]byte{1}, 4096), true); err != nil {
		t.Fatal(err)
	}
	release := c.seats[1].hold()
	defer release()
	lost := send(old, writeOp(0, bytes.Repeat([]byte{2}, 4096)))
	eventually(t, "the write is on its way", func() bool { return old.inFlight() == 1 })
	o := c.take(v)
	op := NewOp()
	op.Kind, op.Length = wire.OpRead, 4096
	answer := send(o, op)
	if decided(t, o, op, answer) {
		t.Error("a read is answered, and the epoch's start is on one store")
	}
	release()
	if err := <-answer; err != nil || op.Data[0][0] == 0 {
		t.Errorf("the read: %v", err)
	}
	<-lost
	old.Close()
	o.Close()
}

// E1 = {A, B, C}; segment 7 is on A and C; C dies; E2 = {A, B, D}. A dies with the owner's host: B and D are all but one of E2, and
// segment 7 is unseen (R3).
func TestASegmentOfAnOlderEnsembleIsFound(t *testing.T) {
	c := newCluster(t, 1, 6)
	c.limit.RepairGrace = time.Hour // nobody copies anything
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	for i := range 20 {
		if err := writeAt(o, int64(i)*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096), false); err != nil {
			t.Fatal(err)
		}
	}
	o.ask(o.w.CloseIdle)
	if err := simple(o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	var seven SegmentView
	eventually(t, "it is sealed", func() bool {
		seven = o.Segments()[0]
		return seven.Sealed && len(seven.Holders) == 2 && seven.Holders[0].Stable && seven.Holders[1].Stable
	})
	o.ask(func() { o.w.Tick(time.Duration(o.env.Clock()) + time.Hour) }) // all hear of it
	a, dead := c.seat(seven.Holders[0].Store), c.seat(seven.Holders[1].Store)
	c.health = o.env.Health
	c.kill(dead)
	c.health.gone(dead.id)
	c.local = a.id
	next := c.own(v)
	o.Close()
	next.ask(next.dropEnsembles)
	eventually(t, "the change has been made, or not", func() (still bool) {
		next.ask(func() { still = !next.ensemble.changing })
		return still
	})
	list := c.listed(v).Ensembles
	if len(list) == 1 && !slices.Contains(list[0].Stores, a.id) {
		t.Fatalf("not what the test is about: %+v", list)
	}
	// All but one of what is listed answer, the owner's host not among them. Where that is too few, they wait for it.
	next.Close()
	c.kill(a)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	last, err := TakeOver(ctx, c.env(), v)
	cancel()
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a takeover that neither finds everything nor waits: %v", err)
	}
	if err != nil {
		c.start(a)
		last = c.own(v)
	}
	for i := range 20 {
		if got, err := readAt(last, int64(i)*4096, 4096); err != nil || got[0] != byte(i+1) {
			t.Fatalf("block %d: %v, %v", i, got[:min(1, len(got))], err)
		}
	}
	last.Close()
}

// An owner that has not heard all stores, and does not know the end, takes no ensemble off the list: what it has missed is
// found by nobody any more, silently (R3).
func TestAnOwnerThatIsNotProvenTakesNothingOffTheList(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 6)
	c.limit.UncertainWait = 200 * time.Millisecond
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	c.health = o.env.Health
	if err := writeAt(o, 0, bytes.Repeat([]byte{1}, 4096), true); err != nil {
		t.Fatal(err)
	}
	if err := writeAt(o, 0, bytes.Repeat([]byte{2}, 4096), false); err != nil {
		t.Fatal(err)
	}
	var pair []*seat
	for _, h := range o.Segments()[0].Holders {
		pair = append(pair, c.seat(h.Store))
	}
	away, short := pair[0], pair[1]
	away.mem.PowerOff()
	short.mem.PowerOff()
	c.kill(away)
	c.powerCut(short)
	o.Close()
	c.start(short)
	c.local = short.id
	c.health.gone(away.id)
	o = c.own(v)
	if o.proven || len(o.state.Ensembles) != 2 {
		t.Fatalf("not what the test is about: proven %v, %d ensembles", o.proven, len(o.state.Ensembles))
	}
	eventually(t, "all that was found is on two members of the newest ensemble", func() (yes bool) {
		o.ask(func() {
			o.w.CloseIdle()
			o.settlePast()
			o.everySecond()
			yes = o.pastStable() && o.onNewest()
		})
		return yes
	})
	for range 3 {
		o.ask(o.dropEnsembles)
		eventually(t, "no change is under way", func() (still bool) { o.ask(func() { still = !o.ensemble.changing }); return still })
	}
	if list := c.listed(v).Ensembles; len(list) != 2 {
		t.Errorf("%d ensembles are listed, and %s, which has not answered, is in none", len(list), away.id)
	}
	o.Close()
}

// liedTo is a cluster of three stores with a volume of which all that a flush promised is gone from both disks, and the third store was told
// that it was stable.
func liedTo(t *testing.T) (*cluster, control.VolumeSpec) {
	c := newCluster(t, 1, 3)
	c.limit.UncertainWait = 200 * time.Millisecond
	v := c.volume(1<<20, 1, control.Replicated)
	old := c.own(v)
	o := c.own(v) // all three have a fence, so all three hear of the stable point
	old.Close()
	before := make([]*vfs.Mem, len(c.seats))
	for i, s := range c.seats {
		before[i] = s.mem.CrashClone(vfs.Crash{})
	}
	for i := range 5 {
		if err := writeAt(o, int64(i)*4096, bytes.Repeat([]byte{1}, 4096), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := simple(o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	o.ask(func() { o.w.Tick(time.Duration(o.env.Clock()) + time.Hour) })
	segments := o.Segments()
	newest := segments[len(segments)-1]
	for i, s := range c.seats {
		if slices.ContainsFunc(newest.Holders, func(h HolderView) bool { return h.Store == s.id }) {
			c.powerCut(s)
			s.mem = before[i] // a disk that had lied about its fdatasync
			c.start(s)
		}
	}
	t.Cleanup(func() { o.Close() })
	return c, v
}

// Nobody serves what is left unless an operator forces it (R4).
func TestALossOfWhatWasStableIsNotServed(t *testing.T) {
	c, v := liedTo(t)
	if next, err := TakeOver(context.Background(), c.env(), v); err == nil {
		t.Errorf("served: %s", next.recovered.Describe())
		next.Close()
	}
}

// An operator agrees to what is left, though all stores answer and so none is given up. It is served, not proven; the word
// goes with the ensemble that it was about.
func TestAnOperatorAgreesToTheLossOfWhatWasStable(t *testing.T) {
	c, v := liedTo(t)
	_, rev, err := c.ctl.JournalNow(context.Background(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	state, _, err := c.ctl.ForceJournal(context.Background(), v.ID, rev, "n1", nil, "", 0, true)
	if err != nil || state.Forced == nil {
		t.Fatalf("forced: %+v, %v", state.Forced, err)
	}
	o := c.own(v)
	if o.proven {
		t.Error("it is proven")
	}
	if err := writeAt(o, 0, bytes.Repeat([]byte{2}, 4096), true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the word is gone", func() bool {
		o.ask(o.dropEnsembles)
		return c.listed(v).Forced == nil
	})
	o.Close()
	next := c.own(v)
	if !next.proven || next.recovered.LostStable {
		t.Errorf("the owner after it: %s", next.recovered.Describe())
	}
	if got, err := readAt(next, 0, 4096); err != nil || got[0] != 2 {
		t.Errorf("%v, %v", got[:min(1, len(got))], err)
	}
	next.Close()
}

// Segment 7 is newer than the checkpoint, shipped, and one of its two local replicas is dropped; the store with the other one
// dies: a gap at 7 cuts off what follows (R5).
func TestWhatNoCheckpointCoversStaysOnTwo(t *testing.T) {
	c := newCluster(t, 2, 3)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(1<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(4, 9))}
	for range 60 {
		im.change(t)
	}
	im.o.ask(im.o.w.CloseIdle)
	c.inStep(t, im.o)
	permits := func(covered bool) (n, sealed int) {
		im.o.ask(func() {
			im.o.dropSome()
			for _, s := range im.o.segs {
				if !s.sealed || s.id.IsCheckpoint() || im.o.covered(s) != covered || im.o.goodAt(s, 2) == 0 || im.o.retiring(s) {
					continue
				}
				sealed++
				for k := range im.o.permits {
					if k.segment == s.id {
						n++
					}
				}
				if im.o.goodAt(s, 1) < 2 {
					n++
				}
			}
		})
		return n, sealed
	}
	eventually(t, "the other site has sealed segments", func() bool { _, sealed := permits(false); return sealed > 2 })
	if n, _ := permits(false); n > 0 {
		t.Errorf("%d segments that no checkpoint covers have one local replica, or will", n)
	}
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "those that one covers have one", func() bool { n, sealed := permits(true); return sealed > 2 && n == sealed })
	im.o.Close()
}

// Two COMPARE AND WRITE 0->1 and 0->2 in flight both compare with 0: one of them fails (R7).
func TestOneOfTwoCompareAndWritesWins(t *testing.T) {
	c := newFaultyCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	release := c.seats[1].hold()
	defer release()
	one := send(o, swapOp(0, 0, 1))
	eventually(t, "the first one is in flight", func() bool { return o.inFlight() == 1 })
	op := swapOp(0, 0, 2)
	two := send(o, op)
	eventually(t, "the second one has been looked at", func() bool { return o.waits(op) || o.inFlight() == 2 || len(two) > 0 })
	release()
	if err := <-one; err != nil {
		t.Errorf("the first: %v", err)
	}
	if err := <-two; err == nil {
		t.Error("both have compared with 0, and both succeed")
	}
	if got, err := readAt(o, 0, 512); err != nil || got[0] != 1 {
		t.Errorf("%v, %v", got[:1], err)
	}
}

// W(x)=1 is on A only; COMPARE AND WRITE 0->2 must not be told MISCOMPARE before it is committed: should the owner die, x is 0
// to those who come after (R7).
func TestAMiscompareWaitsForWhatItWasDecidedUpon(t *testing.T) {
	c := newFaultyCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	release := c.seats[1].hold()
	defer release()
	one := send(o, writeOp(0, bytes.Repeat([]byte{1}, 4096)))
	eventually(t, "the write is in flight", func() bool { return o.inFlight() == 1 })
	op := swapOp(0, 0, 2)
	two := send(o, op)
	eventually(t, "the second one has been looked at", func() bool { return o.waits(op) || o.inFlight() == 2 || len(two) > 0 })
	if len(two) > 0 {
		t.Error("answered, and what it was decided upon is not committed")
	}
	release()
	if err := <-one; err != nil {
		t.Fatal(err)
	}
	if err := <-two; err == nil {
		t.Error("it has compared with what was there before the write in flight")
	}
}

// A RESERVE is on one store only: what another initiator is told about it, RESERVATION CONFLICT too, waits until it is
// committed (R7).
func TestAReservationInFlightIsWaitedFor(t *testing.T) {
	c := newFaultyCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	a, b := newPort("iqn.a", 1, 1, 11), newPort("iqn.b", 1, 1, 21)
	a.bar(t, o, wire.BarLogin)
	b.bar(t, o, wire.BarLogin)
	release := c.seats[1].hold()
	defer release()
	cmd := reserve.Command{Action: reserve.LegacyReserve, Nexus: nexusID(&a.nexus), Session: a.session}
	one := NewOp()
	one.Kind, one.Unit, one.Nexus, one.Session, one.Stamp = wire.OpUnit, cmd.Append(nil), &a.nexus, a.session, o.Stamp()
	reserved := send(o, one)
	eventually(t, "the change is in flight", func() (yes bool) {
		o.ask(func() { yes = o.unit.state.Version != o.unit.committed.Version })
		return yes || len(reserved) > 0
	})
	two := writeOp(0, make([]byte, 4096))
	two.Nexus, two.Session, two.Stamp = &b.nexus, b.session, o.Stamp()
	answer := send(o, two)
	if decided(t, o, two, answer) {
		t.Errorf("answered before the reservation is committed: %v", <-answer)
	} else {
		release()
		if err := <-answer; err == nil {
			t.Error("a write under another's reservation")
		}
	}
	release()
	if err := <-reserved; err != nil {
		t.Errorf("RESERVE: %v", err)
	}
}

// A checkpoint that names what a power cut takes would be a map of what is not there (R8).
func TestACheckpointIsNoOlderThanWhatItCoversIsStable(t *testing.T) {
	c := newFaultyCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	if err := simple(o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	file := "*" + o.Segments()[0].ID.String() + "*"
	gate := make(chan struct{})
	remove := c.seats[1].faults.Add(vfs.HangOn(vfs.OpSyncData, file, gate))
	if err := writeAt(o, 0, bytes.Repeat([]byte{1}, 4096), false); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- o.Checkpoint() }()
	eventually(t, "it waits, or is done", func() (waits bool) {
		o.ask(func() { waits = len(o.stableWait) > 0 })
		return waits || len(done) > 0
	})
	o.ask(func() {
		if p := o.w.Point().At.Seq; p > o.w.Stable().Seq {
			t.Errorf("a checkpoint that covers up to %d is announced, stable is %d", p, o.w.Stable().Seq)
		}
		if len(done) > 0 {
			t.Error("it has not waited")
		}
	})
	remove()
	close(gate)
	<-done
}

// The pointer names a checkpoint at 500, a site's prefix is 450 when the others burn, and it has deleted already what 450 needs
// (R12): nothing goes before every site has passed the checkpoint, and has it.
func TestNothingIsRetiredThatASiteNeeds(t *testing.T) {
	c := newCluster(t, 2, 2)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(256<<10, 2, control.Replicated)
	o := c.own(v)
	defer o.Close()
	if err := writeAt(o, 0, make([]byte, 4096), false); err != nil {
		t.Fatal(err)
	}
	c.inStep(t, o)
	c.killSite(2)
	for range 3 {
		for off := int64(0); off < v.SizeBytes; off += 32 << 10 {
			if err := writeAt(o, off, bytes.Repeat([]byte{byte(off >> 15)}, 32<<10), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	retired := func() (n int) {
		for _, s := range o.segs {
			if o.retiring(s) {
				n++
			}
		}
		return n
	}
	far := c.seats[2].id
	o.ask(func() {
		if len(o.m.DeadSegments()) == 0 || len(o.ships) != 1 {
			t.Errorf("not what the test is about: %d segments are dead, %d ships", len(o.m.DeadSegments()), len(o.ships))
			return
		}
		ship := o.ships[0]
		passed := func(seq ident.Seq) (was ident.Seq) {
			ship.mu.Lock()
			defer ship.mu.Unlock()
			was, ship.mu.stable = ship.mu.stable, seq
			return was
		}
		was := passed(o.w.Commit().Seq)
		if o.retireSome(); retired() > 0 {
			t.Error("retired, and the other site does not have the checkpoint")
		}
		passed(was)
		for id, s := range o.segs {
			if id.IsCheckpoint() {
				s.holders = append(s.holders, holder{store: far, stable: true})
			}
		}
		if o.retireSome(); retired() > 0 {
			t.Errorf("retired, and the other site's prefix ends at %d, below the checkpoint at %d", was, o.cp.lastSeq)
		}
		passed(o.w.Commit().Seq)
		if o.retireSome(); retired() == 0 {
			t.Error("nothing is retired though the site has all")
		}
	})
}

// dropCounter counts what a store is asked to drop.
type dropCounter struct {
	journal.Store
	n *atomic.Int32
}

func (d dropCounter) Drop(ctx context.Context, m *wire.Drop) (wire.DropReply, error) {
	d.n.Add(1)
	return d.Store.Drop(ctx, m)
}

// A power cut takes a permit that is not stable, and with it the announcement of the checkpoint that allowed it; it brings no
// replica back (R13).
func TestAPermitIsStableBeforeItIsActedUpon(t *testing.T) {
	for _, stable := range []bool{false, true} {
		c := newCluster(t, 1, 2)
		var asked atomic.Int32
		c.wrap = func(s journal.Store) journal.Store { return dropCounter{s, &asked} }
		o := c.own(c.volume(1<<20, 1, control.Replicated))
		if err := writeAt(o, 0, make([]byte, 4096), true); err != nil {
			t.Fatal(err)
		}
		o.ask(o.w.CloseIdle)
		eventually(t, "it is sealed", func() bool {
			s := o.Segments()[0]
			return s.Sealed && len(s.Holders) == 2 && s.Holders[0].Stable && s.Holders[1].Stable
		})
		o.ask(func() {
			s := o.order[0]
			h := s.holder(c.seats[1].id)
			p := pendingPermit{Permit: journal.Permit{Segment: s.id, Store: h.store, Made: h.made, Remain: []ident.StoreID{c.seats[0].id}}, seq: o.w.Stable().Seq}
			if !stable {
				p.seq++
			}
			k := permitKey{s.id, h.store}
			o.permits[k] = p
			o.sendDrops()
			delete(o.permits, k)
		})
		o.Close() // what it has asked for is done
		if got := asked.Load() > 0; got != stable {
			t.Errorf("permit stable: %v, the store was asked: %v", stable, got)
		}
	}
}

// A fork is read from the checkpoint and the segments that it goes on from: while one may be there they stay (R13, R14).
func TestWhatAForkNeedsIsNotRetired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 2)
		c.limit.SegmentBytes = 64 << 10
		v := c.volume(256<<10, 1, control.Replicated)
		o := c.own(v)
		defer o.Close()
		for range 3 {
			for off := int64(0); off < v.SizeBytes; off += 32 << 10 {
				if err := writeAt(o, off, bytes.Repeat([]byte{byte(off >> 15)}, 32<<10), false); err != nil {
					t.Fatal(err)
				}
			}
		}
		// A takeover that was not proven has gone on from here.
		o.ask(func() {
			at := o.w.Commit()
			o.forks.cuts = []wire.EpochStart{{At: ident.Position{Epoch: o.epoch, Seq: at.Seq + 1}, Before: at}}
		})
		if err := o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		o.ask(func() {
			retired := func() (n int) {
				for _, s := range o.segs {
					if o.retiring(s) {
						n++
					}
				}
				return n
			}
			if len(o.m.DeadSegments()) == 0 {
				t.Error("not what the test is about: no segment is dead")
			}
			if o.retireSome(); retired() > 0 {
				t.Error("what a fork goes on from is retired")
			}
			o.forks.cuts = nil
			if o.retireSome(); retired() == 0 {
				t.Error("nothing is retired though there is no fork")
			}
		})
	})
}

// A node that was cut off gets its key in the control store back a moment after another site has taken over. The key says
// nothing about that: its owners ask before they answer (R11).
func TestALeaseThatIsPutAnewGivesNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 3, 2, time.Second)
		x := n.served(t, n.policyVolume(t, control.PartitionStop))
		o := x.srv.Load().Owners()[0]
		eventually(t, "a write", func() bool { return writeAt(o, 0, make([]byte, 4096), false) == nil })
		n.cutSiteOff(1, true)
		time.Sleep(silentAfter + time.Second)
		o.ask(func() {
			o.env.Hold.renewed(o.env.Clock(), true)
			if !o.silent() {
				t.Error("answers, and has not asked whether the journal is its own")
			}
		})
		n.cutSiteOff(1, false)
		n.stopAll()
	})
}
