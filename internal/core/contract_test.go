package core

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

func TestAppendRefuses(t *testing.T) {
	s := openStore(t, testOptions(vfs.NewMem(0), boot1))
	a := newOwner(t, segment(jA, 2, 1))
	send := func(e uint64, offset uint32, data ...[]byte) error {
		_, err := appendAt(s, &wire.Append{Epoch: epoch(e), Segment: a.seg, Offset: offset, Data: data})
		return err
	}
	first := a.make(1, 1)
	wantCode(t, send(2, 0, first), wire.CodeAbsent)
	a.open(s)
	second, third := a.make(2, 2), a.make(1, 3)
	wantCode(t, send(2, 8, first), wire.CodeGap)
	wantCode(t, send(2, 0, second), wire.CodeMismatch) // no header
	bad := bytes.Clone(first)
	bad[100] ^= 1
	wantCode(t, send(2, 0, bad), wire.CodeMismatch)
	wantCode(t, send(2, 0, first[:len(first)-8]), wire.CodeMismatch) // not whole
	other := newOwner(t, segment(jA, 2, 2))
	wantCode(t, send(2, 0, other.make(1, 1)), wire.CodeMismatch) // another segment's header
	if err := send(2, 0, first); err != nil {
		t.Fatal(err)
	}
	at := a.ends[0]
	wantCode(t, send(2, at, third), wire.CodeMismatch) // the chain skips one
	wantCode(t, send(2, at+8, second), wire.CodeGap)
	wantCode(t, send(2, at-4, second), wire.CodeBadRequest)
	for _, flip := range []int{20, 130, 600, len(second) - 1} { // header, CRC array, body
		bad = bytes.Clone(second)
		bad[flip] ^= 0x40
		wantCode(t, send(2, at, bad), wire.CodeMismatch)
	}
	// In several pieces, cut anywhere, and both records at once.
	both := append(bytes.Clone(second), third...)
	if err := send(2, at, both[:50], both[50:51], nil, both[51:9000], both[9000:]); err != nil {
		t.Fatal(err)
	}
	a.wantRecords(s, 3)
	// Again, whole, in part, and overlapping with something new.
	if err := send(2, at, both); err != nil {
		t.Fatalf("again: %v", err)
	}
	if err := send(2, 0, first, second); err != nil {
		t.Fatalf("the beginning again: %v", err)
	}
	fourth := a.make(1, 4)
	if err := send(2, at, both, fourth); err != nil {
		t.Fatalf("overlapping: %v", err)
	}
	a.wantRecords(s, 4)
	bad = bytes.Clone(second)
	bad[5000] ^= 1
	wantCode(t, send(2, at, bad), wire.CodeMismatch)
	// Fences.
	wantCode(t, send(1, at, second), wire.CodeFenced)
	_, err := appendAt(s, &wire.Append{Epoch: ident.Epoch{Number: 2, Lineage: 8}, Segment: a.seg, Offset: at, Data: [][]byte{second}})
	wantCode(t, err, wire.CodeConflict)
	fifth := a.make(1, 5)
	if err := send(5, a.ends[3], fifth); err != nil { // raises the fence
		t.Fatal(err)
	}
	err = send(2, a.ends[3], fifth)
	wantCode(t, err, wire.CodeFenced)
	if e, _ := fenceOf(err); e != epoch(5) {
		t.Fatalf("the fence is %v", e)
	}
	// Sealed: what is there succeeds, nothing is added.
	a.epoch = epoch(5)
	a.seal(s)
	if err := send(5, a.ends[3], fifth); err != nil {
		t.Fatalf("what a sealed replica has: %v", err)
	}
	at = a.off
	wantCode(t, send(5, at, a.make(1, 6)), wire.CodeSealed)
	// Trusted ones aren't checked in their bodies, but in their heads.
	b := newOwner(t, segment(jB, 1, 1))
	b.open(s)
	data := b.make(1, 1)
	data[len(data)-9] ^= 1
	if _, err := appendAt(s, &wire.Append{Epoch: b.epoch, Segment: b.seg, Data: [][]byte{data[:4096], data[4096:5000], data[5000:]}, Trusted: true}); err != nil {
		t.Fatal(err)
	}
	_, err = read(s, jB, wire.ReadPiece{Segment: b.seg, Record: 4096, Blocks: 1})
	wantCode(t, err, wire.CodeCorrupt)
}

