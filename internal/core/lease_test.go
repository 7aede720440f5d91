package core

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// A node has taken over its own journal, is told that the former epoch's enrolment is out, and leaves that. The message hangs at the store, the
// node asks again, with the new epoch's enrolment, and is granted; then the first one is handled. Nothing may be taken out by it: it would be
// answered to the next taker that nobody reads.
func TestALateLeaseMessageTakesNothingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		clock := func() time.Duration { return time.Since(began) }
		leases := NewLeases(clock, time.Second, boot1)
		opts := testOptions(vfs.NewMem(0), boot1)
		opts.Clock, opts.Leases, opts.LeaseMax = clock, leases, time.Second
		s, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		leases.Add(s)
		at := func(e uint64) []wire.JournalEpoch {
			return []wire.JournalEpoch{{Store: s.ID(), Journal: jA, Epoch: epoch(e)}}
		}
		ask := func(m *wire.Lease) (wire.LeaseReply, error) {
			m.Owner, m.Duration = "o", time.Second
			return leases.Handle(context.Background(), m)
		}
		if _, err := ask(&wire.Lease{Instance: 1, Sent: 10, Enroll: at(1)}); err != nil {
			t.Fatal(err)
		}
		fence(t, s, jA, 2)
		r, err := ask(&wire.Lease{Instance: 1, Sent: 20})
		if err != nil || len(r.Removed) != 1 || r.Removed[0] != at(2)[0] {
			t.Fatalf("%+v, %v", r, err)
		}
		late := &wire.Lease{Instance: 1, Sent: 30, Leave: r.Removed}
		if r, err = ask(&wire.Lease{Instance: 1, Sent: 40, Leave: r.Removed, Enroll: at(2)}); err != nil || len(r.Removed) != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		_, err = ask(late)
		wantCode(t, err, wire.CodeStale)
		granted := time.Now()
		fence(t, s, jA, 3)
		if waited := time.Since(granted); waited < 1100*time.Millisecond {
			t.Errorf("answered the fence after %v, though the owner of epoch 2 has a grant for a second", waited)
		}
		// The clock of a process that was started after another boot may be anything.
		if _, err := ask(&wire.Lease{Instance: 2, Sent: 5, Enroll: at(3)}); err != nil {
			t.Fatal(err)
		}
	})
}
