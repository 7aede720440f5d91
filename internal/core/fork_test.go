package core

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// The power fails at each operation on the disk while a replica is set aside: nothing is damaged, every record is there
// afterwards, and asked again the store comes to the same end.
func TestPowerCutWhileAReplicaIsSetAside(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		for _, keep := range []int{0, 2} {
			for _, percent := range []int{0, 50, 100} {
				t.Run(fmt.Sprintf("sealed %v, %d records stay, %d%%", sealed, keep, percent), func(t *testing.T) {
					setAsideAndCut(t, sealed, keep, percent)
				})
			}
		}
	}
}

func setAsideAndCut(t *testing.T, sealed bool, keep, percent int) {
	m := vfs.NewMem(0)
	f := vfs.NewFaults(m)
	s := openStore(t, testOptions(f, boot1))
	a := newOwner(t, segment(jA, 2, 1))
	a.open(s)
	for range 3 {
		a.write(s, 1, 1)
	}
	a.sync(s)
	if sealed {
		a.seal(s)
	}
	fence(t, s, jA, 4)
	msg := &wire.Seal{Epoch: epoch(4), Segment: a.seg}
	if keep > 0 {
		msg.End, msg.Last = a.ends[keep-1], a.pos[keep-1]
	}
	var cuts []*vfs.Mem
	remove := f.Add(func(c vfs.Call) error {
		if c.Op != vfs.OpRead && c.Op != vfs.OpList {
			cuts = append(cuts, powerCut(m, percent, uint64(len(cuts))))
		}
		return nil
	})
	_, err := s.Seal(bg, msg)
	remove()
	wantCode(t, err, wire.CodeFork)
	s.Close()
	if len(cuts) < 5 {
		t.Fatalf("%d operations", len(cuts))
	}
	done := func(what string, s *Store) {
		t.Helper()
		inv := inventory(t, s, jA)
		fork := inv[a.seg.Fork()]
		if fork.State != wire.ReplicaFork || fork.Last != a.at || fork.End != a.ends[2] {
			t.Fatalf("%s: the fork is %+v", what, fork)
		}
		b := *a
		b.seg = a.seg.Fork()
		b.wantRecords(s, 3)
		switch {
		case keep == 0 && len(inv) != 1:
			t.Fatalf("%s: %+v", what, inv)
		case keep > 0:
			if r := inv[a.seg]; r.State != wire.ReplicaSealed || r.Last != a.pos[keep-1] || r.End != a.ends[keep-1] {
				t.Fatalf("%s: the segment is %+v", what, r)
			}
			a.wantRecords(s, keep)
		}
	}
	s = openStore(t, testOptions(m, boot1))
	done("at the end", s)
	s.Close()
	for i, cut := range append(cuts, m.CrashClone(vfs.Crash{})) {
		what := fmt.Sprintf("cut %d", i)
		s := openStore(t, testOptions(cut, ident.BootID{99}))
		inv := inventory(t, s, jA)
		for id, r := range inv {
			if r.State == wire.ReplicaDamaged {
				t.Fatalf("%s: %s is damaged", what, id)
			}
		}
		whole, fork := inv[a.seg], inv[a.seg.Fork()]
		if whole.Last != a.at && fork.Last != a.at {
			t.Fatalf("%s: records are gone: %+v, %+v", what, whole, fork)
		}
		for range 3 {
			if _, err := s.Seal(bg, msg); err == nil {
				break
			}
		}
		done(what, s)
		s.Close()
	}
}

