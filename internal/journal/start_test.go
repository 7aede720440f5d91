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
	boot [3]byte
	deaf func(Action) bool // what is not answered yet
	kept []Action
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
				x.w.Sealed(a.Segment, a.Member, nil)
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
