package access

import (
	"errors"
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
		s.mu.seen = map[ident.NodeName]bool{}
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
		// Both have just been started: what nobody waits for is left to the one that had it.
		peer.up, peer.gone = false, true
		if d := takes(0); d < ownerComesAfter {
			t.Errorf("one that nobody uses, of a node that may be starting, is taken after %v already", d)
		}
		if d := takes(1); d > soon {
			t.Errorf("one in use, of a node that may be starting, is taken after %v", d)
		}
		peer.up, peer.gone = true, false
		s.nodeAway()
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
		if d := takes(0); d > ownerEndedAfter+100*time.Millisecond {
			t.Errorf("where its process has ended it takes %v", d)
		}
	})
}

// staleStore is a node that has not heard yet of what became of a journal's key.
type staleStore struct {
	control.Store
	state control.JournalState
	rev   control.Rev
}

func (s *staleStore) Journal(ident.JournalID) (control.JournalState, control.Rev, bool) {
	return s.state, s.rev, true
}

// TestWhatCameBackIsNotTaken: a node that was about to take a volume over leaves it to its former owner if that one has taken
// it again meanwhile, or can be reached again when the takeover's turn comes. After a kill of all nodes two that came up one
// after the other took each other's volumes away, some several times.
func TestWhatCameBackIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 2)
		v := c.volume(1<<20, 1, control.Replicated)
		_, rev, _ := c.ctl.Journal(v.ID)
		old, rev, err := c.ctl.TakeJournal(t.Context(), v.ID, rev, "n2")
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := c.ctl.TakeJournal(t.Context(), v.ID, rev, "n2")
		if err != nil {
			t.Fatal(err)
		}
		env := c.env()
		env.Control = &staleStore{env.Control, old, rev}
		if h, err := claimJournal(t.Context(), env, v.ID, false); !errors.Is(err, control.ErrConflict) {
			t.Errorf("taken from the former owner, which is back: %+v, %v", h, err)
		}
		now, _, err := c.ctl.JournalNow(t.Context(), v.ID)
		if err != nil || now.Owner != "n2" || now.Epoch != again.Epoch {
			t.Errorf("owned by %s at %s, %v", now.Owner, now.Epoch, err)
		}
		if h, err := claimJournal(t.Context(), env, v.ID, true); err != nil || h.state.Owner != "n1" || !again.Epoch.Less(h.state.Epoch) {
			t.Errorf("who insists gets %+v, %v", h, err)
		}

		peer := &hangingPeer{}
		env.Control = &staleStore{c.ctl, again, rev}
		s := NewServer(env, func(ident.NodeName) (Peer, bool) { return peer, true })
		defer s.Close()
		vol, _ := s.Volume(v.ID)
		vol.users.Store(1)
		if _, err := c.ctl.RegisterNode(t.Context(), control.Node{Name: "n1", Site: 1, HostID: "h1", Roles: []control.Role{control.RoleAccess}}); err != nil {
			t.Fatal(err)
		}
		s.stillWanted(vol)
		if time.Sleep(ownerAwayAfter + time.Second); !s.stillWanted(vol) {
			t.Error("what a node had that is away is not wanted")
		}
		if peer.up = true; s.stillWanted(vol) {
			t.Error("what a node has that is back is still wanted")
		}
	})
}
