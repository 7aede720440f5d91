package access

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// unitClient is an initiator's session at one node.
type unitClient struct {
	t     *testing.T
	x     *node
	v     ident.JournalID
	nexus wire.Nexus
	count uint64
}

func (x *node) client(t *testing.T, v ident.JournalID, name string) *unitClient {
	t.Helper()
	c := &unitClient{t: t, x: x, v: v, nexus: NexusOf(reserve.NexusID{Initiator: name, ISID: [6]byte{1}, Port: uint16(len(x.name)) + uint16(x.home.host[2])})}
	vol := c.volume()
	vol.Open()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := vol.Bar(ctx, &wire.Bar{Kind: wire.BarLogin, Nexus: c.nexus, Session: c.session()}); err != nil {
		t.Fatal(err)
	}
	if _, err := vol.AskUnit(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *unitClient) id() reserve.NexusID { return nexusID(&c.nexus) }

func (c *unitClient) session() uint64 {
	return uint64(c.nexus.Digest[0])<<8 | uint64(c.nexus.Digest[1])<<16 | 1
}

func (c *unitClient) volume() *Volume {
	v, ok := c.x.srv.Load().Volume(c.v)
	if !ok {
		c.t.Fatal("no volume")
	}
	return v
}

// op makes a command with a fresh stamp.
func (c *unitClient) op(kind wire.ForwardOp) *Op {
	c.count++
	op := NewOp()
	op.Kind, op.Length, op.Nexus, op.Session, op.Stamp = kind, 4096, &c.nexus, c.session(), c.volume().Stamp()
	op.Request = wire.RequestID{Forwarder: c.session(), Number: c.count}
	if kind == wire.OpWrite || kind == wire.OpOrWrite {
		op.Buf = NewWriteBuf(0, 4096)
		copy(op.Buf.Bytes(), bytes.Repeat([]byte{byte(c.count)}, 4096))
	}
	return op
}

// awaitOwner waits until one of the nodes serves the volume.
func (n *nodes) awaitOwner(v ident.JournalID, but *node) *node {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if x := n.owner(v, but); x != nil {
			return x
		}
	}
	n.t.Fatal("nobody owns the volume")
	return nil
}

