package access

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// ackVolume makes a volume that is acknowledged with k other sites.
func (c *cluster) ackVolume(sites, k int, p control.Partition) control.VolumeSpec {
	c.t.Helper()
	var ids []ident.SiteID
	for i := range sites {
		ids = append(ids, ident.SiteID(i+1))
	}
	v, err := c.ctl.CreateVolume(context.Background(), control.VolumeSpec{Name: "v", SizeBytes: 1 << 20, BlockSize: 512, Sites: sites, AtSite: 1, Ack: k, Partition: p}, ids)
	if err != nil {
		c.t.Fatal(err)
	}
	return v
}

// setAck changes the policy, as an owner learns of it.
func (c *cluster) setAck(o *Owner, v *control.VolumeSpec, k int) {
	c.t.Helper()
	x, err := c.ctl.UpdateVolume(context.Background(), v.ID, func(v *control.VolumeSpec) error {
		v.Ack = k
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	*v = x
	if o != nil {
		o.SetSpec(x)
	}
}

func filled(i byte) []byte { return bytes.Repeat([]byte{i}, 4096) }

func put(t *testing.T, o *Owner, block int64, i byte) {
	t.Helper()
	if err := writeAt(o, block*4096, filled(i), false); err != nil {
		t.Fatal(err)
	}
}

// held waits until a command waits for other sites, or is answered.
func ackWaits(t *testing.T, o *Owner, op *Op, answer chan error) (waits bool) {
	t.Helper()
	eventually(t, "the command waits or is answered", func() bool {
		o.ask(func() {
			waits = slices.Contains(o.ack.wait, op) || slices.Contains(o.stableWait, op) || slices.Contains(o.waiting, op)
		})
		return waits || len(answer) > 0
	})
	return waits && len(answer) == 0
}

func answered(t *testing.T, what string, answer chan error) {
	t.Helper()
	select {
	case err := <-answer:
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s: no answer", what)
	}
}

func readOp(block int64) *Op {
	op := NewOp()
	op.Kind, op.Offset, op.Length = wire.OpRead, block*4096, 4096
	return op
}

// Of writes, FUA writes and flushes none is answered before K other sites have what it stands for, and all go on when a
// site is back. The volume says what it waits for.
func TestAWriteWaitsForOtherSites(t *testing.T) {
	for k := 1; k <= 2; k++ {
		t.Run(control.AckText(k), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3, 2)
			v := c.ackVolume(3, k, "")
			o := c.own(v)
			put(t, o, 0, 1)
			if err := simple(o, wire.OpFlush, 0, 0); err != nil {
				t.Fatal(err)
			}
			c.killSite(2)
			if k == 1 { // one of the others is enough
				put(t, o, 0, 2)
				c.killSite(3)
			}
			write, fua, flush := writeOp(0, filled(3)), writeOp(4096, filled(3)), NewOp()
			fua.FUA, flush.Kind = true, wire.OpFlush
			ops := []*Op{write, fua, flush}
			var answers []chan error
			for _, op := range ops {
				answers = append(answers, send(o, op))
			}
			for i, op := range ops {
				if !ackWaits(t, o, op, answers[i]) {
					t.Fatalf("command %d is answered, and %d sites are away", i, 3-k)
				}
			}
			o.ask(o.publish)
			if s := o.View().State; !strings.HasPrefix(s, "waiting for other sites") || !strings.Contains(s, "site-2 can not be reached") {
				t.Errorf("state: %s", s)
			}
			o.ask(func() {
				if s := o.whatFlushesWaitFor(o.w.Commit().Seq); !strings.Contains(s, "on stable storage (--ack site:") {
					t.Errorf("a flush waits for: %s", s)
				}
			})
			eventually(t, "it is among the events", func() bool { return len(c.events("volume.ack-waits")) == 1 })
			c.startSite(2)
			for i := range ops {
				answered(t, "after the site is back", answers[i])
			}
			eventually(t, "the end, too", func() bool { return len(c.events("volume.ack-goes-on")) == 1 })
			o.ask(o.publish)
			if s := o.View().State; s != "serving" {
				t.Errorf("state: %s", s)
			}
			o.Close()
		})
	}
}

