package node

import (
	"context"
	"fmt"
	"testing"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/initiator"
)

// hostsOfVolume changes who may use a volume that is in use at both nodes: the sessions of others end at once, those of hosts that
// may go on do.
func hostsOfVolume(t *testing.T, ctx context.Context, c *api.Client, nodes ...*testNode) {
	t.Helper()
	v, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: "shut", SizeBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{"in", "out"} {
		if _, err := c.Hosts.Add(ctx, &dozov1.AddHostRequest{Name: h, InitiatorNames: []string{"iqn.2026-11.test:" + h}}); err != nil {
			t.Fatal(err)
		}
	}
	asked := make(chan initiator.AsyncEvent, 64)
	dial := func(x *testNode, name string) (*initiator.Session, error) {
		return initiator.Dial(ctx, initiator.Config{Portal: x.cfg.Portals[0].String(), Target: v.Volume.Iqn, Initiator: "iqn.2026-11.test:" + name,
			OnAsync: func(e initiator.AsyncEvent) {
				if name == "out" {
					asked <- e
				}
			}})
	}
	set := func(m *dozov1.SetVolumeRequest) *dozov1.Volume {
		m.Volume = "shut"
		r, err := c.Volumes.Set(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		return r.Volume
	}
	sessions := map[string][]*initiator.Session{}
	for _, x := range nodes {
		for _, name := range []string{"in", "out", "stranger"} {
			eventually(t, "no login", func() error { // the node may not have heard of the volume yet
				s, err := dial(x, name)
				if err == nil {
					t.Cleanup(s.Kill)
					sessions[name] = append(sessions[name], s)
				}
				return err
			})
		}
	}
	if got := set(&dozov1.SetVolumeRequest{Hosts: []string{"out", "in", "out"}}); fmt.Sprint(got.Hosts) != "[in out]" {
		t.Errorf("hosts %v", got.Hosts)
	}
	count := func() map[string]int {
		l, err := c.Sessions.List(ctx, &dozov1.ListSessionsRequest{Volume: "shut"})
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]int{}
		for _, s := range l.Sessions {
			n[s.InitiatorName]++
		}
		return n
	}
	// The answer comes once those of others are gone: nobody waits here.
	if got := count(); got["iqn.2026-11.test:stranger"] != 0 || got["iqn.2026-11.test:in"] != 2 || got["iqn.2026-11.test:out"] != 2 {
		t.Errorf("sessions %v", got)
	}
	set(&dozov1.SetVolumeRequest{Hosts: []string{"in"}})
	if got := count(); got["iqn.2026-11.test:out"] != 0 || got["iqn.2026-11.test:in"] != 2 {
		t.Errorf("sessions %v", got)
	}
	// RFC 7143 11.9.1: each was asked before.
	for range nodes {
		select {
		case e := <-asked:
			if e.Event != 1 {
				t.Errorf("asynchronous message %+v", e)
			}
		case <-time.After(time.Minute):
			t.Fatal("no request to log out")
		}
	}
	for _, x := range nodes {
		if s, err := dial(x, "out"); err == nil {
			s.Kill()
			t.Error("a host that may not use the volume has logged in")
		}
	}
	for _, s := range sessions["in"] {
		p := &path{t, s}
		eventually(t, "the host that may use it is disturbed", func() error {
			if got := p.sense(0, make([]byte, 6), nil, 0); got != "good" {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
	}
	if got := set(&dozov1.SetVolumeRequest{AllHosts: true}); len(got.Hosts) != 0 {
		t.Errorf("hosts %v", got.Hosts)
	}
	for _, x := range nodes {
		eventually(t, "no login", func() error {
			s, err := dial(x, "stranger")
			if err == nil {
				s.Kill()
			}
			return err
		})
	}
	for _, m := range []*dozov1.SetVolumeRequest{{Hosts: []string{"in"}, AllHosts: true}, {Hosts: []string{"no such"}}} {
		m.Volume = "shut"
		if _, err := c.Volumes.Set(ctx, m); api.Reason(err) != "INVALID" {
			t.Errorf("%v: %v", m, err)
		}
	}
	if _, err := c.Volumes.Set(ctx, &dozov1.SetVolumeRequest{Volume: "shut", Hosts: []string{"nobody"}}); api.Reason(err) != "NOT_FOUND" {
		t.Errorf("a host that is not there: %v", err)
	}
	if _, err := c.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: "shut", Force: true}); err != nil {
		t.Error(err)
	}
	for _, h := range []string{"in", "out"} {
		if _, err := c.Hosts.Delete(ctx, &dozov1.DeleteHostRequest{Host: h}); err != nil {
			t.Error(err)
		}
	}
}