func TestCapacityKeepsRoomForTheIndex(t *testing.T) {
	s := openStore(t, testOptions(vfs.NewMem(0), boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	for int(a.off)+journal.RecordSize(4096)+journal.IndexSize(len(a.ends)+1) <= testCapacity {
		a.write(s, 1, 1)
	}
	full := len(a.ends)
	at := a.off
	_, err := appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: at, Data: [][]byte{a.make(1, 1)}})
	wantCode(t, err, wire.CodeBadRequest)
	reply, err := s.Seal(context.Background(), a.sealMessage(full))
	if err != nil || reply.Length > testCapacity {
		t.Fatalf("seal of a full one: %+v, %v", reply, err)
	}
}

func TestFenceReplyAndOrder(t *testing.T) {
	s := openStore(t, testOptions(vfs.NewMem(0), boot1))
	reply := fence(t, s, jA, 3)
	if reply.Boot != boot1 || reply.Was != (ident.Epoch{}) || len(reply.Replicas) != 0 {
		t.Fatalf("of nothing: %+v", reply)
	}
	a := newOwner(t, segment(jA, 3, 1))
	a.open(s)
	start := wire.EpochStart{Before: a.at, Proven: true}
	data := a.makeStart(start)
	commit := a.at
	start.At = a.at
	if _, err := appendAt(s, &wire.Append{Epoch: epoch(3), Segment: a.seg, Data: [][]byte{data}, Commit: commit, Trusted: true}); err != nil {
		t.Fatal(err)
	}
	a.write(s, 1, 1)
	s.Notice(&wire.Notice{Epoch: epoch(3), Journal: jA, Commit: a.at, Stable: commit})
	s.Notice(&wire.Notice{Epoch: epoch(2), Journal: jA, Commit: ident.Position{Epoch: epoch(9), Seq: 99}}) // fenced: not heard
	reply = fence(t, s, jA, 4)
	if reply.Was != epoch(3) || reply.Commit != a.at || reply.Stable != commit || len(reply.Replicas) != 1 {
		t.Fatalf("%+v", reply)
	}
	r := reply.Replicas[0]
	if r.Start != start || r.Last != a.at || r.End != a.off || r.State != wire.ReplicaOpen {
		t.Fatalf("%+v, want start %+v", r, start)
	}
	_, err := s.Fence(context.Background(), &wire.Fence{Journal: jA, Epoch: epoch(3)})
	wantCode(t, err, wire.CodeFenced)
	_, err = s.Fence(context.Background(), &wire.Fence{Journal: jA, Epoch: ident.Epoch{Number: 4, Lineage: 1}})
	wantCode(t, err, wire.CodeConflict)
	fence(t, s, jA, 4)
	_, err = s.Drop(context.Background(), &wire.Drop{Epoch: epoch(3), Segment: a.seg})
	wantCode(t, err, wire.CodeFenced)
	_, err = s.Sync(context.Background(), &wire.Sync{Epoch: epoch(3), Journal: jA})
	wantCode(t, err, wire.CodeFenced)
}