// What K other sites do not hold is shown to nobody: not by a read, nor by COMPARE AND WRITE, nor by a reservation conflict;
// and not by the next owner of the site, who can not tell it from all the rest. Other blocks are read meanwhile.
func TestWhatOtherSitesDoNotHoldIsNotRead(t *testing.T) {
	c := newCluster(t, 2, 3)
	v := c.ackVolume(2, 1, "")
	o := c.own(v)
	put(t, o, 0, 1)
	put(t, o, 1, 1)
	c.killSite(2)
	write := writeOp(0, filled(2))
	written := send(o, write)
	if !ackWaits(t, o, write, written) {
		t.Fatal("the write is answered")
	}
	read, swap := readOp(0), swapOp(0, 7, 8)
	seen, swapped := send(o, read), send(o, swap)
	if !ackWaits(t, o, read, seen) {
		t.Fatal("a read shows a write that no other site holds")
	}
	time.Sleep(20 * time.Millisecond)
	if len(swapped) > 0 {
		t.Fatalf("COMPARE AND WRITE shows a write that no other site holds: %v", <-swapped)
	}
	if d, err := readAt(o, 4096, 4096); err != nil || d[0] != 1 {
		t.Errorf("another block: %v", err)
	}
	next := c.own(v)
	later := readOp(1)
	laterSeen := send(next, later)
	if !ackWaits(t, next, later, laterSeen) {
		t.Fatal("the next owner shows what it can not know to be held by another site")
	}
	c.startSite(2)
	answered(t, "the next owner's read", laterSeen)
	if d, err := readAt(next, 0, 4096); err != nil || d[0] != 2 {
		t.Errorf("the write that had two copies at home: %v, %d", err, d[0])
	}
	o.Close() // its commands have got their errors by now, or get them
	for _, a := range []chan error{written, seen, swapped} {
		<-a
	}
	next.Close()
}

// A change of reservations that no other site holds decides about no command.
func TestAReservationWaitsForOtherSites(t *testing.T) {
	c := newCluster(t, 2, 2)
	v := c.ackVolume(2, 1, "")
	o := c.own(v)
	put(t, o, 0, 1)
	c.killSite(2)
	nexus := func(name string) *wire.Nexus {
		x := NexusOf(reserve.NexusID{Initiator: name, ISID: [6]byte{1}, Port: 1})
		return &x
	}
	holder, other := nexus("iqn.2026-11.test:a"), nexus("iqn.2026-11.test:b")
	op := NewOp()
	op.Kind, op.Nexus, op.Session = wire.OpUnit, holder, 1
	op.Stamp = o.Stamp()
	op.Unit = (&reserve.Command{Action: reserve.LegacyReserve, Nexus: nexusID(holder), Session: 1}).Append(nil)
	reserved := send(o, op)
	eventually(t, "the change is committed", func() (yes bool) {
		o.ask(func() { yes = o.unit.committed.Legacy != nil })
		return yes || len(reserved) > 0
	})
	read := readOp(0)
	read.Nexus, read.Session, read.Stamp = other, 2, o.Stamp()
	conflict := send(o, read)
	if !ackWaits(t, o, read, conflict) {
		t.Error("a command is refused by a reservation that no other site holds")
	}
	if len(reserved) > 0 {
		t.Error("the reservation is answered")
	}
	c.startSite(2)
	answered(t, "the reservation", reserved)
	if err := <-conflict; !errors.Is(err, wire.ErrDenied) && !errors.Is(err, wire.ErrStale) {
		t.Errorf("the other initiator: %v", err)
	}
	o.Close()
}

