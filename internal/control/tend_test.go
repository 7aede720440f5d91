package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"dozo/internal/ident"
)

// A database that is full of the past, or the alarm of a voter that has gone, keeps the control store from changes no longer than it
// takes a voter to see that. One that is full of the present says so, and takes changes once enough is deleted.
func TestAFullDatabaseIsTended(t *testing.T) {
	t.Parallel() // it mostly waits
	k := newVoterKit(t)
	cfg := single(k.config(t, "v1"))
	cfg.quota, cfg.tendEvery = 4<<20, 50*time.Millisecond
	e := start(t, cfg)
	ctx := t.Context()
	c := must(OpenEtcd(ctx, k.etcd(k.admin, cfg), Options{Log: testLog(), Timeout: time.Minute}))(t)
	defer c.Close()
	site, _, _ := setup(t, c)
	admin := must(OpenAdmin(k.etcd(k.admin, cfg), testLog()))(t)
	defer admin.Close()
	kv, _ := c.etcd()
	full := func(key func(int) string) (n int) {
		t.Helper()
		for ; n < 1000; n++ {
			_, err := kv.cli.Put(ctx, key(n), strings.Repeat("x", 60<<10))
			if errors.Is(err, rpctypes.ErrNoSpace) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		t.Fatal("it is never full")
		return n
	}
	// Of the past.
	full(func(int) string { return "/past" })
	must(c.CreateVolume(ctx, testVolume("a"), []ident.SiteID{site.ID}))(t)

	// Of a voter that has gone.
	alarm := &etcdserverpb.AlarmRequest{MemberID: 4711, Action: etcdserverpb.AlarmRequest_ACTIVATE, Alarm: alarmNoSpace}
	if _, err := e.etcd.Server.Alarm(ctx, alarm); err != nil {
		t.Fatal(err)
	}
	must(c.CreateVolume(ctx, testVolume("b"), []ident.SiteID{site.ID}))(t)

	// Of the present.
	n := full(func(i int) string { return fmt.Sprintf("/present/%d", i) })
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := c.CreateVolume(short, testVolume("c"), []ident.SiteID{site.ID}); err == nil {
		t.Error("a full control store takes a change")
	}
	if !strings.Contains(e.Full(), "takes no changes") {
		t.Errorf("it says of itself: %q", e.Full())
	}
	if s := must(admin.Status(ctx))(t); len(s) != 1 || len(s[0].Problems) != 1 || !strings.Contains(s[0].Problems[0], "its database is full: ") {
		t.Errorf("its status: %+v", s)
	}
	for i := range n {
		if i%8 != 0 { // the quota is only kept from one commit of etcd's to the next, so there may be twice as much
			must(kv.cli.Delete(ctx, fmt.Sprintf("/present/%d", i)))(t)
		}
	}
	must(c.CreateVolume(ctx, testVolume("c"), []ident.SiteID{site.ID}))(t)
	if why := e.Full(); why != "" {
		t.Errorf("it has room, and says %s", why)
	}
}