// In a bubble of synctest, time is exact.
func TestFenceWaitsForGrants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		clock := func() time.Duration { return time.Since(began) }
		leases := NewLeases(clock, 2*time.Second, boot1)
		opts := testOptions(vfs.NewMem(0), boot1)
		opts.Clock, opts.Leases, opts.LeaseMax = clock, leases, 2*time.Second
		s, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		leases.Add(s)
		ctx := context.Background()
		took := func(j ident.JournalID, e uint64) time.Duration {
			at := time.Now()
			fence(t, s, j, e)
			return time.Since(at)
		}
		ask := func(instance uint64, enroll, leave []wire.JournalEpoch) wire.LeaseReply {
			t.Helper()
			r, err := leases.Handle(ctx, &wire.Lease{Owner: "o", Instance: instance, Sent: 5, Duration: time.Second, Enroll: enroll, Leave: leave})
			if err != nil || r.Sent != 5 || r.Duration != time.Second {
				t.Fatalf("lease: %+v, %v", r, err)
			}
			return r
		}
		of := func(j ident.JournalID, e uint64) []wire.JournalEpoch {
			return []wire.JournalEpoch{{Store: s.ID(), Journal: j, Epoch: epoch(e)}}
		}
		if d := took(jA, 1); d != 0 {
			t.Fatalf("a new store has granted nothing, but waited %v", d)
		}
		if r := ask(1, append(of(jA, 1), of(jB, 1)...), nil); len(r.Removed) != 0 {
			t.Fatalf("%+v", r)
		}
		time.Sleep(400 * time.Millisecond)
		if d := took(jA, 2); d != 700*time.Millisecond {
			t.Fatalf("waited %v for a grant of 1 s given 400 ms ago, want it and a tenth", d)
		}
		// Removed: later replies say so until it is left, and later grants don't cover it.
		for range 2 {
			if r := ask(1, nil, nil); len(r.Removed) != 1 || r.Removed[0] != of(jA, 2)[0] {
				t.Fatalf("%+v", r)
			}
		}
		if d := took(jA, 3); d != 0 {
			t.Fatalf("waited %v for a journal that was removed", d)
		}
		if r := ask(1, nil, of(jA, 1)); len(r.Removed) != 0 {
			t.Fatalf("left and reported: %+v", r)
		}
		if r := ask(1, of(jA, 2), nil); len(r.Removed) != 1 || r.Removed[0].Epoch != epoch(3) {
			t.Fatalf("enrolled below the fence: %+v", r)
		}
		// Given back while a fence waits.
		go func() {
			time.Sleep(100 * time.Millisecond)
			ask(1, nil, of(jB, 1))
		}()
		if d := took(jB, 2); d != 100*time.Millisecond {
			t.Fatalf("waited %v, it was given back after 100 ms", d)
		}
		// A grant of a higher epoch raises the fence.
		ask(1, of(jB, 7), nil)
		_, err = s.Fence(ctx, &wire.Fence{Journal: jB, Epoch: epoch(6)})
		wantCode(t, err, wire.CodeFenced)
		// A new process of the owner: its old grants are void, and its old messages too.
		ask(2, nil, nil)
		if d := took(jB, 8); d != 0 {
			t.Fatalf("waited %v for a process that is gone", d)
		}
		_, err = leases.Handle(ctx, &wire.Lease{Owner: "o", Instance: 1, Duration: time.Second, Enroll: of(jB, 8)})
		wantCode(t, err, wire.CodeStale)
		// After a restart nobody knows what was granted.
		s.Close()
		if s, err = Open(opts); err != nil {
			t.Fatal(err)
		}
		if d := took(jA, 9); d != 2200*time.Millisecond {
			t.Fatalf("waited %v after a restart, want the longest lease and a tenth", d)
		}
		s.Close()
		opts.LeaseMax = time.Second // configured shorter: the longest ever counts
		if s, err = Open(opts); err != nil {
			t.Fatal(err)
		}
		if d := took(jA, 10); d != 2200*time.Millisecond {
			t.Fatalf("waited %v", d)
		}
		s.Close()
	})
}

func TestBackgroundSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		opts := testOptions(vfs.NewMem(0), boot1)
		opts.Clock = func() time.Duration { return time.Since(began) }
		opts.UnsyncedMax = 100 << 10
		s, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		a := newOwner(t, segment(jA, 1, 1))
		a.open(s)
		a.write(s, 1, 1)
		time.Sleep(900 * time.Millisecond)
		if n := s.stableOf(a.seg); n != 0 {
			t.Fatalf("synced %d bytes already", n)
		}
		time.Sleep(300 * time.Millisecond)
		if n := s.stableOf(a.seg); n != a.off {
			t.Fatalf("%d of %d bytes synced after a second", n, a.off)
		}
		a.write(s, 50, 1)
		synctest.Wait()
		if n := s.stableOf(a.seg); n != a.off {
			t.Fatalf("%d of %d bytes synced beyond the limit", n, a.off)
		}
	})
}