// A site burns while it is written; another one goes on, with everything that was acknowledged, and says so. What nobody was
// told of is left behind. The survivor serves reads at once, and writes once a site is back or the policy is lowered.
func TestASiteTakeoverLeavesNothingAcknowledgedBehind(t *testing.T) {
	c := newCluster(t, 2, 2)
	c.limit.SegmentBytes = 64 << 10
	v := c.ackVolume(2, 1, "")
	o := c.own(v)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	n.writes(t, o, 60)
	c.killSite(2)
	beyond := writeOp(63*4096, filled(9))
	lost := send(o, beyond)
	if !ackWaits(t, o, beyond, lost) {
		t.Fatal("a write is answered without the other site")
	}
	c.killSite(1)
	o.Close()
	<-lost
	c.startSite(2)
	c.at(2)
	state := c.forceHearing(t, v, 1, 1)
	if f := state.Forced; f == nil || f.From != 1 || f.Hear != 1 || state.Ack != 1 {
		t.Fatalf("the key: %+v", state)
	}
	o = c.own(v)
	if o.proven || !o.ack.kept || o.ack.silent {
		t.Errorf("proven %v, kept %v, silent %v", o.proven, o.ack.kept, o.ack.silent)
	}
	n.check(t, o, n.acked, "after the takeover")
	o.ask(o.publish)
	if x := o.View(); !x.Kept || x.Lost != 0 {
		t.Errorf("kept %v, lost %d", x.Kept, x.Lost)
	}
	eventually(t, "it is among the events", func() bool { return len(c.events("volume.kept")) == 1 })
	if len(c.events("volume.unproven")) != 0 {
		t.Error("and it is said to have lost something")
	}
	write := writeOp(0, filled(7))
	answer := send(o, write)
	if !ackWaits(t, o, write, answer) {
		t.Fatal("a write is answered, and there is no other site")
	}
	c.setAck(o, &v, 0)
	answered(t, "the policy was lowered", answer)
	if s := c.listed(v); s.Ack != 0 {
		t.Errorf("the key says %d", s.Ack)
	}
	o.Close()
}

// forceHearing is force by a takeover that has to hear so many sites.
func (c *cluster) forceHearing(t *testing.T, v control.VolumeSpec, lost ident.SiteID, hear int) control.JournalState {
	t.Helper()
	state, rev, err := c.ctl.JournalNow(context.Background(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, known := c.ctl.Node("n1"); !known {
		_, err := c.ctl.RegisterNode(context.Background(), control.Node{Name: "n1", Site: 1, HostID: "1/0", Roles: []control.Role{control.RoleCore, control.RoleAccess}, Version: "test"})
		if err != nil {
			t.Fatal(err)
		}
	}
	var gone []ident.StoreID
	for _, e := range state.Ensembles {
		for _, s := range e.Stores {
			if c.Site(s) == lost {
				gone = append(gone, s)
			}
		}
	}
	state, _, err = c.ctl.ForceJournal(context.Background(), v.ID, rev, "n1", gone, "", hear, false)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// Of three sites with K = 1, a write is acknowledged with site 2 alone. Site 1 burns. A takeover that hears site 3 alone could leave
// it behind: it waits for site 2, and for all of its servers.
func TestASiteTakeoverHearsEnoughSites(t *testing.T) {
	c := newCluster(t, 3, 3) // so many that no other site has a member of an ensemble
	c.limit.UncertainWait = 500 * time.Millisecond
	v := c.ackVolume(3, 1, "")
	o := c.own(v)
	put(t, o, 0, 1)
	c.inStep(t, o)
	c.killSite(3)
	put(t, o, 0, 2)
	if err := simple(o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	c.killSite(1)
	c.killSite(2)
	o.Close()
	c.startSite(3)
	c.at(3)
	c.forceHearing(t, v, 1, 2)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	if early, err := TakeOver(ctx, c.env(), v); err == nil {
		<-early.Serving()
		d, _ := readAt(early, 0, 4096)
		t.Errorf("a takeover hears one site of two that it needs, and serves %d", d[0])
		early.Close()
	}
	cancel()
	taken := make(chan *Owner, 1)
	go func() {
		o, err := TakeOver(context.Background(), c.env(), v)
		if err != nil {
			t.Error(err)
		}
		taken <- o
	}()
	var site2 []*seat
	for _, s := range c.seats {
		if s.site == 2 {
			site2 = append(site2, s)
		}
	}
	c.start(site2[0])
	c.start(site2[1])
	select {
	case <-taken:
		t.Fatal("a takeover goes on with two of three servers of a site")
	case <-time.After(time.Second):
	}
	c.start(site2[2])
	o = <-taken
	if o == nil {
		t.FailNow()
	}
	if d, err := readAt(o, 0, 4096); err != nil || d[0] != 2 {
		t.Errorf("the acknowledged write: %v, %v", d[:1], err)
	}
	if !o.ack.kept {
		t.Error("and it is not known to be there")
	}
	put(t, o, 1, 3) // with the other one of the two
	o.Close()
}

// A site that has lost its power may have lost what it was counted with: it is not heard whole until that was made good.
func TestASiteThatLostItsPowerIsNotHeardWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, 2)
		v := c.ackVolume(2, 1, "")
		o := c.own(v)
		put(t, o, 0, 1)
		for _, s := range c.seats {
			if s.site == 2 {
				c.powerCut(s)
			}
		}
		whole := func() (yes bool) {
			answers := fenceAnswers{}
			for _, s := range c.seats {
				if s.site != 2 {
					continue
				}
				r, err := s.Inventory(context.Background(), &wire.Inventory{Journal: v.ID})
				if err != nil {
					return false
				}
				answers[s.id] = &wire.FenceReply{Replicas: r.Replicas}
			}
			o.ask(func() { yes = slices.Contains(o.wholeSites(answers), 2) })
			return yes
		}
		c.startSite(2)
		if whole() {
			t.Error("a site that has lost its page cache is heard whole")
		}
		// With the next write the owner notices, ends the segment that the site is unsure of, and ships it. Without one it does so
		// when the segment was idle for a minute.
		put(t, o, 0, 2)
		eventually(t, "it is whole again", whole)
		// So it does if the store that has it comes back after the other one.
		for _, first := range []int{2, 3} {
			for _, s := range c.seats[2:] {
				c.powerCut(s)
			}
			c.start(c.seats[first])
			put(t, o, 0, byte(first+1))
			c.start(c.seats[5-first])
			eventually(t, "it is whole again, whichever store came first", whole)
		}
		o.Close()
	})
}