// again repeats what ended with BUSY, as initiators do.
func again(f func() error) error {
	for end := time.Now().Add(time.Minute); ; {
		err := f()
		if !errors.Is(err, wire.ErrStale) && !errors.Is(err, wire.ErrBusy) || time.Now().After(end) {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (c *unitClient) do(kind wire.ForwardOp) error {
	return again(func() error {
		done := make(chan error, 1)
		op := c.op(kind)
		op.Done = func(op *Op, err error) { op.Release(); done <- err }
		c.volume().Submit(op)
		return <-done
	})
}

func (c *unitClient) change(cmd reserve.Command) (out reserve.Outcome) {
	c.t.Helper()
	cmd.Nexus, cmd.Session = c.id(), c.session()
	err := again(func() error {
		done := make(chan error, 1)
		op := c.op(wire.OpUnit)
		op.Length = 0
		c.volume().ChangeUnit(op, &cmd, func(o reserve.Outcome, err error) { out = o; done <- err })
		return <-done
	})
	if err != nil {
		c.t.Fatalf("%+v: %v", cmd, err)
	}
	return out
}

// heard gathers the events that a node was told of.
type heard struct {
	mu   sync.Mutex
	list []reserve.Event
}

func (x *node) listen() *heard {
	h := new(heard)
	x.srv.Load().ObserveUnits(func(_ *Volume, _ *reserve.Snapshot, events []reserve.Event, all bool) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.list = append(h.list, events...)
		if !all {
			h.list = append(h.list, reserve.Event{What: reserve.PowerOn, Scope: reserve.ToAll})
		}
	})
	return h
}

// of takes what there is for a nexus.
func (h *heard) of(n reserve.NexusID) (list []reserve.Attention) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.list {
		if e.Concerns(n) {
			list = append(list, e.What)
		}
	}
	return list
}

// TestReservationsAreTheSameEverywhere: SPC-4 5.13 through the access servers of two sites, over a takeover (R7).
func TestReservationsAreTheSameEverywhere(t *testing.T) {
	n := newNodes(t, 2, 2, 300*time.Millisecond)
	v := n.volume(1<<20, 1, control.Replicated)
	for _, x := range n.list {
		x.serve()
	}
	owner := n.awaitOwner(v.ID, nil)
	var others []*node
	for _, x := range n.list {
		if x != owner {
			others = append(others, x)
		}
	}
	near, far := others[0], others[len(others)-1]
	ears := map[*node]*heard{}
	for _, x := range n.list {
		ears[x] = x.listen()
	}
	a, b, c := owner.client(t, v.ID, "iqn.a"), near.client(t, v.ID, "iqn.b"), far.client(t, v.ID, "iqn.c")

	for _, x := range []*unitClient{a, b} {
		if o := x.change(reserve.Command{Action: reserve.Register, ServiceKey: 1}); o != reserve.Good {
			t.Fatal(o)
		}
	}
	if o := b.change(reserve.Command{Action: reserve.Reserve, Key: 1, Type: reserve.WriteExclusive}); o != reserve.Good {
		t.Fatal(o)
	}
	if o := a.change(reserve.Command{Action: reserve.Reserve, Key: 1, Type: reserve.WriteExclusive}); o != reserve.Conflict {
		t.Errorf("a second reservation: %d", o)
	}
	check := func(when string) {
		t.Helper()
		if err := b.do(wire.OpWrite); err != nil {
			t.Errorf("%s: write of the holder: %v", when, err)
		}
		for _, x := range []*unitClient{a, c} {
			if err := x.do(wire.OpWrite); !errors.Is(err, wire.ErrDenied) {
				t.Errorf("%s: write by %s: %v", when, x.nexus.Initiator, err)
			}
			if err := x.do(wire.OpRead); err != nil {
				t.Errorf("%s: read by %s: %v", when, x.nexus.Initiator, err)
			}
		}
	}
	check("reserved")

	// The owner's process ends: another server of the site takes over, with the reservation.
	owner.stop()
	owner.serve()
	owner.listen()
	next := n.awaitOwner(v.ID, nil)
	if err := again(func() error { _, err := b.volume().AskUnit(context.Background()); return err }); err != nil {
		t.Fatal(err)
	}
	a = owner.client(t, v.ID, "iqn.a")
	check("after a takeover")
	_ = next

	// PREEMPT AND ABORT by a, at its own server: b learns of it before a has its answer.
	if o := a.change(reserve.Command{Action: reserve.PreemptAndAbort, Key: 1, ServiceKey: 1, Type: reserve.ExclusiveAccess}); o != reserve.Good {
		t.Fatalf("preempt: %d", o)
	}
	if got := ears[near].of(b.id()); len(got) == 0 || got[len(got)-1] != reserve.RegistrationsPreempted {
		t.Errorf("the preempted was told of %v", got)
	}
	if err := b.do(wire.OpRead); !errors.Is(err, wire.ErrDenied) {
		t.Errorf("read of the preempted: %v", err)
	}
}

// TestResetReachesEveryNode: SAM-5 6.3.3: a logical unit reset by one nexus is every nexus's unit attention, and
// what RESERVE had reserved is free.
func TestResetReachesEveryNode(t *testing.T) {
	n := newNodes(t, 2, 2, 300*time.Millisecond)
	v := n.volume(1<<20, 1, control.Replicated)
	ears := map[*node]*heard{}
	for _, x := range n.list {
		x.serve()
		ears[x] = x.listen()
	}
	n.awaitOwner(v.ID, nil)
	var clients []*unitClient
	for i, x := range n.list {
		clients = append(clients, x.client(t, v.ID, string(rune('a'+i))))
	}
	if o := clients[0].change(reserve.Command{Action: reserve.LegacyReserve}); o != reserve.Good {
		t.Fatal(o)
	}
	if err := clients[1].do(wire.OpRead); !errors.Is(err, wire.ErrDenied) {
		t.Errorf("read under another's RESERVE: %v", err)
	}
	late := clients[2].op(wire.OpWrite) // sent before the reset, on its way
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	last := clients[len(clients)-1]
	time.Sleep(5 * time.Millisecond) // another tick than that of the late command
	if err := last.volume().Bar(ctx, &wire.Bar{Kind: wire.BarLUNReset, Nexus: last.nexus}); err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		if got := ears[n.list[i]].of(c.id()); len(got) == 0 || got[len(got)-1] != reserve.DeviceReset {
			t.Errorf("client %d was told of %v", i, got)
		}
		if err := c.do(wire.OpWrite); err != nil {
			t.Errorf("write of client %d after the reset: %v", i, err)
		}
	}
	done := make(chan error, 1)
	late.Done = func(op *Op, err error) { op.Release(); done <- err }
	clients[2].volume().Submit(late)
	if err := <-done; !errors.Is(err, wire.ErrStale) {
		t.Errorf("a command of before the reset: %v", err)
	}
}