func TestSealRules(t *testing.T) {
	ctx := context.Background()
	// Three records of epoch 2; the sealer wants the first two kept.
	setup := func(t *testing.T) (*Store, *owner) {
		s := openStore(t, testOptions(vfs.NewMem(0), boot1))
		a := newOwner(t, segment(jA, 2, 1))
		a.open(s)
		for i := range 3 {
			a.write(s, 1, byte(i))
		}
		return s, a
	}
	start := func(e uint64, before ident.Position, proven bool) wire.EpochStart {
		return wire.EpochStart{At: ident.Position{Epoch: epoch(e), Seq: before.Seq + 1, Hash: ident.Hash{9}}, Before: before, Proven: proven}
	}
	state := func(s *Store, a *owner) wire.Replica { return inventory(t, s, jA)[a.seg] }

	t.Run("refusals", func(t *testing.T) {
		s, a := setup(t)
		m := a.sealMessage(3)
		m.End += 8
		_, err := s.Seal(ctx, m)
		wantCode(t, err, wire.CodeGap)
		m = a.sealMessage(2)
		m.End += 8
		_, err = s.Seal(ctx, m)
		wantCode(t, err, wire.CodeMismatch)
		m = a.sealMessage(2)
		m.Last.Hash[0] ^= 1
		_, err = s.Seal(ctx, m)
		wantCode(t, err, wire.CodeMismatch)
		a.write(s, 1, 9) // it is open as before
		fence(t, s, jA, 3)
		_, err = s.Seal(ctx, a.sealMessage(4))
		wantCode(t, err, wire.CodeFenced)
	})
	t.Run("own tail", func(t *testing.T) {
		s, a := setup(t)
		if _, err := s.Seal(ctx, a.sealMessage(2)); err != nil {
			t.Fatal(err)
		}
		if r := state(s, a); r.State != wire.ReplicaSealed || r.Last != a.pos[1] || r.End != a.ends[1] {
			t.Fatalf("%+v", r)
		}
		_, err := read(s, jA, wire.ReadPiece{Segment: a.seg, Record: a.ends[1], Blocks: 1})
		wantCode(t, err, wire.CodeAbsent)
		_, err = s.Seal(ctx, a.sealMessage(1))
		wantCode(t, err, wire.CodeFork)
		_, err = s.Seal(ctx, a.sealMessage(3))
		wantCode(t, err, wire.CodeGap)
		if rep, err := s.Scrub(ctx, 0); err != nil || len(rep.Bad) != 0 || rep.Replicas != 1 {
			t.Fatalf("scrub: %+v, %v", rep, err)
		}
	})
	for _, c := range []struct {
		name  string
		start func(a *owner) wire.EpochStart
		also  func(t *testing.T, s *Store, a *owner) // what the store knows besides
		word  bool                                   // the sender says that every start is proven
		cut   bool
	}{
		{name: "proven, directly behind", start: func(a *owner) wire.EpochStart { return start(4, a.pos[1], true) }, cut: true},
		{name: "proven, behind more records of the tail's epoch", start: func(a *owner) wire.EpochStart {
			return start(4, ident.Position{Epoch: epoch(2), Seq: 50}, true)
		}, cut: true},
		{name: "not proven", start: func(a *owner) wire.EpochStart { return start(4, a.pos[1], false) }},
		{name: "no start", start: func(a *owner) wire.EpochStart { return wire.EpochStart{} }},
		{name: "the start of another epoch", start: func(a *owner) wire.EpochStart { return start(3, a.pos[1], true) }},
		{name: "an unknown epoch between", start: func(a *owner) wire.EpochStart {
			return start(4, ident.Position{Epoch: epoch(3), Seq: 9}, true)
		}},
		{name: "an unknown epoch between, which the sender knows", start: func(a *owner) wire.EpochStart {
			return start(4, ident.Position{Epoch: epoch(3), Seq: 9}, true)
		}, word: true, cut: true},
		{name: "a start that is not proven, and a word that says so", start: func(a *owner) wire.EpochStart { return start(4, a.pos[1], false) }, word: true},
		{name: "forced, then proven", start: func(a *owner) wire.EpochStart {
			return start(4, ident.Position{Epoch: epoch(3), Seq: 9}, true)
		}, also: func(t *testing.T, s *Store, a *owner) { putStart(t, s, a.pos[1], false) }},
		{name: "proven twice", start: func(a *owner) wire.EpochStart {
			return start(4, ident.Position{Epoch: epoch(3), Seq: 9}, true)
		}, also: func(t *testing.T, s *Store, a *owner) { putStart(t, s, a.pos[1], true) }, cut: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, a := setup(t)
			if c.also != nil {
				c.also(t, s, a)
			}
			m := a.sealMessage(2)
			m.Epoch, m.Start, m.Proven = epoch(4), c.start(a), c.word
			_, err := s.Seal(ctx, m)
			if c.cut {
				if r := state(s, a); err != nil || r.State != wire.ReplicaSealed || r.End != a.ends[1] {
					t.Fatalf("%+v, %v", r, err)
				}
				return
			}
			wantCode(t, err, wire.CodeFork)
			// What is of the history stays, and the seal asked for again is done already.
			if r := state(s, a); r.State != wire.ReplicaSealed || r.End != a.ends[1] {
				t.Fatalf("the segment is %+v", r)
			}
			if _, err := s.Seal(ctx, m); err != nil {
				t.Fatalf("again: %v", err)
			}
			a.seg = a.seg.Fork()
			if r := state(s, a); r.State != wire.ReplicaFork || r.Last != a.at {
				t.Fatalf("%+v", r)
			}
			a.wantRecords(s, 3) // kept whole
			s.Close()
			s = openStore(t, s.opts)
			if r := state(s, a); r.State != wire.ReplicaFork || r.Last != a.at {
				t.Fatalf("after a restart: %+v", r)
			}
			m.Segment = a.seg
			_, err = s.Seal(ctx, m)
			wantCode(t, err, wire.CodeFork)
			s.Close()
			s = openStore(t, s.opts)
			if inv := inventory(t, s, jA); inv[a.seg].State != wire.ReplicaFork || inv[a.seg.Original()].State != wire.ReplicaSealed {
				t.Fatalf("%+v", inv)
			}
		})
	}
	t.Run("a copy stays one until it is sealed", func(t *testing.T) {
		o := testOptions(vfs.NewMem(0), boot1)
		s := openStore(t, o)
		a := newOwner(t, segment(jA, 2, 1))
		if _, err := s.OpenSegment(ctx, &wire.OpenSegment{Epoch: epoch(2), Segment: a.seg, Capacity: 1 << 20, Copy: true}); err != nil {
			t.Fatal(err)
		}
		a.write(s, 1, 1)
		for range 2 {
			if r := state(s, a); r.State != wire.ReplicaCopy || r.Last != a.at {
				t.Fatalf("%+v", r)
			}
			s.Close()
			o.Boot = ident.BootID{99} // its end was never known, so a new boot changes nothing
			s = openStore(t, o)
		}
		if _, err := s.Seal(ctx, a.sealMessage(1)); err != nil {
			t.Fatal(err)
		}
		if r := state(s, a); r.State != wire.ReplicaSealed {
			t.Fatalf("%+v", r)
		}
	})
	t.Run("a sealed one, which a later epoch wants shorter", func(t *testing.T) {
		s, a := setup(t)
		if _, err := s.Seal(ctx, a.sealMessage(3)); err != nil {
			t.Fatal(err)
		}
		used := s.used.Load()
		m := a.sealMessage(2)
		m.Epoch, m.Start = epoch(4), start(4, a.pos[1], false)
		_, err := s.Seal(ctx, m)
		wantCode(t, err, wire.CodeFork)
		a.seg = a.seg.Fork()
		for range 2 {
			if r := state(s, a); r.State != wire.ReplicaFork || r.Last != a.at {
				t.Fatalf("%+v", r)
			}
			// The fork is as long as the replica was; what stays is one record shorter.
			if got := s.used.Load(); got <= used || got >= 2*used {
				t.Errorf("%d bytes are counted, %d before", got, used)
			}
			a.wantRecords(s, 3)
			if r, err := s.ReadIndex(ctx, &wire.ReadIndex{Segment: a.seg}); err != nil {
				t.Errorf("index of a fork: %v", err)
			} else if x, err := journal.DecodeIndex(r.Data); err != nil || len(x.Entries) != 3 {
				t.Errorf("index of a fork: %v", err)
			}
			s.Close()
			s = openStore(t, s.opts)
		}
	})
	t.Run("a sealed one with no more than a later epoch has elsewhere", func(t *testing.T) {
		s, a := setup(t)
		if _, err := s.Seal(ctx, a.sealMessage(3)); err != nil {
			t.Fatal(err)
		}
		// Epoch 3 follows the third record, and has it in a segment of its own; epoch 4 follows epoch 3.
		cut := func(e uint64, st wire.EpochStart, keep int) {
			t.Helper()
			m := a.sealMessage(keep)
			m.Epoch, m.Start = epoch(e), st
			wrong := *m
			wrong.Last.Hash[0] ^= 1
			_, err := s.Seal(ctx, &wrong)
			wantCode(t, err, wire.CodeMismatch)
			if r := state(s, a); r.State != wire.ReplicaSealed || r.Last != a.pos[keep] {
				t.Fatalf("%+v", r)
			}
			if _, err := s.Seal(ctx, m); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if r := state(s, a); r.State != wire.ReplicaSealed || r.Last != a.pos[keep-1] || r.End != a.ends[keep-1] {
					t.Fatalf("%+v", r)
				}
				a.wantRecords(s, keep)
				if _, there := inventory(t, s, jA)[a.seg.Fork()]; there {
					t.Fatal("what is elsewhere in the history is kept as a fork")
				}
				s.Close()
				s = openStore(t, s.opts)
			}
		}
		// A start in between that this store has never heard of: the sealer's word decides.
		heard := start(4, ident.Position{Epoch: epoch(3), Seq: a.pos[2].Seq + 1}, true)
		unheard := a.sealMessage(2)
		unheard.Epoch, unheard.Start, unheard.Proven = epoch(4), heard, true
		twin, b := setup(t)
		if _, err := twin.Seal(ctx, b.sealMessage(3)); err != nil {
			t.Fatal(err)
		}
		if _, err := twin.Seal(ctx, unheard); err != nil {
			t.Fatalf("with the sealer's word: %v", err)
		}
		if inv := inventory(t, twin, jA); len(inv) != 1 || inv[b.seg].End != b.ends[1] || inv[b.seg].State != wire.ReplicaSealed {
			t.Fatalf("%+v", inv)
		}
		three := start(3, a.pos[2], true)
		cut(3, three, 2)
		putStart(t, s, a.pos[2], true)
		cut(4, start(4, three.At, false), 1)
	})
	t.Run("empty ones go", func(t *testing.T) {
		s := openStore(t, testOptions(vfs.NewMem(0), boot1))
		a := newOwner(t, segment(jA, 2, 1))
		a.open(s)
		for range 2 {
			if _, err := s.Seal(ctx, a.sealMessage(0)); err != nil {
				t.Fatal(err)
			}
		}
		if inv := inventory(t, s, jA); len(inv) != 0 {
			t.Fatalf("%+v", inv)
		}
	})
}