// The policy is changed while the volume is served. What counts is the owner's word in the key: it is there only once other
// sites hold everything, it stays through a takeover, and answers wait until it is taken back.
func TestTheAcknowledgementPolicyIsChanged(t *testing.T) {
	c := newCluster(t, 3, 2)
	v := c.volume(1<<20, 3, control.Replicated)
	o := c.own(v)
	c.killSite(2)
	c.killSite(3)
	put(t, o, 0, 1)
	c.setAck(o, &v, 1)
	put(t, o, 0, 2) // nobody is told otherwise yet
	time.Sleep(50 * time.Millisecond)
	if s := c.listed(v); s.Ack != 0 {
		t.Errorf("the key says %d, and no other site has anything", s.Ack)
	}
	put(t, o, 0, 3)
	c.startSite(2)
	eventually(t, "it is in the key", func() bool { return c.listed(v).Ack == 1 })
	since := c.listed(v).AckSince
	if since == 0 || since > o.w.Commit().Seq {
		t.Errorf("since %d", since)
	}
	eventually(t, "it is among the events", func() bool { return len(c.events("volume.ack")) == 1 })
	c.setAck(o, &v, 2)
	put(t, o, 0, 4)
	c.killSite(2)
	write := writeOp(0, filled(5))
	answer := send(o, write)
	if !ackWaits(t, o, write, answer) {
		t.Fatal("while it is raised further, the former policy is not kept to")
	}
	// Another owner of the site finds it in the key. Lowered, the key is changed before anything is answered by it.
	next := c.own(v)
	other := writeOp(4096, filled(6))
	otherAnswer := send(next, other)
	if !ackWaits(t, next, other, otherAnswer) {
		t.Fatal("the next owner answers against the key")
	}
	c.setAck(next, &v, 0)
	answered(t, "lowered while it waits", otherAnswer)
	if s := c.listed(v); s.Ack != 0 || s.AckSince != 0 {
		t.Errorf("the key says %d since %d", s.Ack, s.AckSince)
	}
	put(t, next, 0, 7)
	o.Close()
	<-answer
	next.Close()
}

