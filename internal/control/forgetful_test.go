package control

import (
	"os"
	"slices"
	"testing"
	"time"

	"dozo/internal/ident"
)

// A voter has lost its directory, and its node starts again with control.join. It must not come back as what it was: it has forgotten what
// it has written and whom it has voted for, so that a change that was answered could be undone, and a volume have two owners. It is taken
// out and joins as a new one.
func TestAVoterThatHasForgottenJoinsAnew(t *testing.T) {
	t.Parallel() // it mostly waits
	k := newVoterKit(t)
	var cfgs []EmbeddedConfig
	var initial []VoterAddr
	for _, name := range []string{"v1", "v2", "v3"} {
		c := k.config(t, name)
		cfgs, initial = append(cfgs, c), append(initial, VoterAddr{c.Name, c.ListenPeer})
	}
	voters := make([]*Embedded, len(cfgs))
	errs := make(chan error)
	for i := range cfgs {
		cfgs[i].Initial = initial
		go func() {
			e, err := StartEmbedded(t.Context(), cfgs[i])
			voters[i] = e
			errs <- err
		}()
	}
	for range cfgs {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range voters {
		t.Cleanup(func() { _ = e.Close() })
	}
	ctx := t.Context()
	c := must(OpenEtcd(ctx, k.etcd(k.admin, cfgs...), Options{Log: testLog(), Timeout: time.Minute}))(t)
	defer c.Close()
	a, _, _ := setup(t, c)
	admin := must(OpenAdmin(k.etcd(k.admin, cfgs[:2]...), testLog()))(t)
	defer admin.Close()
	third := func() Voter {
		t.Helper()
		list := must(admin.Voters(ctx))(t)
		i := slices.IndexFunc(list, func(v Voter) bool { return v.Peer == cfgs[2].ListenPeer })
		if i < 0 || len(list) != 3 {
			t.Fatalf("voters: %+v", list)
		}
		return list[i]
	}
	was := third()
	_ = voters[2].Close()
	if err := os.RemoveAll(cfgs[2].Dir); err != nil {
		t.Fatal(err)
	}
	// Another node at the address does not take the place of who had it.
	_, err := admin.AddVoter(ctx, VoterAddr{"v4", cfgs[2].ListenPeer})
	wantErr(t, "another name at its address", err, ErrExists)
	j := cfgs[2]
	j.Join, j.Initial = true, must(admin.AddVoter(ctx, VoterAddr{j.Name, j.ListenPeer}))(t)
	if now := third(); now.ID == was.ID || !now.Learner || now.Started {
		t.Fatalf("it comes back as %+v, and was %+v", now, was)
	}
	if again := must(admin.AddVoter(ctx, VoterAddr{j.Name, j.ListenPeer}))(t); !slices.Equal(again, j.Initial) {
		t.Errorf("asked again: %v, first %v", again, j.Initial)
	}
	start(t, j)
	if err := admin.PromoteVoter(ctx, j.Name); err != nil {
		t.Fatal(err)
	}
	must(c.CreateVolume(ctx, testVolume("v"), []ident.SiteID{a.ID}))(t)
}