// The power fails at each operation on the disk while a sealed replica is cut whose last records are in other segments:
// nothing is damaged, what stays is there, and asked again the store comes to the same end.
func TestPowerCutWhileASealedReplicaIsCut(t *testing.T) {
	for _, percent := range []int{0, 50, 100} {
		m := vfs.NewMem(0)
		f := vfs.NewFaults(m)
		s := openStore(t, testOptions(f, boot1))
		a := newOwner(t, segment(jA, 2, 1))
		a.open(s)
		for range 3 {
			a.write(s, 1, 1)
		}
		a.seal(s)
		fence(t, s, jA, 4)
		msg := a.sealMessage(2)
		msg.Epoch, msg.Start = epoch(4), wire.EpochStart{At: ident.Position{Epoch: epoch(4), Seq: a.at.Seq + 1}, Before: a.at, Proven: true}
		var cuts []*vfs.Mem
		remove := f.Add(func(c vfs.Call) error {
			if c.Op != vfs.OpRead && c.Op != vfs.OpList {
				cuts = append(cuts, powerCut(m, percent, uint64(len(cuts))))
			}
			return nil
		})
		if _, err := s.Seal(bg, msg); err != nil {
			t.Fatal(err)
		}
		remove()
		s.Close()
		if len(cuts) < 4 {
			t.Fatalf("%d operations", len(cuts))
		}
		for i, cut := range append(cuts, m.CrashClone(vfs.Crash{})) {
			s := openStore(t, testOptions(cut, ident.BootID{99}))
			r := inventory(t, s, jA)[a.seg]
			if r.State == wire.ReplicaDamaged || r.Last.Seq < a.pos[1].Seq {
				t.Fatalf("%d%%, cut %d: %+v", percent, i, r)
			}
			a.wantRecords(s, 2)
			if _, err := s.Seal(bg, msg); err != nil {
				t.Fatalf("%d%%, cut %d: %v", percent, i, err)
			}
			if inv := inventory(t, s, jA); len(inv) != 1 || inv[a.seg].State != wire.ReplicaSealed || inv[a.seg].Last != a.pos[1] {
				t.Fatalf("%d%%, cut %d: %+v", percent, i, inv)
			}
			a.wantRecords(s, 2)
			s.Close()
		}
	}
}

// There is no room for the copy that would be the fork: it keeps the segment's name. It is set aside when that is asked for
// again, or when the segment is to be made anew in its place; and every record is kept.
func TestAForkThatKeepsTheNameOfItsSegment(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		for _, restart := range []bool{false, true} {
			for _, again := range []string{"seal", "nothing", "replace"} {
				t.Run(fmt.Sprintf("sealed %v, restart %v, %s", sealed, restart, again), func(t *testing.T) {
					f := vfs.NewFaults(vfs.NewMem(0))
					s := openStore(t, testOptions(f, boot1))
					a := newOwner(t, segment(jA, 2, 1))
					a.open(s)
					for range 3 {
						a.write(s, 1, 1)
					}
					if sealed {
						a.seal(s)
					}
					fence(t, s, jA, 4)
					msg := a.sealMessage(2)
					msg.Epoch = epoch(4)
					remove := f.Add(func(c vfs.Call) error {
						if c.Op == vfs.OpCreate && strings.HasSuffix(c.Path, a.seg.Fork().String()) {
							return syscall.ENOSPC
						}
						return nil
					})
					for range 2 {
						_, err := s.Seal(bg, msg)
						wantCode(t, err, wire.CodeFork)
						r := inventory(t, s, jA)[a.seg]
						if r.State != wire.ReplicaFork || r.Last != a.at {
							t.Fatalf("%+v", r)
						}
						a.wantRecords(s, 3)
						if restart {
							s.Close()
							s = openStore(t, s.opts)
						}
					}
					made := inventory(t, s, jA)[a.seg].Made
					switch again {
					case "seal":
						remove()
						_, err := s.Seal(bg, msg)
						wantCode(t, err, wire.CodeFork)
						if _, err = s.Seal(bg, msg); err != nil {
							t.Fatal(err)
						}
						if r := inventory(t, s, jA)[a.seg]; r.State != wire.ReplicaSealed || r.Last != a.pos[1] {
							t.Fatalf("%+v", r)
						}
						a.wantRecords(s, 2)
					case "nothing":
						msg.End, msg.Last = 0, ident.Position{}
						_, err := s.Seal(bg, msg)
						wantCode(t, err, wire.CodeFork)
						if _, err = s.Seal(bg, msg); err != nil {
							t.Fatal(err)
						}
					case "replace":
						for range 2 { // the answer may be lost
							if _, err := s.Drop(bg, &wire.Drop{Epoch: epoch(4), Segment: a.seg, Made: made, Replace: true}); err != nil {
								t.Fatal(err)
							}
						}
						if _, err := s.OpenSegment(bg, &wire.OpenSegment{Epoch: epoch(4), Segment: a.seg, Capacity: 1 << 20, Copy: true}); err != nil {
							t.Fatal(err)
						}
						if r := inventory(t, s, jA)[a.seg]; r.State != wire.ReplicaCopy || r.End != 0 || r.Made == made {
							t.Fatalf("%+v", r)
						}
					}
					for range 2 {
						fork := inventory(t, s, jA)[a.seg.Fork()]
						if fork.State != wire.ReplicaFork || fork.Last != a.at || fork.End != a.ends[2] {
							t.Fatalf("%+v", fork)
						}
						b := *a
						b.seg = a.seg.Fork()
						b.wantRecords(s, 3)
						s.Close()
						s = openStore(t, s.opts)
					}
				})
			}
		}
	}
}