// A flush is on stable storage of the other site when it returns: both sites lose their power, and the other one has it.
func TestAFlushIsStableAtOtherSites(t *testing.T) {
	c := newCluster(t, 2, 2)
	v := c.ackVolume(2, 1, "")
	o := c.own(v)
	for i := range 20 {
		put(t, o, int64(i), byte(i+1))
	}
	if err := simple(o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := writeAt(o, 20*4096, filled(21), true); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.seats {
		c.powerCut(s)
	}
	o.Close()
	c.startSite(2)
	c.at(2)
	c.forceHearing(t, v, 1, 0)
	o = c.own(v)
	if o.ack.kept {
		t.Error("a site that has lost its power is said to have all that was acknowledged")
	}
	for i := range 21 {
		if d, err := readAt(o, int64(i)*4096, 4096); err != nil || d[0] != byte(i+1) {
			t.Fatalf("block %d: %v, %v", i, d[:1], err)
		}
	}
	o.Close()
}

// Impossible pairs of copies and policy are refused.
func TestAckIsHeldAgainstCopies(t *testing.T) {
	c := newCluster(t, 3, 1)
	for _, x := range []struct {
		sites, ack int
		ok         bool
	}{{1, 0, true}, {1, 1, false}, {2, 1, true}, {2, 2, false}, {3, 2, true}, {3, 3, false}, {3, -1, false}} {
		v := control.VolumeSpec{ID: ident.NewJournalID(), Tenant: "default", Name: "v", SizeBytes: 1 << 20, BlockSize: 512, Sites: x.sites, AtSite: 1,
			Durability: control.Replicated, Partition: control.PartitionContinue, Ack: x.ack}
		if err := v.Validate(); (err == nil) != x.ok || err != nil && !errors.Is(err, control.ErrInvalid) {
			t.Errorf("%d sites, ack %d: %v", x.sites, x.ack, err)
		}
	}
	v := c.ackVolume(3, 2, "")
	_, err := c.ctl.UpdateVolume(context.Background(), v.ID, func(v *control.VolumeSpec) error { v.Sites = 2; return nil })
	if !errors.Is(err, control.ErrInvalid) || !strings.Contains(err.Error(), "want local or site:1") {
		t.Errorf("fewer copies: %v", err)
	}
}

// A site is cut off from a volume with site:1 and the policy stop. What is written there meanwhile is not acknowledged; another site takes over by
// itself, with everything that was, says so, and ports that were attached go on without errors. The old site's write is a fork.
func TestASiteThatIsCutOffKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 3, 2, time.Second)
		v := n.ackVolume(3, 1, control.PartitionStop)
		x := n.served(t, v)
		o := x.srv.Load().Owners()[0]
		eventually(t, "a write", func() bool { return writeAt(o, 0, filled(1), false) == nil })
		var near *node // of another site
		for _, y := range n.list {
			if y.home.site != x.home.site {
				near = y
			}
		}
		client := near.client(t, v.ID, "iqn.2026-11.test:a")
		read := func() error {
			done := make(chan error, 1)
			op := client.op(wire.OpRead)
			op.Done = func(op *Op, err error) {
				if err == nil && op.Data[0][0] == 9 {
					err = errors.New("a write that was never acknowledged")
				}
				op.Release()
				done <- err
			}
			client.volume().Submit(op)
			select {
			case err := <-done:
				return err
			case <-time.After(time.Minute):
				return errors.New("no answer")
			}
		}
		eventually(t, "the client's read", func() bool { return read() == nil })
		n.inStep(t, o)
		time.Sleep(3 * time.Second)
		n.cutSiteOff(x.home.site, true)
		// It commits what it gets: two stores of its site take it.
		beyond := writeOp(0, filled(9))
		lost := send(o, beyond)
		eventually(t, "another site has taken it over", func() bool { return n.listed(v).Owner != x.name })
		eventually(t, "and serves it", func() bool { y := n.owner(v.ID, nil); return y != nil && y != x })
		o2 := n.owner(v.ID, nil).srv.Load().Owners()[0]
		if o2.proven || !o2.ack.kept || !o2.ack.silent {
			t.Errorf("proven %v, kept %v, silent %v", o2.proven, o2.ack.kept, o2.ack.silent)
		}
		eventually(t, "the client's read after the takeover", func() bool {
			err := read()
			if errors.Is(err, wire.ErrUnproven) {
				t.Fatal("an attached port gets errors, though nothing that was acknowledged is missing")
			}
			return err == nil
		})
		if d, err := readAt(o2, 0, 4096); err != nil || d[0] != 1 {
			t.Errorf("the acknowledged write: %v", err)
		}
		if err := writeAt(o2, 4096, filled(2), false); err != nil {
			t.Errorf("a write with the other one of the sites that are left: %v", err)
		}
		n.cutSiteOff(x.home.site, false)
		eventually(t, "the old owner is over", func() bool { return isClosed(o.Stopped()) })
		if err := <-lost; err == nil {
			t.Error("a write is acknowledged at a site that is cut off")
		}
		eventually(t, "what was left behind is reported", func() bool { return len(n.events("volume.fork")) > 0 })
		n.inStep(t, o2)
		// The specification reaches the owner by itself.
		if _, err := n.ctl.UpdateVolume(t.Context(), v.ID, func(v *control.VolumeSpec) error { v.Ack = 0; return nil }); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the owner goes by the changed policy", func() bool { return n.listed(v).Ack == 0 })
		n.stopAll()
	})
}
