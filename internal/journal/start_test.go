package journal

import (
	"slices"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// starter answers a writer's actions as stores would that do what they are asked to.
type starter struct {
	t    *testing.T
	w    *Writer
	boot [4]byte
	deaf func(Action) bool // what is not answered yet
	kept []Action

	refuses func(Action) bool // its store has not what it is asked to seal
}

func (x *starter) run() {
	for range 100 {
		acts := slices.Clone(x.w.Actions())
		if x.deaf == nil {
			acts, x.kept = append(x.kept, acts...), nil
		}
		if len(acts) == 0 {
			return
		}
		for _, a := range acts {
			if (a.Kind == ActSeal || a.Kind == ActCopy) && !x.w.Serving() {
				x.t.Error("a segment is sealed before the epoch-start is stable")
			}
			if x.deaf != nil && x.deaf(a) {
				x.kept = append(x.kept, a)
				continue
			}
			boot := ident.BootID{1 + x.boot[a.Member]}
			switch a.Kind {
			case ActOpen:
				x.w.Opened(a.Segment, a.Member, boot, nil)
			case ActAppend:
				x.w.Appended(a.Batch, a.Member, boot, nil)
			case ActSync:
				r := wire.SyncReply{Boot: boot}
				for _, id := range a.Segments {
					r.Synced = append(r.Synced, wire.SegmentSynced{Segment: id, StableEnd: 1 << 30})
				}
				x.w.Synced(a.Member, r, nil)
			case ActSeal:
				var err error
				if x.refuses != nil && x.refuses(a) {
					err = wire.Errorf(wire.CodeMismatch, "shorter than that")
				}
				x.w.Sealed(a.Segment, a.Member, err)
			case ActCopy:
				x.w.Sealed(a.Segment, a.Dest, nil)
			case ActCopyOpen:
				x.w.CopiedOpen(a.Segment, a.Dest, nil)
			}
		}
	}
	x.t.Fatal("it never ends")
}

// A holder fails between the answer to the epoch-start's append and its fdatasync. The start becomes stable all the same, with
// or without a third member; and nothing is sealed before it is, as that would say that it was committed.
func TestAHolderFailsWhileTheEpochStarts(t *testing.T) {
	for members := 2; members <= 3; members++ {
		for _, reboot := range []bool{false, true} {
			cfg := WriterConfig{Journal: testSegment.Journal, Kind: JournalVolume, Epoch: ident.Epoch{Number: 3}, Capacity: 64 << 10, Proven: true}
			for i := range members {
				cfg.Members = append(cfg.Members, Member{Store: ident.StoreID{byte(i + 1)}, Home: true})
			}
			x := &starter{t: t, w: NewWriter(cfg, time.Second)}
			x.deaf = func(a Action) bool { return a.Kind == ActSync }
			x.run()
			if x.w.Serving() || x.w.held != x.w.start.At {
				t.Fatalf("serving %v, held to %d", x.w.Serving(), x.w.held.Seq)
			}
			x.w.Down(1)
			x.deaf, x.kept = nil, slices.DeleteFunc(x.kept, func(a Action) bool { return a.Member == 1 })
			x.run()
			if reboot {
				x.boot[1]++
			}
			x.w.Up(1)
			for now := time.Second; now < 10*time.Second && !x.w.Serving(); now += 20 * time.Millisecond {
				x.w.Tick(now)
				x.run()
			}
			if !x.w.Serving() {
				t.Errorf("%d members, reboot %v: the epoch never begins: %q", members, reboot, x.w.Unstable(x.w.start.At.Seq))
			}
		}
	}
}

// A takeover by force goes on below what had been stable. The records that it numbers anew are not stable for that, its
// epoch-start first of all.
func TestAStablePointBeyondTheHistoryIsNone(t *testing.T) {
	cfg := WriterConfig{Journal: testSegment.Journal, Kind: JournalVolume, Epoch: ident.Epoch{Number: 3}, Capacity: 64 << 10, Heard: pos(1, 151), HeardStable: pos(1, 363)}
	for i := range 2 {
		cfg.Members = append(cfg.Members, Member{Store: ident.StoreID{byte(i + 1)}, Home: true})
	}
	x := &starter{t: t, w: NewWriter(cfg, time.Second)}
	x.deaf = func(a Action) bool { return a.Kind == ActSync }
	x.run()
	if x.w.Serving() || x.w.Stable().Seq > 151 || x.w.OwnStable().Seq > 151 {
		t.Fatalf("serving %v, stable to %s, and nothing has been synced", x.w.Serving(), x.w.Stable())
	}
	x.deaf = nil
	x.run()
	if !x.w.Serving() || x.w.Stable() != x.w.start.At {
		t.Fatalf("serving %v, stable to %s", x.w.Serving(), x.w.Stable())
	}
}

// Both holders fail between the answers to the epoch-start's append and its fdatasync, and come back: whether they have it is for
// the next takeover to find out. This epoch would never begin.
func TestBothHoldersFailWhileTheEpochStarts(t *testing.T) {
	for members := 2; members <= 4; members++ {
		cfg := WriterConfig{Journal: testSegment.Journal, Kind: JournalVolume, Epoch: ident.Epoch{Number: 3}, Capacity: 64 << 10, Proven: true}
		for i := range members {
			cfg.Members = append(cfg.Members, Member{Store: ident.StoreID{byte(i + 1)}, Home: true})
		}
		x := &starter{t: t, w: NewWriter(cfg, time.Second)}
		x.deaf = func(a Action) bool { return a.Kind == ActSync }
		x.run()
		if x.w.Serving() || x.w.held != x.w.start.At {
			t.Fatalf("serving %v, held to %d", x.w.Serving(), x.w.held.Seq)
		}
		x.deaf, x.kept = nil, nil
		for i := range members {
			x.w.Down(i)
		}
		for now := time.Second; now < 2*time.Second; now += 20 * time.Millisecond {
			x.w.Tick(now)
		}
		if x.w.stopped != nil {
			t.Errorf("%d members: stopped while none could be asked: %v", members, x.w.stopped)
		}
		for i := range members {
			x.w.Up(i)
		}
		for now := 2 * time.Second; now < 10*time.Second && x.w.stopped == nil; now += 20 * time.Millisecond {
			x.w.Tick(now)
			x.run()
		}
		if x.w.stopped == nil && !x.w.Serving() {
			t.Errorf("%d members: the epoch neither begins nor ends: %q", members, x.w.Unstable(x.w.start.At.Seq))
		}
	}
}

// Both holders of what is committed and not stable lose their power while the owner lives: R8 has the journal stop then, and recovered
// as in a takeover, which says what is missing. Else a flush would wait for ever, and so would everybody for an error.
func TestNoHolderHasWhatWasCommitted(t *testing.T) {
	for _, lose := range []int{1, 2} {
		cfg := WriterConfig{Journal: testSegment.Journal, Kind: JournalVolume, Epoch: ident.Epoch{Number: 3}, Capacity: 64 << 10, Proven: true}
		for i := range 2 {
			cfg.Members = append(cfg.Members, Member{Store: ident.StoreID{byte(i + 1)}, Home: true})
		}
		x := &starter{t: t, w: NewWriter(cfg, time.Second)}
		x.run()
		if !x.w.Serving() {
			t.Fatal("not serving")
		}
		x.deaf = func(a Action) bool { return a.Kind == ActSync }
		e := &Entry{Record: Record{Kind: KindWrite, Count: 1, LogicalLen: BlockSize, StoredLen: BlockSize}}
		e.Bytes = make([]byte, RecordSize(e.StoredLen))
		x.w.Queue(e)
		x.w.Pump()
		x.run()
		x.deaf, x.kept = nil, nil
		x.refuses = func(a Action) bool { return a.Kind == ActSeal && a.Member < lose }
		for i := range 2 {
			x.w.Down(i)
			x.boot[i]++
		}
		for i := range 2 {
			x.w.Up(i)
		}
		x.w.WantStable(x.w.At().Seq)
		for now := 2 * time.Second; now < 10*time.Second && x.w.stopped == nil && x.w.Stable() != x.w.At(); now += 20 * time.Millisecond {
			x.w.Tick(now)
			x.run()
		}
		if stopped := x.w.stopped != nil; stopped != (lose == 2) {
			t.Errorf("lost at %d of two: stopped %v, %q", lose, x.w.stopped, x.w.Unstable(x.w.At().Seq))
		}
	}
}
