package access

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/wire"
)

// port is an initiator with a session, as its access server would speak for it.
type port struct {
	nexus   wire.Nexus
	session uint64
}

func newPort(name string, isid byte, group uint16, session uint64) *port {
	n := wire.Nexus{Initiator: name, ISID: [6]byte{isid}, TPGT: group}
	copy(n.Digest[:], name)
	n.Digest[14], n.Digest[15] = isid, byte(group)
	return &port{n, session}
}

func (p *port) bar(t *testing.T, o *Owner, kind wire.BarKind) {
	t.Helper()
	if _, err := o.Bar(&wire.Bar{Kind: kind, Nexus: p.nexus, Session: p.session}); err != nil {
		t.Fatal(err)
	}
}

// op does a command; like an initiator it comes again after BUSY, which the acknowledgement of another path's write
// in the same millisecond may cause.
func (p *port) op(o *Owner, kind wire.ForwardOp) error {
	for {
		err := p.once(o, kind)
		if !errors.Is(err, wire.ErrStale) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *port) once(o *Owner, kind wire.ForwardOp) error {
	op := NewOp()
	op.Kind, op.Length, op.Nexus, op.Session, op.Stamp = kind, 4096, &p.nexus, p.session, o.Stamp()
	if kind == wire.OpWrite {
		op.Buf = NewWriteBuf(0, 4096)
		copy(op.Buf.Bytes(), bytes.Repeat([]byte{7}, 4096))
	}
	err := do(o, op)
	op.Release()
	return err
}

// wants holds all kinds of commands of the port to be let in or to get R11's error.
func (p *port) wants(t *testing.T, o *Owner, barred bool, what string) {
	t.Helper()
	for _, kind := range []wire.ForwardOp{wire.OpWrite, wire.OpRead, wire.OpFlush, wire.OpTrim, wire.OpProvisioned} {
		err := p.op(o, kind)
		if barred && !errors.Is(err, wire.ErrUnproven) || !barred && err != nil {
			t.Errorf("%s: %s of %s by %d: %v", what, kind, p.nexus.Initiator, p.nexus.TPGT, err)
		}
	}
}

// unproven ends the owner by a power cut of both holders and makes the next.
func (c *cluster) unproven(t *testing.T, o *Owner, v control.VolumeSpec) *Owner {
	t.Helper()
	if err := writeAt(o, 0, make([]byte, 4096), false); err != nil { // the open segment has something to lose
		t.Fatal(err)
	}
	c.cutSite(1)
	o.Close()
	c.startSite(1)
	o = c.own(v)
	if o.proven {
		t.Fatal("proven")
	}
	return o
}

// searched waits until nothing that was left behind is looked for any more.
func (o *Owner) searched(t *testing.T) {
	t.Helper()
	eventually(t, "the search for forks is over", func() (over bool) {
		o.ask(func() {
			o.releaseCuts()
			over = len(o.forks.open()) == 0
		})
		return over
	})
}

// The VM's host survives, its acknowledged writes stay behind, its initiator logs in again by itself in milliseconds
// and goes on upon the rolled-back disk: the guest's file system is ruined (R11).
func TestAttachedPortsGetAnErrorAfterATakeoverThatIsNotProven(t *testing.T) {
	c := newCluster(t, 1, 2)
	c.limit.UncertainWait = 300 * time.Millisecond
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	// Two paths of one port, a port that only reads, one that logs out, one that never sends anything.
	a1, a2 := newPort("iqn.a", 1, 1, 11), newPort("iqn.a", 1, 2, 12)
	reader, gone, idle := newPort("iqn.reader", 1, 1, 21), newPort("iqn.gone", 1, 1, 31), newPort("iqn.idle", 1, 1, 41)
	for _, p := range []*port{a1, a2, reader, gone, idle} {
		p.bar(t, o, wire.BarLogin)
	}
	a1.wants(t, o, false, "at first")
	if err := reader.op(o, wire.OpRead); err != nil {
		t.Fatal(err)
	}
	gone.bar(t, o, wire.BarLogout)

	// A proven takeover: nothing happens.
	old := o
	o = c.own(v)
	old.Close()
	for _, p := range []*port{a1, a2, reader} {
		p.wants(t, o, false, "after a proven takeover")
	}
	o = c.unproven(t, o, v)
	check := func(what string) {
		t.Helper()
		for _, p := range []*port{a1, a2, reader, idle} {
			p.wants(t, o, true, what)
			p.session += 1000 // a mere re-login
			p.bar(t, o, wire.BarLogin)
			p.wants(t, o, true, what+", logged in again")
		}
		fresh := newPort("iqn.a", 9, 1, a1.session+1) // comes with a new ISID
		fresh.bar(t, o, wire.BarLogin)
		fresh.wants(t, o, false, what+", a new ISID")
		fresh.bar(t, o, wire.BarLogout)
	}
	check("after one that is not")
	// One whose attachment is among what was left behind: its session is there still.
	lost := newPort("iqn.lost", 1, 1, 51)
	lost.wants(t, o, true, "not known")
	gone.bar(t, o, wire.BarLogin)
	gone.wants(t, o, false, "had logged out before")
	o.ask(o.publish)
	if s := o.View(); s.Attached != 6-1 || s.Barred != 4 || len(s.Ports) != 4 || !s.Unproven { // a1 and a2 are one port
		t.Errorf("%d attached, %d barred: %v", s.Attached, s.Barred, s.Ports)
	}
	o.searched(t)
	others := newPort("iqn.others", 1, 1, 61) // as lost
	// The next owner is proven, from the records and from a checkpoint: the errors go on.
	for _, checkpoint := range []bool{false, true, false} {
		if checkpoint {
			if err := o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		old := o
		if o = c.own(v); !o.proven {
			t.Fatal("not proven")
		}
		old.Close()
		check("in a later epoch")
		lost.wants(t, o, true, "not known, in a later epoch")
		gone.wants(t, o, false, "in a later epoch")
	}
	others.wants(t, o, true, "not known, though nothing is looked for any more")
	for _, p := range []*port{lost, others} {
		p.bar(t, o, wire.BarLogin)
		p.wants(t, o, true, "logged in once it had been refused")
		p.bar(t, o, wire.BarLogout)
		p.bar(t, o, wire.BarLogin)
		p.wants(t, o, false, "logged out, and in again")
	}
	// One of two paths logs out: the port's other one still believes what it believed.
	a1.bar(t, o, wire.BarLogout)
	a1.session++
	a1.bar(t, o, wire.BarLogin)
	a1.wants(t, o, true, "one path logged out")
	// A logout that comes late, of a session before the present one, is none.
	(&port{a1.nexus, a1.session - 1}).bar(t, o, wire.BarLogout)
	a2.bar(t, o, wire.BarLogout)
	a1.wants(t, o, true, "a late logout")
	a1.bar(t, o, wire.BarLogout)
	a1.bar(t, o, wire.BarLogin)
	a1.wants(t, o, false, "logged out by all paths")
	// An operator lets one port go on, then all; that survives too.
	(&port{nexus: wire.Nexus{Initiator: "iqn.reader"}}).bar(t, o, wire.BarAccept)
	reader.wants(t, o, false, "accepted")
	idle.wants(t, o, true, "not accepted")
	(&port{}).bar(t, o, wire.BarAccept)
	idle.wants(t, o, false, "all accepted")
	old = o
	o = c.own(v)
	old.Close()
	idle.wants(t, o, false, "accepted by a former owner")
	reader.wants(t, o, false, "accepted by a former owner")
	o = c.unproven(t, o, v)
	idle.wants(t, o, true, "once more")
	o.Close()
}

// An operator's word is about the takeovers up to the owner that named the ports. One that is heard by a later owner, since it was long on its way
// or is said again without an answer, lets nobody go on who has not been told of a takeover since.
func TestAWordForPortsThatComesBehindAnotherTakeover(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.limit.UncertainWait = 300 * time.Millisecond
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	p := newPort("iqn.a", 1, 1, 11)
	p.bar(t, o, wire.BarLogin)
	o = c.unproven(t, o, v)
	p.wants(t, o, true, "after a takeover that is not proven")
	word := &wire.Bar{Kind: wire.BarAccept, First: o.epoch.Number, Last: uint64(o.epoch.Lineage)}
	if _, err := o.Bar(word); err != nil {
		t.Fatal(err)
	}
	p.wants(t, o, false, "accepted")
	o = c.unproven(t, o, v)
	if _, err := o.Bar(word); !errors.Is(err, wire.ErrConflict) {
		t.Errorf("the same word after another takeover: %v", err)
	}
	p.wants(t, o, true, "after another takeover")
	old, seen := o, o.epoch
	if o = c.own(v); !o.proven {
		t.Fatal("not proven")
	}
	old.Close()
	if _, err := o.Bar(word); !errors.Is(err, wire.ErrConflict) {
		t.Errorf("the same word at a later owner: %v", err)
	}
	p.wants(t, o, true, "at a later owner")
	if _, err := o.Bar(&wire.Bar{Kind: wire.BarAccept, First: seen.Number, Last: uint64(seen.Lineage)}); err != nil {
		t.Errorf("a word that knows of both: %v", err)
	}
	p.wants(t, o, false, "accepted by a word that knows of both")
	o.Close()
}

// A command that an owner before has done, and whose answer was lost with it, gets the error like all others: what the port has had
// acknowledged beside it may be gone, and its success would say that it isn't.
func TestAnAnswerFromBeforeComesAfterTheError(t *testing.T) {
	c := newCluster(t, 1, 2)
	c.limit.UncertainWait = 300 * time.Millisecond
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	p := newPort("iqn.a", 1, 1, 11)
	p.bar(t, o, wire.BarLogin)
	again := func(o *Owner) error {
		op := NewOp()
		op.Kind, op.Length, op.Nexus, op.Session, op.Stamp, op.FUA = wire.OpWrite, 4096, &p.nexus, p.session, o.Stamp(), true
		op.Forward, op.Request = true, wire.RequestID{Forwarder: 7, Number: 1}
		op.Buf = NewWriteBuf(0, 4096)
		err := do(o, op)
		op.Release()
		return err
	}
	if err := again(o); err != nil {
		t.Fatal(err)
	}
	old := o
	o = c.own(v)
	old.Close()
	if err := again(o); err != nil {
		t.Errorf("after a proven takeover: %v", err)
	}
	o = c.unproven(t, o, v)
	if err := again(o); !errors.Is(err, wire.ErrUnproven) {
		t.Errorf("after one that is not: %v", err)
	}
	(&port{}).bar(t, o, wire.BarAccept)
	if err := again(o); err != nil {
		t.Errorf("once the port may go on: %v", err)
	}
	o.Close()
}

// A login is answered once the attachment is stable: else the power cut that takes the port's writes takes the memory
// of the port as well, and it goes on.
func TestAnAttachmentIsStableBeforeTheLoginIsAnswered(t *testing.T) {
	for range 5 {
		c := newCluster(t, 1, 2)
		v := c.volume(1<<20, 1, control.Replicated)
		o := c.own(v)
		p := newPort("iqn.a", 1, 1, 11)
		p.bar(t, o, wire.BarLogin)
		if err := p.op(o, wire.OpWrite); err != nil {
			t.Fatal(err)
		}
		o = c.unproven(t, o, v)
		var known bool
		o.ask(func() { known = o.ports.list[portOf(&p.nexus)] != nil })
		if !known {
			t.Error("the port was forgotten")
		}
		p.wants(t, o, true, "right after its login")
		o.Close()
	}
}

// A port that nobody remembers, in an epoch that is not proven, may have been forgotten.
func TestAnUnknownPortIsRefusedInAnEpochThatIsNotProven(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.unproven(t, c.own(v), v)
	p := newPort("iqn.a", 1, 1, 11)
	p.wants(t, o, true, "without a login in this epoch")
	p.bar(t, o, wire.BarLogin)
	p.wants(t, o, true, "a mere login of a port that was attached before")
	fresh := newPort("iqn.fresh", 1, 1, 21)
	fresh.bar(t, o, wire.BarLogin)
	fresh.wants(t, o, false, "one that had no session")
	o.Close()
}

// Ports that went away without a logout don't fill the memory; those that are in use stay. An initiator that takes another ISID each time has
// many of them by one name, and may be there still.
func TestPortsAreBounded(t *testing.T) {
	for _, others := range []string{"iqn.others", "iqn.0"} {
		portsAreBounded(t, others)
	}
}

func portsAreBounded(t *testing.T, others string) {
	t.Helper()
	var p ports
	if err := p.load(nil); err != nil {
		t.Fatal(err)
	}
	l := newLate()
	l.sessions["iqn.0"] = &initiatorState{sessions: map[uint64]uint64{0: 1}}
	for i := range portsMax + 100 {
		n := newPort("iqn.0", byte(i), 1, uint64(i)).nexus
		n.ISID[1], n.ISID[2] = byte(i>>8), byte(i>>16)
		if i > 0 {
			n.Initiator = others
		}
		for _, c := range append(p.makeRoom(&l), portAttach(&n, uint64(i))) {
			p.apply(&c)
		}
	}
	if len(p.order) != portsMax || len(p.list) != portsMax || p.order[0].Port.Name != "iqn.0" || p.order[0].Paths[0].Session != 0 {
		t.Errorf("%d ports, the first is %+v, beside others of %s", len(p.order), p.order[0], others)
	}
	size := 0
	for _, a := range p.order {
		size += a.Size()
	}
	if size != p.bytes {
		t.Errorf("%d bytes, counted %d", size, p.bytes)
	}
}