// TestAServerThatWasAwayLearnsOfEvents: one that could not be reached when something happened asks once it sees by
// the owner's tick that its version is old.
func TestAServerThatWasAwayLearnsOfEvents(t *testing.T) {
	n := newNodes(t, 1, 3, 300*time.Millisecond)
	v := n.volume(1<<20, 1, control.Replicated)
	for _, x := range n.list {
		x.serve()
	}
	owner := n.awaitOwner(v.ID, nil)
	var away *node
	for _, x := range n.list {
		if x != owner {
			away = x
		}
	}
	ear := away.listen()
	a, b := owner.client(t, v.ID, "iqn.a"), away.client(t, v.ID, "iqn.b")
	away.cut.Store(true)
	if o := a.change(reserve.Command{Action: reserve.SetModes, Modes: reserve.Modes{CacheOff: true}}); o != reserve.Good {
		t.Fatal(o)
	}
	if got := ear.of(b.id()); len(got) != 0 {
		t.Fatalf("a server that is cut off was told of %v", got)
	}
	away.cut.Store(false)
	for end := time.Now().Add(time.Minute); len(ear.of(b.id())) == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
	if got := ear.of(b.id()); len(got) != 1 || got[0] != reserve.ModeParametersChanged {
		t.Errorf("told of %v", got)
	}
	if !b.volume().Unit().State.Current.CacheOff {
		t.Error("the mode parameters are the old ones")
	}
}

// TestModesHaveEffect: SWP refuses writes; without a write cache every write is stable when it is answered.
func TestModesHaveEffect(t *testing.T) {
	n := newNodes(t, 1, 2, 300*time.Millisecond)
	v := n.volume(1<<20, 1, control.Replicated)
	for _, x := range n.list {
		x.serve()
	}
	owner := n.awaitOwner(v.ID, nil)
	a := owner.client(t, v.ID, "iqn.a")
	if o := a.change(reserve.Command{Action: reserve.SetModes, Modes: reserve.Modes{WriteProtect: true}}); o != reserve.Good {
		t.Fatal(o)
	}
	for _, kind := range []wire.ForwardOp{wire.OpWrite, wire.OpTrim, wire.OpOrWrite} {
		if err := a.do(kind); !errors.Is(err, wire.ErrProtected) {
			t.Errorf("%s with SWP: %v", kind, err)
		}
	}
	if o := a.change(reserve.Command{Action: reserve.SetModes, Modes: reserve.Modes{CacheOff: true}}); o != reserve.Good {
		t.Fatal(o)
	}
	for range 5 {
		if err := a.do(wire.OpWrite); err != nil {
			t.Fatal(err)
		}
		o := a.volume().Owner()
		var at, stable ident.Seq
		o.ask(func() { at, stable = o.w.Commit().Seq, o.w.Stable().Seq })
		if stable < at {
			t.Errorf("answered at %d, stable up to %d", at, stable)
		}
	}
}

// TestUnitStateInCheckpoints: what a checkpoint covers isn't replayed, so the state has to be in it.
func TestUnitStateInCheckpoints(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	change := func(cmd *reserve.Command) {
		t.Helper()
		op := NewOp()
		op.Kind, op.Unit = wire.OpUnit, cmd.Append(nil)
		if err := do(o, op); err != nil {
			t.Fatal(err)
		}
	}
	nexus := reserve.NexusID{Initiator: "iqn.a", Port: 1}
	change(&reserve.Command{Action: reserve.Register, Nexus: nexus, ServiceKey: 5, Persist: true})
	change(&reserve.Command{Action: reserve.Reserve, Nexus: nexus, Key: 5, Type: reserve.ExclusiveAccess})
	if err := o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"after a checkpoint", "after a record since"} {
		old := o
		o = c.own(v)
		old.Close()
		var s *reserve.State
		o.ask(func() { s = o.unit.state })
		if s.Type != reserve.ExclusiveAccess || !s.Persist || !s.Holds(nexus) {
			t.Errorf("%s: %+v", what, s)
		}
		change(&reserve.Command{Action: reserve.SetModes, Nexus: nexus, Modes: reserve.Modes{DescriptorSense: true}})
	}
}

