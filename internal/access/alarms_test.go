package access

import (
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// TestFalseAlarms: each one makes the next takeover of what nobody uses come later, up to a bound, until it is forgotten.
func TestFalseAlarms(t *testing.T) {
	var f falseAlarms
	now := time.Now()
	if n := f.more("a", now); n != 0 {
		t.Errorf("%d before any", n)
	}
	for i := 1; i <= 2*alarmsMost; i++ {
		f.note("a", now)
		if n := f.more("a", now); n != min(i, alarmsMost) {
			t.Errorf("%d after %d", n, i)
		}
	}
	if n := f.more("b", now); n != 0 {
		t.Errorf("%d of another node", n)
	}
	now = now.Add(alarmsForget + time.Second)
	if n := f.more("a", now); n != 0 {
		t.Errorf("%d when they are forgotten", n)
	}
	f.note("a", now)
	if n := f.more("a", now); n != 1 {
		t.Errorf("%d after one more", n)
	}
}

// hangingPeer is a node that can not be reached, though its process is there.
type hangingPeer struct {
	Peer
	up, gone bool
}

func (p *hangingPeer) Up() bool     { return p.up }
func (p *hangingPeer) Gone() bool   { return p.gone }
func (p *hangingPeer) Silent() bool { return !p.up }

// TestWhatNobodyUsesWaitsAfterFalseAlarms: the volumes of a node that was slow before are taken later, but those that are in
// use, and all where its process has ended, as soon as ever.
func TestWhatNobodyUsesWaitsAfterFalseAlarms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctl, err := control.NewMem().Open(t.Context(), control.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer ctl.Close()
		if _, err := ctl.InitCluster(t.Context(), control.Cluster{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		site, err := ctl.CreateSite(t.Context(), control.Site{Name: "site-1"})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []ident.NodeName{"n1", "n2"} {
			if _, err := ctl.RegisterNode(t.Context(), control.Node{Name: name, Site: site.ID, HostID: string(name), Roles: []control.Role{control.RoleAccess}}); err != nil {
				t.Fatal(err)
			}
		}
		peer := &hangingPeer{up: true}
		s := &Server{env: Env{Node: "n1", Site: site.ID, Control: ctl}, peers: func(ident.NodeName) (Peer, bool) { return peer, true }}
		state := control.JournalState{Owner: "n2"}
		takes := func(users int32) time.Duration {
			v := &Volume{srv: s}
			v.users.Store(users)
			v.spec.Store(&control.VolumeSpec{})
			began := time.Now()
			for !s.shouldTake(v, state) {
				s.nodeAway()
				if time.Sleep(50 * time.Millisecond); time.Since(began) > time.Minute {
					t.Fatal("it is never taken")
				}
			}
			return time.Since(began)
		}
		slow := func() {
			peer.up = false
			s.nodeAway()
			time.Sleep(2 * time.Second)
			s.nodeAway()
			peer.up = true
			s.nodeAway()
		}
		soon := ownerGoneAfter + 200*time.Millisecond
		peer.up = false
		if d := takes(0); d > soon {
			t.Errorf("the first time it takes %v", d)
		}
		peer.up = true
		s.nodeAway()
		for range 3 {
			slow()
		}
		peer.up = false
		if d := takes(1); d > soon {
			t.Errorf("one in use is taken after %v", d)
		}
		if d := takes(0); d < 8*ownerAwayAfter {
			t.Errorf("one that nobody uses is taken after %v already", d)
		}
		peer.gone = true
		if d := takes(0); d > soon {
			t.Errorf("where its process has ended it takes %v", d)
		}
	})
}
