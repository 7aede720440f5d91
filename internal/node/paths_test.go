package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"dozo/internal/access/export"
	"dozo/internal/api"
	dozov1 "dozo/internal/api/dozov1"
	"dozo/internal/initiator"
)

// dialPath logs in at a node and reads the unit attentions of LUNs away.
func dialPath(t *testing.T, ctx context.Context, x *testNode, iqn, name string, luns ...int) *path {
	t.Helper()
	var s *initiator.Session
	eventually(t, "the node does not know the volume", func() (err error) {
		s, err = initiator.Dial(ctx, initiator.Config{Portal: x.cfg.Portals[0].String(), Target: iqn, Initiator: name})
		return err
	})
	t.Cleanup(s.Kill)
	p := &path{t, s}
	for _, lun := range luns {
		eventually(t, fmt.Sprintf("LUN %d is not ready", lun), func() error {
			if got := p.sense(lun, make([]byte, 6), nil, 0); got != "good" {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
	}
	return p
}

// sense runs a command at a LUN, with BUSY asked again, and says how it ended.
func (p *path) sense(lun int, cdb, out []byte, in int) string {
	p.t.Helper()
	c := &initiator.Command{LUN: initiator.FlatLUN(lun), Out: out}
	copy(c.CDB[:], cdb)
	if in > 0 {
		c.In = make([]byte, in)
	}
	for range 200 {
		if err := p.s.Do(context.Background(), c); err != nil && c.Err != nil {
			return err.Error()
		}
		if c.Status != initiator.StatusBusy {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if s, ok := initiator.ParseSense(c.Sense); ok && c.Status == initiator.StatusCheckCondition {
		return fmt.Sprintf("%x/%02x%02x", s.Key, s.ASC, s.ASCQ)
	}
	if c.Status != initiator.StatusGood {
		return c.Status.String()
	}
	return "good"
}

// states reads REPORT TARGET PORT GROUPS.
func (p *path) states(lun int) map[uint16]byte {
	p.t.Helper()
	c := &initiator.Command{LUN: initiator.FlatLUN(lun), In: make([]byte, 512)}
	copy(c.CDB[:], []byte{0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 2, 0})
	got := map[uint16]byte{}
	if err := p.s.Do(context.Background(), c); err != nil || c.InLen < 4 {
		return got
	}
	for d := c.In[4:c.InLen]; len(d) >= 8; d = d[8+4*int(d[7]):] {
		got[binary.BigEndian.Uint16(d[2:])] = d[0]
	}
	return got
}

func (p *path) own() uint16 {
	c := &initiator.Command{LUN: initiator.FlatLUN(0), In: make([]byte, 512)}
	c.Inquiry(0x83)
	if err := p.s.Do(context.Background(), c); err != nil {
		p.t.Fatal(err)
	}
	for d := c.In[4:c.InLen]; len(d) >= 4; d = d[4+int(d[3]):] {
		if d[1]&0x0f == 5 { // SPC-4 7.8.6.8: target port group
			return binary.BigEndian.Uint16(d[6:])
		}
	}
	p.t.Fatalf("page 83h names no target port group: %x", c.In[:c.InLen])
	return 0
}

// groupsOfPorts: SPC-4 5.16, 6.37, 6.45, with an initiator at each of two access servers.
func groupsOfPorts(t *testing.T, ctx context.Context, c *api.Client, n1, n2 *testNode) {
	t.Helper()
	v, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: "alua", SizeBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	a := dialPath(t, ctx, n1, v.Volume.Iqn, "iqn.2026-11.test:a", 0)
	b := dialPath(t, ctx, n2, v.Volume.Iqn, "iqn.2026-11.test:b", 0)
	tur := make([]byte, 6)
	ga, gb := a.own(), b.own()
	by, other := a, b
	eventually(t, "nobody is optimized", func() error {
		// SPC-4 5.16.2.4.2, 5.16.2.4.3: the owner alone is optimized; its neighbour is not.
		x, y := a.states(0), b.states(0)
		if x[ga] == 0x80 && x[gb] == 0x01 && y[ga] == 0x80 && y[gb] == 0x01 {
			return nil
		}
		if x[gb] == 0x80 && x[ga] == 0x01 && y[gb] == 0x80 && y[ga] == 0x01 {
			by, other, ga, gb = b, a, gb, ga
			return nil
		}
		return fmt.Errorf("%x, %x", x, y)
	})
	for _, p := range []*path{a, b} {
		for range 3 {
			p.sense(0, tur, nil, 0)
		}
	}
	// by is at the owner, whose group is ga. SPC-4 6.45: the other asks for the volume.
	stpg := func(p *path, group uint16, state byte) string {
		return p.sense(0, []byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8}, []byte{0, 0, 0, 0, state, 0, byte(group >> 8), byte(group)}, 0)
	}
	if got := stpg(other, gb, 2); got != "5/2600" {
		t.Errorf("standby, which is no policy here: %s", got)
	}
	if got := stpg(other, gb, 0); got != "good" {
		t.Fatalf("SET TARGET PORT GROUPS: %s", got)
	}
	if got := other.states(0); got[gb] != 0x80 || got[ga] != 0x01 {
		t.Errorf("states after it: %x", got)
	}
	if got := other.sense(0, tur, nil, 0); got != "good" {
		t.Errorf("who asked is told %s", got)
	}
	// SPC-4 5.16.2.5: the others are told, at whichever access server they are.
	eventually(t, "the other initiator is not told", func() error {
		if got := by.sense(0, tur, nil, 0); got != "6/2a06" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	if got := by.states(0); got[gb] != 0x80 || got[ga] != 0x01 {
		t.Errorf("states at the old owner: %x", got)
	}
	block := bytes.Repeat([]byte("alua"), 128)
	if got := by.sense(0, []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1}, block, 0); got != "good" {
		t.Errorf("write by the non-optimized path: %s", got)
	}
	// A volume that is pinned stays where it is. That is no error to who asks, who looks at the states then: Windows takes a path by which
	// the command fails for lost.
	if _, err := c.Volumes.Set(ctx, &dozov1.SetVolumeRequest{Volume: "alua", Ownership: "pin"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the volume is not pinned", func() error {
		for _, g := range []uint16{ga, gb} {
			if got := stpg(by, g, 0); got != "good" {
				t.Fatalf("SET TARGET PORT GROUPS for a volume that is pinned: %s", got)
			}
			if got := by.states(0); got[g] != 0x80 {
				return nil
			}
		}
		return errors.New("it went to both that were asked for")
	})
}

// mapsOfHosts: LUNs of the hosts' target, by two access servers.
func mapsOfHosts(t *testing.T, ctx context.Context, c *api.Client, n1, n2 *testNode) {
	t.Helper()
	for _, name := range []string{"m1", "m2"} {
		if _, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: name, SizeBytes: 8 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []string{"esx1", "esx2"} {
		if _, err := c.Hosts.Add(ctx, &dozov1.AddHostRequest{Name: h, InitiatorNames: []string{"iqn.2026-11.test:" + h}}); err != nil {
			t.Fatal(err)
		}
	}
	lun := func(n uint32) *uint32 { return &n }
	m, err := c.Volumes.Map(ctx, &dozov1.MapVolumeRequest{Volume: "m1", Host: "esx1", Lun: lun(4)})
	if err != nil {
		t.Fatal(err)
	}
	iqn := m.Map.Iqn
	if _, err := c.Volumes.Map(ctx, &dozov1.MapVolumeRequest{Volume: "m1", Host: "esx2", ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := initiator.Dial(ctx, initiator.Config{Portal: n1.cfg.Portals[0].String(), Target: iqn, Initiator: "iqn.2026-11.test:nobody"}); err == nil {
		t.Error("an initiator of no host may log in")
	}
	eventually(t, "the target is not listed", func() error {
		found, err := initiator.Discover(ctx, initiator.Config{Portal: n2.cfg.Portals[0].String(), Initiator: "iqn.2026-11.test:esx1"})
		own, hosts := false, false
		for _, f := range found {
			own, hosts = own || f.Name == export.IQNPrefix+m.Map.VolumeId, hosts || f.Name == iqn
		}
		if err != nil || !hosts || own {
			return fmt.Errorf("%v, %v", found, err)
		}
		return nil
	})
	one, two := dialPath(t, ctx, n1, iqn, "iqn.2026-11.test:esx1", 4), dialPath(t, ctx, n2, iqn, "iqn.2026-11.test:esx1", 4)
	ro := dialPath(t, ctx, n2, iqn, "iqn.2026-11.test:esx2", 0)
	luns := func(p *path) string { // SPC-4 6.33
		cmd := &initiator.Command{In: make([]byte, 256)}
		cmd.ReportLUNs()
		if err := p.s.Do(context.Background(), cmd); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%x", cmd.In[8:cmd.InLen])
	}
	if a, b := luns(one), luns(ro); a != "0004000000000000" || b != "0000000000000000" {
		t.Errorf("LUNs: %s, %s", a, b)
	}
	block := bytes.Repeat([]byte("maps"), 128)
	write, read := []byte{0x2a, 0, 0, 0, 0, 8, 0, 0, 1}, []byte{0x28, 0, 0, 0, 0, 8, 0, 0, 1}
	if got := one.sense(4, write, block, 0); got != "good" {
		t.Errorf("write: %s", got)
	}
	// SBC-3 5.39 by way of SPC-4 annex D: WRITE PROTECTED, and the bit of MODE SENSE that says so before.
	if got := ro.sense(0, write, block, 0); got != "7/2700" {
		t.Errorf("write of a read-only LUN: %s", got)
	}
	if got := ro.sense(0, read, nil, 512); got != "good" {
		t.Errorf("read of a read-only LUN: %s", got)
	}
	if _, d, _ := ro.run([]byte{0x1a, 0, 0x08, 0, 64}, nil, 64); len(d) < 4 || d[2]&0x80 == 0 {
		t.Errorf("MODE SENSE of a read-only LUN: %x", d)
	}
	if _, err := initiator.Dial(ctx, initiator.Config{Portal: n1.cfg.Portals[0].String(), Target: export.IQNPrefix + m.Map.VolumeId, Initiator: "iqn.2026-11.test:esx2"}); err == nil {
		t.Error("a host may get round its map by the volume's own target")
	}
	// SPC-4 5.13: reservations are the volume's, whatever its LUN is.
	if got := one.sense(4, []byte{0x5f, 0, 0, 0, 0, 0, 0, 0, 24}, proutList(0, 5), 0); got != "good" {
		t.Errorf("register: %s", got)
	}
	if d := ro.wants("READ KEYS", initiator.StatusGood, []byte{0x5e, 0, 0, 0, 0, 0, 0, 0, 64}, nil, 64); len(d) != 16 || d[15] != 5 {
		t.Errorf("keys as the other host sees them: %x", d)
	}
	// SPC-4 6.33, 3F/0E: a LUN comes and goes, at both servers.
	if _, err := c.Volumes.Map(ctx, &dozov1.MapVolumeRequest{Volume: "m2", Host: "esx1", Lun: lun(300)}); err != nil {
		t.Fatal(err)
	}
	tur := make([]byte, 6)
	for _, p := range []*path{one, two} {
		eventually(t, "no word of the new LUN", func() error {
			if got := p.sense(4, tur, nil, 0); got != "6/3f0e" {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
		if got := luns(p); got != "0004000000000000412c000000000000" {
			t.Errorf("LUNs: %s", got)
		}
		if got := p.sense(300, tur, nil, 0); got != "6/2900" && got != "2/0401" {
			t.Errorf("a new LUN begins with %s", got)
		}
		eventually(t, "the new LUN is not ready", func() error {
			if got := p.sense(300, write, block, 0); got != "good" {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
	}
	if got := ro.sense(0, tur, nil, 0); got != "good" {
		t.Errorf("another host is told %s", got)
	}
	// RFC 7143 11.5.1: a reset of one LUN leaves the others alone, and LUN 4 of another host is another volume.
	if r, err := one.s.TaskManagement(ctx, initiator.TMFLogicalUnitRst, initiator.FlatLUN(300), nil); err != nil || r != 0 {
		t.Errorf("LUN reset: %v, %v", r, err)
	}
	if got := one.sense(4, tur, nil, 0); got != "good" {
		t.Errorf("after the reset of another LUN: %s", got)
	}
	if got := two.sense(300, tur, nil, 0); got != "6/2903" {
		t.Errorf("a LUN that was reset by another path: %s", got)
	}
	if _, err := c.Volumes.Unmap(ctx, &dozov1.UnmapVolumeRequest{Volume: "m1", Host: "esx1"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the LUN is still there", func() error {
		if got := two.sense(4, read, nil, 512); got != "5/2500" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	if got := luns(two); got != "412c000000000000" {
		t.Errorf("LUNs at the end: %s", got)
	}
	if _, err := c.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: "m2"}); api.Reason(err) != "IN_USE" {
		t.Errorf("a volume that is mapped was deleted: %v", err)
	}
	list, err := c.Volumes.Maps(ctx, &dozov1.VolumeMapsRequest{})
	if err != nil || len(list.Maps) != 2 || list.Maps[0].Host != "esx1" || list.Maps[0].Lun != 300 || list.Maps[1].Volume != "m1" || !list.Maps[1].ReadOnly {
		t.Errorf("maps: %v, %v", list, err)
	}
	for _, p := range []*path{one, two, ro} {
		if err := p.s.Close(ctx); err != nil {
			t.Errorf("logout: %v", err)
		}
	}
}

// sentElsewhere: RFC 7143 11.9.1 (event 1), 11.13.5 (class 1), by a node that drains, and by the owner's policy.
func sentElsewhere(t *testing.T, ctx context.Context, c *api.Client, n1, n2 *testNode) {
	t.Helper()
	v, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: "away", SizeBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan initiator.AsyncEvent, 16)
	dial := func(x *testNode, isid byte) *initiator.Session {
		conf := initiator.Config{Portal: x.cfg.Portals[0].String(), Target: v.Volume.Iqn, Initiator: "iqn.2026-11.test:away",
			ISID: [6]byte{0x80, 0, 0, 0, 0, isid}, OnAsync: func(e initiator.AsyncEvent) { events <- e }}
		s, err := initiator.Dial(ctx, conf)
		// The node may not have heard of the volume yet: it was made by way of another.
		for end := time.Now().Add(time.Minute); err != nil && strings.Contains(err.Error(), "target not found") && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
			s, err = initiator.Dial(ctx, conf)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Kill)
		return s
	}
	at := func(x *testNode) string { return x.cfg.Portals[0].String() }
	s := dial(n2, 1)
	if got := s.Stats().CurrentPortal; got != at(n2) {
		t.Errorf("redirected from %s to %s although nobody has asked for it", at(n2), got)
	}
	drain := func(yes bool) {
		if yes {
			stream, err := c.Nodes.Drain(ctx, &dozov1.DrainNodeRequest{Node: "n2"})
			if err != nil {
				t.Fatal(err)
			}
			for stream.Receive() {
			}
			_ = stream.Close()
		} else if _, err := c.Nodes.Undrain(ctx, &dozov1.UndrainNodeRequest{Node: "n2"}); err != nil {
			t.Fatal(err)
		}
	}
	drain(true)
	select {
	case e := <-events:
		if e.Event != 1 || e.P3 == 0 {
			t.Errorf("asynchronous message: %+v", e)
		}
	case <-time.After(time.Minute):
		t.Error("no request to log out")
	}
	s.Kill() // it has logged out by itself
	s = dial(n2, 1)
	if got := s.Stats().CurrentPortal; got != at(n1) && got != at(n2) {
		t.Errorf("served at %s", got)
	}
	list, err := c.Sessions.List(ctx, &dozov1.ListSessionsRequest{Volume: "away"})
	if err != nil || len(list.Sessions) != 1 || list.Sessions[0].Node != "n1" {
		t.Errorf("sessions after the node has begun to drain: %v, %v", list, err)
	}
	s.Kill()
	// Who comes back is served: nobody is sent to and fro.
	s = dial(n2, 1)
	eventually(t, "not served by a node that has sent it away", func() error {
		if list, err = c.Sessions.List(ctx, &dozov1.ListSessionsRequest{Volume: "away"}); err != nil || len(list.Sessions) != 1 || list.Sessions[0].Node != "n2" {
			return fmt.Errorf("%v, %v", list, err)
		}
		return nil
	})
	s.Kill()
	drain(false)

	// To the owner, by policy: whichever of the two is asked, the session is there.
	if _, err := c.Volumes.Set(ctx, &dozov1.SetVolumeRequest{Volume: "away", Redirect: "owner"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "n2 is still draining", func() error {
		for _, x := range []*testNode{n1, n2} {
			isid := byte(time.Now().UnixNano())
			s := dial(x, isid)
			list, err := c.Sessions.List(ctx, &dozov1.ListSessionsRequest{Volume: "away"})
			s.Kill()
			show, serr := c.Volumes.Get(ctx, &dozov1.GetVolumeRequest{Volume: "away"})
			if err != nil || serr != nil || len(list.Sessions) != 1 || list.Sessions[0].Node != show.Volume.Owner {
				return fmt.Errorf("sessions %v, owner %s: %v %v", list, show.GetVolume().GetOwner(), err, serr)
			}
			eventually(t, "the session does not end", func() error {
				if list, err := c.Sessions.List(ctx, &dozov1.ListSessionsRequest{Volume: "away"}); err != nil || len(list.Sessions) > 0 {
					return fmt.Errorf("%v %v", list, err)
				}
				return nil
			})
		}
		return nil
	})
	for _, name := range []string{"alua", "away", "m1", "m2"} {
		if _, err := c.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: name, Force: true}); err != nil {
			t.Error(err)
		}
	}
}

// discoveryProved: RFC 7143 4.2.7, 9.2: what has to be proved before targets are told, at every access server.
func discoveryProved(t *testing.T, ctx context.Context, c *api.Client, nodes ...*testNode) {
	t.Helper()
	own := initiator.CHAP{User: "own", Secret: "own-own-own-own"}
	if _, err := c.Hosts.Add(ctx, &dozov1.AddHostRequest{Name: "prover", InitiatorNames: []string{"iqn.2026-11.test:prover"},
		Chap: &dozov1.ChapCredentials{InUser: own.User, InSecret: own.Secret}}); err != nil {
		t.Fatal(err)
	}
	all := initiator.CHAP{User: "all", Secret: "all-all-all-all", TargetUser: "dozo", TargetSecret: "dozo-dozo-dozo"}
	set := &dozov1.SetDiscoveryRequest{Chap: &dozov1.ChapCredentials{InUser: all.User, InSecret: all.Secret, OutUser: all.TargetUser, OutSecret: all.TargetSecret}}
	if d, err := c.Hosts.SetDiscovery(ctx, set); err != nil || d.Discovery.Auth != "mutual" {
		t.Fatalf("%v, %v", d, err)
	}
	for _, x := range nodes {
		discover := func(name string, chap initiator.CHAP) error {
			_, err := initiator.Discover(ctx, initiator.Config{Portal: x.cfg.Portals[0].String(), Initiator: name, CHAP: chap})
			return err
		}
		eventually(t, "targets are told to anybody", func() error {
			if err := discover("iqn.2026-11.test:anybody", initiator.CHAP{}); !errors.Is(err, initiator.ErrAuthentication) {
				return fmt.Errorf("%v", err)
			}
			return nil
		})
		if err := discover("iqn.2026-11.test:anybody", all); err != nil {
			t.Errorf("with the right credentials: %v", err)
		}
		if err := discover("iqn.2026-11.test:prover", own); err != nil {
			t.Errorf("a host with credentials of its own: %v", err)
		}
		if err := discover("iqn.2026-11.test:prover", all); !errors.Is(err, initiator.ErrAuthentication) {
			t.Errorf("a host with credentials of its own, by those of all: %v", err)
		}
	}
	if _, err := c.Hosts.SetDiscovery(ctx, &dozov1.SetDiscoveryRequest{}); err != nil {
		t.Fatal(err)
	}
	for _, x := range nodes {
		eventually(t, "targets are not told", func() error {
			_, err := initiator.Discover(ctx, initiator.Config{Portal: x.cfg.Portals[0].String(), Initiator: "iqn.2026-11.test:anybody"})
			return err
		})
	}
	if _, err := c.Hosts.Delete(ctx, &dozov1.DeleteHostRequest{Host: "prover"}); err != nil {
		t.Error(err)
	}
}

// portBinding: RFC 7143 4.4.1, several portals of one portal group. Two initiator ports at each of two portals are four
// sessions to one target port, all used; one port at both portals is one session, since the later login replaces the
// earlier one (6.3.5).
func portBinding(t *testing.T, ctx context.Context, c *api.Client, n *testNode) {
	t.Helper()
	v, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: "bound", SizeBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	const name = "iqn.2026-11.test:bound"
	found, err := initiator.Discover(ctx, initiator.Config{Portal: n.cfg.Portals[0].String(), Initiator: name})
	if err != nil {
		t.Fatal(err)
	}
	listed := fmt.Sprintf("%+v", found)
	for _, p := range n.cfg.Portals {
		if !bytes.Contains([]byte(listed), []byte(p.String())) {
			t.Errorf("discovery does not list portal %s: %s", p, listed)
		}
	}
	dial := func(portal int, isid byte) *path {
		s, err := initiator.Dial(ctx, initiator.Config{Portal: n.cfg.Portals[portal].String(), Target: v.Volume.Iqn, Initiator: name, ISID: [6]byte{0x80, 0, 0, 0, 1, isid}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Kill)
		return &path{t, s}
	}
	block := bytes.Repeat([]byte("path"), 128)
	var paths []*path
	group := uint16(0)
	for i := range 4 {
		p := dial(i%2, byte(i))
		eventually(t, "a path does not write", func() error {
			if got := p.sense(0, []byte{0x2a, 0, 0, 0, 0, byte(i), 0, 0, 1}, block, 0); got != "good" {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
		if g := p.own(); group == 0 {
			group = g
		} else if g != group {
			t.Errorf("target port groups %d and %d at one access server", group, g)
		}
		paths = append(paths, p)
	}
	sessions := func() int {
		list, err := c.Sessions.List(ctx, &dozov1.ListSessionsRequest{Volume: "bound"})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Sessions)
	}
	if got := sessions(); got != 4 {
		t.Errorf("%d sessions, want 4", got)
	}
	dial(1, 0)
	eventually(t, "the session of the same initiator port is still there", func() error {
		if got := sessions(); got != 4 {
			return fmt.Errorf("%d sessions", got)
		}
		return nil
	})
	for i, p := range paths[1:] {
		if got := p.sense(0, []byte{0x28, 0, 0, 0, 0, byte(i), 0, 0, 1}, nil, 512); got != "good" {
			t.Errorf("path %d: %s", i+1, got)
		}
	}
	if _, err := c.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: "bound", Force: true}); err != nil {
		t.Error(err)
	}
}
