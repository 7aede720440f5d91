package access

import (
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A store is away with a record that was never committed, and that a proven epoch has superseded. When it comes back another epoch has begun
// which is not proven. No cut has left that record behind: it is not kept for ever, and keeps no cut open.
func TestADeadTailOfBeforeAProvenEpochIsNoForkForEver(t *testing.T) {
	for _, back := range []string{"while its owner serves", "after a takeover by force"} {
		t.Run(back, func(t *testing.T) {
			t.Parallel()
			supersededTail(t, back)
		})
	}
}

func supersededTail(t *testing.T, back string) {
	c := newCluster(t, 1, 6)
	v := c.volume(1<<20, 1, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 20)
	commit, old := o.View().Commit, o.epoch
	o.ask(func() { commit = o.w.Commit() })
	o.Close()
	// One record more, at one store.
	var away *seat
	var tail ident.Position
	for _, s := range c.seats[1:] {
		for id, r := range c.replicas(s, v.ID) {
			if away != nil || r.Last != commit || r.State != wire.ReplicaOpen || id.IsCheckpoint() {
				continue
			}
			e := ownEntry(journal.KindPermit, journal.AppendPermits(nil, nil))
			e.Journal, e.Epoch, e.Seq, e.Time = v.ID, old, r.Last.Seq+1, 1
			e.Encode(e.Bytes, r.Last.Hash)
			answer := make(chan error, 1)
			s.Append(&wire.Append{Epoch: old, Segment: id, Offset: r.End, Data: [][]byte{e.Bytes}}, func(_ wire.AppendReply, err error) { answer <- err })
			if err := <-answer; err != nil {
				t.Fatal(err)
			}
			away, tail = s, e.Position()
		}
	}
	if away == nil {
		t.Fatal("no store but the owner's has the end")
	}
	c.kill(away)
	o = c.own(v)
	if !o.proven {
		t.Fatal("the epoch after it is not proven")
	}
	n.writes(t, o, 20)
	if err := n.flush(o); err != nil {
		t.Fatal(err)
	}
	// Another store of the ensemble is given up, and the one that is away.
	lost := []ident.StoreID{away.id}
	var gone *seat
	for _, m := range o.members {
		if m.Store != away.id && m.Store != c.local && gone == nil {
			gone = c.seat(m.Store)
			lost = append(lost, gone.id)
		}
	}
	o.Close()
	c.kill(gone)
	_, rev, err := c.ctl.JournalNow(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ctl.ForceJournal(t.Context(), v.ID, rev, "n1", lost, "", 0, false); err != nil {
		t.Fatal(err)
	}
	o = c.own(v)
	if o.proven || o.recovered.Last.Seq < tail.Seq {
		t.Fatalf("proven %v: %s", o.proven, o.recovered.Describe())
	}
	n.check(t, o, n.acked, "after the takeover by force")
	n.writes(t, o, 20)
	if back == "after a takeover by force" {
		o.Close()
	}
	c.start(gone)
	c.start(away)
	if back == "after a takeover by force" {
		o = c.own(v)
	}
	eventually(t, "nothing is a fork, and all cuts are closed", func() bool {
		open := 0
		o.look()
		o.ask(func() { o.dropSome(); o.sendDrops(); o.releaseCuts(); open = len(o.forks.open()) })
		return open == 0
	})
	eventually(t, "the store has nothing of it any more", func() bool {
		o.look()
		o.ask(func() { o.dropSome(); o.sendDrops() })
		for id, r := range c.replicas(away, v.ID) {
			if id.Epoch == old && !id.IsCheckpoint() && r.Last.Seq >= tail.Seq {
				return false
			}
		}
		return true
	})
	for id, r := range c.replicas(away, v.ID) {
		if r.State == wire.ReplicaFork {
			t.Errorf("%s is a fork, to %s", id, r.Last)
		}
	}
	n.check(t, o, n.acked, "at the end")
	o.Close()
}
