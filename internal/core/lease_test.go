package core

import (
	"context"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/ident"
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

// A node has two disks, of which one fails, or hangs, while an owner that has just begun asks for leases at both stores: the other one's journals are
// served on.
func TestADiskThatFailsTakesNoLeasesOfAnother(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			clock := func() time.Duration { return time.Since(began) }
			leases := NewLeases(clock, time.Second, boot1)
			faults := vfs.NewFaults(vfs.NewMem(0))
			var stores []*Store
			for _, fsys := range []vfs.FS{faults, vfs.NewMem(0)} {
				opts := testOptions(fsys, boot1)
				opts.Clock, opts.Leases, opts.LeaseMax = clock, leases, time.Second
				s, err := Open(opts)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				leases.Add(s)
				stores = append(stores, s)
			}
			release := make(chan struct{})
			if hangs {
				faults.Add(vfs.HangOn(vfs.OpSyncData, "notes.*", release))
			} else {
				faults.Add(vfs.FailOn(vfs.OpSyncData, "notes.*", syscall.EIO))
			}
			bad := wire.JournalEpoch{Store: stores[0].ID(), Journal: jA, Epoch: epoch(1)}
			ask := func(sent uint64) wire.LeaseReply {
				at := time.Now()
				r, err := leases.Handle(context.Background(), &wire.Lease{Owner: "o", Instance: 1, Sent: sent, Duration: time.Second,
					Enroll: []wire.JournalEpoch{bad, {Store: stores[1].ID(), Journal: jB, Epoch: epoch(1)}}})
				if waited := time.Since(at); err != nil || waited >= time.Second {
					t.Errorf("asked for leases: %v, after %v", err, waited)
				}
				return r
			}
			if r := ask(1); len(r.Removed) != 1 || r.Removed[0].Store != bad.Store || r.Removed[0].Journal != jA || r.Removed[0].Epoch != (ident.Epoch{}) {
				t.Errorf("%+v", r)
			}
			close(release)
			synctest.Wait()
			if r := ask(2); hangs && len(r.Removed) != 0 {
				t.Errorf("the disk is back: %+v", r)
			}
		})
	}
}