// putStart gives the store a segment of epoch 3 with its epoch-start.
func putStart(t *testing.T, s *Store, before ident.Position, proven bool) {
	o := newOwner(t, segment(jA, 3, 1))
	o.at = before
	o.open(s)
	data := o.makeStart(wire.EpochStart{Before: before, Proven: proven})
	if _, err := appendAt(s, &wire.Append{Epoch: epoch(3), Segment: o.seg, Data: [][]byte{data}}); err != nil {
		t.Fatal(err)
	}
}

func TestPush(t *testing.T) {
	ctx := context.Background()
	src := openStore(t, testOptions(vfs.NewMem(0), boot1))
	dst := openStore(t, testOptions(vfs.NewMem(0), boot2))
	src.opts.Peers = func(id ident.StoreID) (journal.Store, error) {
		if id != dst.ID() {
			return nil, wire.Errorf(wire.CodeUnreached, "store %s", id)
		}
		return dst, nil
	}
	a := newOwner(t, segment(jA, 1, 1))
	a.open(src)
	a.open(dst)
	for range 60 {
		a.write(src, 3, 5)
	}
	push := func(from, to uint32, dest ident.StoreID) (wire.AppendReply, error) {
		return src.Push(ctx, &wire.Push{Epoch: a.epoch, Segment: a.seg, From: from, To: to, Commit: a.at, Dest: dest})
	}
	_, err := push(0, a.off, ident.StoreID{1})
	wantCode(t, err, wire.CodeUnreached)
	_, err = push(0, a.off+8, dst.ID())
	wantCode(t, err, wire.CodeGap)
	_, err = push(a.ends[0], a.off, dst.ID())
	wantCode(t, err, wire.CodeGap)
	reply, err := push(0, a.ends[9], dst.ID())
	if err != nil || reply.End != a.ends[9] || reply.Held != a.pos[9] || reply.Boot != boot2 {
		t.Fatalf("%+v, %v", reply, err)
	}
	// From before what is there: the overlap is compared.
	reply, err = push(a.ends[3], a.off, dst.ID())
	if err != nil || reply.End != a.off || reply.Held != a.at {
		t.Fatalf("%+v, %v", reply, err)
	}
	a.wantRecords(dst, 60)
	if r := fence(t, dst, jA, 1); r.Commit != a.at {
		t.Fatalf("commit point passed on is %v", r.Commit)
	}
	// What is bad here is found here.
	m := src.fs.(*vfs.Mem)
	overwrite(t, m, src, a.seg, int64(a.ends[30])+300, []byte{0xee})
	_, err = push(0, a.off, dst.ID())
	wantCode(t, err, wire.CodeCorrupt)
}

