package access

import (
	"errors"
	"net/netip"
	"testing"

	"dozo/internal/control"
	"dozo/internal/wire"
)

// leftBehind is a volume whose site was given up while it was cut off from the other one, and its owner there, with ports that
// attached while it was: of those the owner knows nothing.
func (c *cluster) leftBehind(t *testing.T, ports ...*port) (control.VolumeSpec, *Owner) {
	t.Helper()
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 16, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 5)
	c.inStep(t, o)
	c.killSite(2)
	for _, p := range ports {
		p.bar(t, o, wire.BarLogin)
		p.wants(t, o, false, "while the site is cut off")
	}
	c.killSite(1)
	o.Close()
	c.startSite(2)
	c.at(2)
	c.force(t, v, 1)
	return v, c.own(v)
}

// A host has two paths; one is attached in what a takeover by force leaves behind, and goes on by a server that lives. By the other one a
// login arrives that had lain in a buffer, or whose volume had no owner until now: it makes the port known, and the session that is
// there still believes what it believed (R11).
func TestAPathThatIsOfBeforeBarsThePort(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	p1, p2, p3 := newPort("iqn.a", 1, 1, 11), newPort("iqn.a", 1, 2, 12), newPort("iqn.a", 1, 3, 13)
	v, o := c.leftBehind(t, p1, p3)
	p2.bar(t, o, wire.BarLogin)
	p1.wants(t, o, true, "by a path that has not logged in since")
	p2.wants(t, o, true, "by one that has")
	eventually(t, "the status shows the port", func() bool {
		o.ask(o.publish)
		s := o.View()
		return s.Attached == 1 && s.Barred == 1 && len(s.Ports) == 1
	})
	next := func() {
		t.Helper()
		old := o
		if o = c.own(v); !o.proven {
			t.Fatal("not proven")
		}
		old.Close()
	}
	next()
	p2.wants(t, o, true, "in a later epoch")
	// The operator lets the port go on, by all of its paths: by one as well of which nothing has been heard yet.
	(&port{nexus: wire.Nexus{Initiator: "iqn.a"}}).bar(t, o, wire.BarAccept)
	for _, checkpoint := range []bool{false, true, false} {
		if checkpoint {
			if err := o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		next()
		for _, p := range []*port{p1, p2, p3} {
			p.wants(t, o, false, "accepted")
		}
	}
	// Gone by all paths, and back by one: what is there still by another one is of before.
	for _, p := range []*port{p1, p2} {
		p.bar(t, o, wire.BarLogout)
	}
	p2.session++
	p2.bar(t, o, wire.BarLogin)
	p2.wants(t, o, false, "back")
	p3.wants(t, o, true, "not back")
	o.Close()
}

// A command that arrives when its session has logged out does nothing any more (R9), and says nothing of its port: that one goes on by
// its other path.
func TestWhatComesAfterALogout(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	_, o := c.leftBehind(t)
	p1, p2 := newPort("iqn.a", 1, 1, 11), newPort("iqn.a", 1, 2, 12)
	for _, p := range []*port{p1, p2} {
		p.bar(t, o, wire.BarLogin)
		p.wants(t, o, false, "new")
	}
	late := NewOp()
	late.Kind, late.Length, late.Nexus, late.Session, late.Stamp = wire.OpTrim, 4096, &p2.nexus, p2.session, o.Stamp()
	p2.bar(t, o, wire.BarLogout)
	if err := do(o, late); err == nil {
		t.Error("a command of a session that has logged out is done")
	}
	late.Release()
	p1.wants(t, o, false, "by the other path")
	p2.session++
	p2.bar(t, o, wire.BarLogin)
	p2.wants(t, o, false, "logged in again")
	o.Close()

	// The same where all epochs are proven.
	c = newCluster(t, 1, 2)
	o = c.own(c.volume(1<<20, 1, control.Replicated))
	p1.bar(t, o, wire.BarLogin)
	late = NewOp()
	late.Kind, late.Length, late.Nexus, late.Session, late.Stamp = wire.OpTrim, 4096, &p1.nexus, p1.session, o.Stamp()
	p1.bar(t, o, wire.BarLogout)
	if err := do(o, late); !errors.Is(err, wire.ErrStale) {
		t.Errorf("after the logout: %v", err)
	}
	late.Release()
	o.Close()
}

// A third-party copy reads or writes a volume for an initiator that need not have logged in to it: that is nothing which was forgotten.
// One that was attached before gets its error for copies, too.
func TestACopyForAPortThatIsNotAttached(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	p := newPort("iqn.b", 1, 1, 21)
	_, o := c.leftBehind(t, p)
	copies := func(p *port) error {
		op := NewOp()
		defer op.Release()
		op.Kind, op.Length, op.Nexus, op.Session, op.Stamp, op.Copier = wire.OpTrim, 4096, &p.nexus, p.session, o.Stamp(), true
		return do(o, op)
	}
	if err := copies(newPort("iqn.a", 1, 1, 11)); err != nil {
		t.Errorf("a copy for an initiator of another volume: %v", err)
	}
	known := newPort("iqn.c", 1, 1, 31)
	known.bar(t, o, wire.BarLogin)
	if err := copies(newPort("iqn.c", 1, 2, 32)); err != nil {
		t.Errorf("a copy by another path than the port's: %v", err)
	}
	known.wants(t, o, false, "by its own path")
	p.wants(t, o, true, "attached before")
	eventually(t, "its record is there", func() bool {
		o.ask(o.publish)
		return o.View().Barred == 1
	})
	if err := copies(p); !errors.Is(err, wire.ErrUnproven) {
		t.Errorf("a copy for one that was attached before: %v", err)
	}
	o.Close()
}

// An operator's word counts for a port as well whose record is under way.
func TestAWordForAPortThatIsBeingBarred(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	p := newPort("iqn.a", 1, 1, 11)
	_, o := c.leftBehind(t, p)
	for i := range byte(20) {
		x := newPort("iqn.a", 2+i, 1, 11)
		if err := x.once(o, wire.OpRead); err == nil {
			t.Fatal("a port that nobody knows is answered")
		}
		x.bar(t, o, wire.BarAccept)
		x.wants(t, o, false, "accepted")
	}
	p.wants(t, o, true, "another port")
	o.Close()
}

// A port logs out and in again at once: its path is known still, by a record that is about to be taken back. The login is answered
// once the port has a record again, else the power cut that takes its writes finds nobody who was attached.
func TestALoginRightAfterALogout(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	p := newPort("iqn.a", 1, 1, 11)
	p.bar(t, o, wire.BarLogin)
	out := *p
	p.session++
	done := make(chan error, 2)
	o.ask(func() {
		answered := false
		o.portBar(&wire.Bar{Kind: wire.BarLogout, Nexus: out.nexus, Session: out.session}, func(err error) { done <- err })
		o.portBar(&wire.Bar{Kind: wire.BarLogin, Nexus: p.nexus, Session: p.session}, func(err error) {
			answered = true
			done <- err
		})
		if answered {
			t.Error("a login is answered whose port has no record")
		}
	})
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	o = c.unproven(t, o, v)
	p.wants(t, o, true, "logged out and in")
	o.Close()
}

// While there are nodes that do not know such records, the port is refused, and nothing is written (control.LevelPortBars).
func TestNoBarsForOlderNodes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	node := control.Node{Name: "old", Site: 1, HostID: "h", Roles: []control.Role{control.RoleAccess}, Version: "1"}
	node.Addrs.Portals = []control.Portal{{Addr: netip.MustParseAddrPort("127.0.0.9:3260")}}
	if _, err := c.ctl.RegisterNode(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	p := newPort("iqn.a", 1, 1, 11)
	_, o := c.leftBehind(t, p)
	c.mem.Downgrade("old")
	eventually(t, "the node is known to be older", func() bool { return c.ctl.Level() < control.LevelPortBars })
	p.wants(t, o, true, "not known")
	o.ask(o.publish)
	if s := o.View(); s.Attached != 0 {
		t.Errorf("%d attached", s.Attached)
	}
	if _, err := c.ctl.RegisterNode(t.Context(), node); err != nil { // it was upgraded
		t.Fatal(err)
	}
	eventually(t, "the node is known to be upgraded", func() bool { return c.ctl.Level() == control.Level })
	p.wants(t, o, true, "still not known")
	eventually(t, "the port is barred", func() bool {
		o.ask(o.publish)
		return o.View().Barred == 1
	})
	o.Close()
}