// TestAClientChangesInItsOwnNameOnly: what a forwarder hands on for a client is an action of clients, and for that one.
func TestAClientChangesInItsOwnNameOnly(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	<-o.Serving()
	a, b := reserve.NexusID{Initiator: "iqn.a", Port: 1}, reserve.NexusID{Initiator: "iqn.b", Port: 1}
	by := NexusOf(a)
	change := func(cmd reserve.Command) error {
		op := NewOp()
		op.Kind, op.Unit, op.Nexus, op.Session, op.Stamp = wire.OpUnit, cmd.Append(nil), &by, 1, o.Stamp()
		return do(o, op)
	}
	if err := change(reserve.Command{Action: reserve.Register, Nexus: a, Session: 1, ServiceKey: 5}); err != nil {
		t.Errorf("its own registration: %v", err)
	}
	if err := change(reserve.Command{Action: reserve.Register, Nexus: b, Session: 1, ServiceKey: 5}); !errors.Is(err, wire.ErrBadRequest) {
		t.Errorf("the registration of another one: %v", err)
	}
	for _, action := range []reserve.Action{reserve.SanitizeEnd, reserve.ThresholdCrossed, reserve.Reset, reserve.ClearTasks, reserve.Evict} {
		if err := change(reserve.Command{Action: action, Nexus: a, Session: 1}); !errors.Is(err, wire.ErrBadRequest) {
			t.Errorf("action %#x: %v", action, err)
		}
	}
	var s *reserve.State
	o.ask(func() { s = o.unit.state })
	if s.Registered(a) == nil || s.Registered(b) != nil {
		t.Errorf("registered: %v, %v", s.Registered(a), s.Registered(b))
	}
	o.Close()
}