func TestConcurrentUse(t *testing.T) {
	s := openStore(t, testOptions(vfs.NewMem(0), boot1))
	s.handles.max = 3
	var wg sync.WaitGroup
	owners := make([]*owner, 8)
	for i := range owners {
		o := newOwner(t, segment(ident.JournalID{byte(i%3) + 1}, 1, uint32(i)))
		owners[i] = o
		wg.Go(func() {
			o.open(s)
			for k := range 30 {
				o.write(s, 1+k%3, byte(i))
				if k%4 == 0 {
					o.sync(s)
				}
				data, err := read(s, o.seg.Journal, wire.ReadPiece{Segment: o.seg, Record: 4096, Blocks: 1})
				if err != nil || data[17] != byte(i) {
					t.Errorf("read: %v", err)
				}
			}
			if i%2 == 0 {
				o.seal(s)
			}
		})
	}
	for range 10 {
		wg.Go(func() {
			inventory(t, s, ident.JournalID{})
			_, _ = s.Scrub(context.Background(), 0)
		})
	}
	wg.Wait()
	inv := inventory(t, s, ident.JournalID{})
	for i, o := range owners {
		if r := inv[o.seg]; r.Last != o.at || (r.State == wire.ReplicaSealed) != (i%2 == 0) {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if n := s.handles.mu.count; n > 3+4 {
		t.Errorf("%d handles open", n)
	}
}