// TestThresholds: SBC-3 4.7.3.7: crossing one is told once, if LBPERE asks for it, and again after it was left.
func TestThresholds(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(16<<20, 1, control.Replicated)
	o := c.own(v)
	events := func() (n uint64) {
		time.Sleep(time.Millisecond)
		o.ask(o.checkThresholds)
		for range 100 {
			var flying bool
			o.ask(func() {
				n, flying = o.unit.committed.Events, o.unit.state != o.unit.committed && o.unit.state.Version != o.unit.committed.Version
			})
			if !flying {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		return n
	}
	set := func(m reserve.Modes) {
		t.Helper()
		op := NewOp()
		op.Kind, op.Unit = wire.OpUnit, (&reserve.Command{Action: reserve.SetModes, Modes: m}).Append(nil)
		if err := do(o, op); err != nil {
			t.Fatal(err)
		}
	}
	set(reserve.Modes{ThresholdUsed: 1})
	if err := writeAt(o, 0, make([]byte, 128<<10), false); err != nil {
		t.Fatal(err)
	}
	before := events()
	for i := range 10 {
		if err := writeAt(o, int64(i)*(128<<10), bytes.Repeat([]byte{1}, 128<<10), false); err != nil {
			t.Fatal(err)
		}
	}
	if got := events(); got != before {
		t.Errorf("told without LBPERE: %d events, then %d", before, got)
	}
	set(reserve.Modes{ThresholdUsed: 1, ReportThresholds: true})
	o.ask(func() { o.unit.resources.told = [2]bool{} })
	before, _ = events(), events()
	var last reserve.Event
	o.ask(func() { last = o.unit.events[len(o.unit.events)-1] })
	if last.What != reserve.ThresholdReached || last.Scope != reserve.ToAll || events() != before {
		t.Errorf("last event %+v; %d events, then %d", last, before, events())
	}
	// SBC-3 4.7.3.7.5: told again after its range was left, which is half a threshold set to either side.
	trim := func(n int64) {
		t.Helper()
		op := NewOp()
		op.Kind, op.Length = wire.OpTrim, n
		if err := do(o, op); err != nil {
			t.Fatal(err)
		}
	}
	rise := func() {
		for i := range 8 {
			if err := writeAt(o, int64(i)*(128<<10), bytes.Repeat([]byte{1}, 128<<10), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	before = events()
	trim(512 << 10) // of 1,280 KiB
	if events(); events() != before {
		t.Errorf("%d events, then %d below it", before, events())
	}
	rise()
	if got := events(); got != before {
		t.Errorf("%d events, then %d: told again within its range", before, got)
	}
	trim(1 << 20)
	events()
	rise()
	if got := events(); got != before+1 {
		t.Errorf("%d events, then %d: its range was left", before, got)
	}
	if got := pairs([]uint64{10, 4, 3}); got != 7 {
		t.Errorf("on two of 10, 4, 3 fit %d", got)
	}
	if got := pairs([]uint64{10, 10, 10}); got != 15 {
		t.Errorf("on two of 10, 10, 10 fit %d", got)
	}
}

// TestTokensEndWithTheirData: a write to its ranges ends a token, and so does a new owner.
func TestTokensEndWithTheirData(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	call := func(x TokenCall) (TokenCall, error) {
		op := NewOp()
		op.Kind, op.Unit = wire.OpToken, x.Append(nil)
		if err := do(o, op); err != nil {
			return x, err
		}
		return DecodeTokenCall(op.Data[0])
	}
	make1 := func() TokenCall {
		t.Helper()
		x, err := call(TokenCall{What: TokenCreate, Seconds: 60, Ranges: []TokenRange{{8192, 4096}, {65536, 512}}})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	x := make1()
	if err := writeAt(o, 0, make([]byte, 8192), false); err != nil { // beside it
		t.Fatal(err)
	}
	if got, err := call(TokenCall{What: TokenUse, ID: x.ID}); err != nil || len(got.Ranges) != 2 || got.Ranges[0] != (TokenRange{8192, 4096}) {
		t.Fatalf("use: %+v, %v", got, err)
	}
	if err := writeAt(o, 65536, make([]byte, 4096), false); err != nil {
		t.Fatal(err)
	}
	if _, err := call(TokenCall{What: TokenUse, ID: x.ID}); !errors.Is(err, wire.ErrMismatch) {
		t.Errorf("use after a write: %v", err)
	}
	x = make1()
	old := o
	o = c.own(v)
	old.Close()
	if _, err := call(TokenCall{What: TokenUse, ID: x.ID}); !errors.Is(err, wire.ErrMismatch) {
		t.Errorf("use at the next owner: %v", err)
	}
}

// TestATokenWaitsForWritesInFlight: a token stands for one state of its ranges, so it is told once the writes before it are
// committed, and can be read. It does not wait for those behind it: they end it.
func TestATokenWaitsForWritesInFlight(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	for i, again := range []bool{false, true} {
		var list []chan error
		var mu sync.Mutex
		var order []int // of the answers
		submit := func(op *Op) {
			done := make(chan error, 1)
			n := len(list)
			list = append(list, done)
			op.Done = func(_ *Op, err error) {
				mu.Lock()
				order = append(order, n)
				mu.Unlock()
				done <- err
			}
			op.first, op.count = uint64(op.Offset)/journal.BlockSize, uint64(op.Length)/journal.BlockSize
			o.admit(op)
		}
		write := func(fill byte) {
			op := NewOp()
			op.Kind, op.Offset, op.Length, op.Buf = wire.OpWrite, 8192, 4096, NewWriteBuf(8192, 4096)
			copy(op.Buf.Bytes(), filled(fill))
			op.Buf.sum()
			submit(op)
		}
		token := NewOp()
		token.Kind, token.Unit = wire.OpToken, (&TokenCall{What: TokenCreate, Seconds: 60, Ranges: []TokenRange{{0, 512}, {8704, 512}}}).Append(nil)
		o.ask(func() { // nothing is committed within a turn of the loop
			write(byte(2*i + 1))
			submit(token)
			if again {
				write(byte(2*i + 2))
			}
		})
		for _, done := range list {
			answered(t, "write or token", done)
		}
		if order[0] != 0 {
			t.Errorf("answers in the order %v: the token is told before what it stands for is committed", order)
		}
		made, err := DecodeTokenCall(token.Data[0])
		if err != nil {
			t.Fatal(err)
		}
		use := NewOp()
		use.Kind, use.Unit = wire.OpToken, (&TokenCall{What: TokenUse, ID: made.ID}).Append(nil)
		if err := do(o, use); again != errors.Is(err, wire.ErrMismatch) || !again && err != nil {
			t.Errorf("written again %v: use of the token: %v", again, err)
		}
	}
}

func FuzzDecodeTokenCall(f *testing.F) {
	f.Add((&TokenCall{What: TokenCreate, Seconds: 9, Ranges: []TokenRange{{1, 2}}}).Append(nil))
	f.Add((&TokenCall{What: TokenUse, Whole: true, State: TokenExpired, Life: 3, Made: ident.Epoch{Number: 1, Lineage: 2}, Digest: [32]byte{4}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := DecodeTokenCall(b); err == nil && !bytes.Equal(c.Append(nil), b) {
			t.Fatalf("%x came back as %x", b, c.Append(nil))
		}
	})
}
