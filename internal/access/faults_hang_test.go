package access

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// hangs makes operations of a seat's disk wait until the returned function is called.
func (s *seat) hangs(t *testing.T, ops ...vfs.Op) (release func()) {
	c := make(chan struct{})
	var once sync.Once
	var removes []func()
	for _, op := range ops {
		removes = append(removes, s.faults.Add(vfs.HangOn(op, "*", c)))
	}
	release = func() {
		once.Do(func() {
			for _, r := range removes {
				r()
			}
			close(c)
		})
	}
	t.Cleanup(release)
	return release
}

var everything = []vfs.Op{vfs.OpCreate, vfs.OpOpen, vfs.OpRemove, vfs.OpRename, vfs.OpMkdir, vfs.OpList, vfs.OpSyncDir, vfs.OpRead, vfs.OpWrite,
	vfs.OpPreallocate, vfs.OpTruncate, vfs.OpSyncData}

// A disk that hangs, the owner's own or another's, costs one deadline: writes, flushes and reads go on with the
// other members while it hangs, and it is used again afterwards.
func TestAHungDiskIsLeft(t *testing.T) {
	t.Parallel()
	for _, victim := range []int{0, 1} {
		for _, ops := range [][]vfs.Op{{vfs.OpWrite}, {vfs.OpSyncData}, everything} {
			c := newFaultyCluster(t, 1, 3)
			c.limit.SegmentBytes = 64 << 10
			c.limit.AppendTimeout, c.limit.ReadTimeout, c.limit.SyncPatience = time.Second, time.Second, time.Second
			v := c.volume(1<<20, 1, control.Replicated)
			im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, uint64(victim)))}
			for range 30 {
				im.change(t)
			}
			release := c.seats[victim].hangs(t, ops...)
			// On a machine that stands still for longer than the limits another may be among them.
			avoided := false
			look := func() {
				avoided = avoided || slices.ContainsFunc(im.o.env.Health.Avoided(), func(a StoreHealth) bool { return a.Store == c.seats[victim].id })
			}
			for range 60 {
				im.change(t)
				look()
			}
			eventually(t, fmt.Sprintf("store %d hangs in %v: it is avoided", victim, ops), func() bool {
				im.change(t)
				look()
				return avoided
			})
			if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
				t.Errorf("store %d hangs in %v: flush: %v", victim, ops, err)
			}
			im.check(t)
			im.o.ask(im.o.publish)
			release()
			eventually(t, "the store is used again", func() bool {
				im.change(t)
				used := false
				for _, s := range im.o.Segments()[1:] {
					if !s.Sealed && s.ID.Epoch == im.o.epoch {
						for _, h := range s.Holders {
							used = used || h.Store == c.seats[victim].id
						}
					}
				}
				return used
			})
			im.check(t)
			im.o.Close()
			im.o = c.own(v)
			im.check(t)
			im.o.Close()
		}
	}
}

// A member that doesn't open the next segment is passed over, whatever else waits for it.
func TestAHungOpenIsPassedOver(t *testing.T) {
	t.Parallel()
	c := newFaultyCluster(t, 1, 3)
	c.limit.SegmentBytes = 64 << 10
	c.limit.SyncTimeout = time.Hour // nothing but the other pair ends the wait
	v := c.volume(1<<20, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(4, 4))}
	for i, s := range c.seats {
		for range 5 {
			im.change(t)
		}
		release := s.hangs(t, vfs.OpCreate)
		before := len(im.o.Segments())
		for len(im.o.Segments()) < before+4 {
			im.change(t)
		}
		release()
		if i == 2 {
			im.check(t)
		}
	}
	im.o.Close()
}

// A takeover doesn't wait for this node's own disk either.
func TestATakeoverPassesOverAHungDisk(t *testing.T) {
	t.Parallel()
	c := newFaultyCluster(t, 1, 3)
	c.limit.AppendTimeout, c.limit.ReadTimeout, c.limit.SyncPatience = time.Second, time.Second, time.Second
	v := c.volume(1<<20, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(5, 4))}
	for range 50 {
		im.change(t)
	}
	if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	release := c.seats[0].hangs(t, everything...)
	old := im.o
	im.o = c.own(v)
	for range 20 {
		im.change(t)
	}
	im.check(t)
	release()
	old.Close()
	im.o.Close()
}

// A store that fails is tried again ever more seldom, not every second.
func TestAFailingStoreIsTriedMoreAndMoreSeldom(t *testing.T) {
	var now atomic.Int64
	now.Store(int64(time.Hour))
	var told []StoreHealth
	h := NewHealth(now.Load, func(s StoreHealth) { told = append(told, s) })
	a, b := ident.NewStoreID(), ident.NewStoreID()
	if !h.Usable(a) || h.Avoided() != nil {
		t.Fatal("a store that nobody knows is avoided")
	}
	for i := range 12 {
		h.Failed(a, "broken")
		h.Failed(a, "the same failure, seen by another volume")
		if h.Usable(a) || !h.Usable(b) {
			t.Fatal("not avoided, or the wrong one")
		}
		list := h.Avoided()
		pause := min(avoidMax, avoidMin<<i)
		if len(list) != 1 || list[0].Failures != i+1 || list[0].Why != "broken" || list[0].Left < pause*3/4 || list[0].Left > pause*5/4 {
			t.Fatalf("after failure %d: %+v, about %v wanted", i+1, list, pause)
		}
		now.Add(int64(list[0].Left) + 1)
		if !h.Usable(a) {
			t.Fatal("not tried again")
		}
	}
	if len(told) != 24 || told[0].Why != "broken" || told[1].Why != "" {
		t.Errorf("%d messages: %+v", len(told), told)
	}
	now.Add(int64(3 * avoidMax))
	h.Failed(a, "broken anew")
	if list := h.Avoided(); list[0].Failures != 1 {
		t.Errorf("after a quiet time: %+v", list)
	}
	now.Add(int64(avoidMax))
	h.hang(a)
	if h.Usable(a) {
		t.Error("used while a call hangs")
	}
	h.returned(a)
	if !h.Usable(a) {
		t.Error("not used after the call has returned")
	}
	h.Full(b, "full")
	for range 9 {
		now.Add(int64(avoidMax))
		h.Full(b, "full")
		if left := h.Avoided()[0].Left; left > avoidFullMax*5/4 {
			t.Fatalf("a full store is left alone for %v", left)
		}
		h.Usable(b)
	}
	var none *Health
	none.Failed(a, "")
	if !none.Usable(a) || none.Avoided() != nil {
		t.Error("without any")
	}
}

// Errors of a disk under a live owner: the error goes to whoever repairs, not to the client as long as two members
// are left, and nothing wrong is ever read. A store whose fdatasync failed takes nothing any more, one that only
// failed a write neither; a full one goes on being read and sealed.
func TestDiskErrorsUnderALiveOwner(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name   string
		fault  func() vfs.Fault
		failed bool // for good
	}{
		{"EIO on write", func() vfs.Fault { return onSegments(vfs.OpWrite, syscall.EIO) }, true},
		{"EIO on fdatasync", func() vfs.Fault { return onSegments(vfs.OpSyncData, syscall.EIO) }, true},
		{"ENOSPC on write", func() vfs.Fault { return onSegments(vfs.OpWrite, syscall.ENOSPC) }, false},
		{"ENOSPC on preallocation", func() vfs.Fault { return onSegments(vfs.OpPreallocate, syscall.ENOSPC) }, false},
		{"short write, ENOSPC", func() vfs.Fault { return onSegments(vfs.OpWrite, &vfs.PartialWrite{Bytes: 4500, Err: syscall.ENOSPC}) }, false},
		{"short write, EIO", func() vfs.Fault { return onSegments(vfs.OpWrite, &vfs.PartialWrite{Bytes: 4500, Err: syscall.EIO}) }, true},
		{"EROFS on write", func() vfs.Fault { return onSegments(vfs.OpWrite, syscall.EROFS) }, true},
	} {
		for _, victim := range []int{0, 1} {
			t.Run(x.name, func(t *testing.T) {
				c := newFaultyCluster(t, 1, 3)
				c.limit.SegmentBytes = 64 << 10
				v := c.volume(1<<20, 1, control.Replicated)
				im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(7, uint64(victim)))}
				for range 30 {
					im.change(t)
				}
				// Another volume on the same stores loses nothing by it, and gets no error either.
				w, err := c.ctl.CreateVolume(t.Context(), control.VolumeSpec{Name: "w", SizeBytes: 1 << 20, BlockSize: 512, Sites: 1, AtSite: 1,
					Durability: control.Replicated}, []ident.SiteID{1})
				if err != nil {
					t.Fatal(err)
				}
				other := &image{o: c.own(w), want: make([]byte, w.SizeBytes), rng: rand.New(rand.NewPCG(8, uint64(victim)))}
				for range 10 {
					other.change(t)
				}
				of := v.ID.String()
				fault := x.fault()
				remove := c.seats[victim].faults.Add(func(c vfs.Call) error {
					if !strings.Contains(c.Path, of) {
						return nil
					}
					return fault(c)
				})
				for range 60 {
					im.change(t)
					other.change(t)
				}
				other.check(t)
				defer other.o.Close()
				if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
					t.Errorf("flush: %v", err)
				}
				im.check(t)
				eventually(t, "what it had is elsewhere", func() bool {
					for _, s := range im.o.Segments() {
						good := 0
						for _, h := range s.Holders {
							if s.Sealed && h.Stable && !h.Bad {
								good++
							}
						}
						if s.Sealed && good < 2 {
							return false
						}
					}
					return true
				})
				remove()
				if failed := c.seats[victim].live.Load().Failed() != ""; failed != x.failed {
					t.Errorf("the store has failed: %v", failed)
				}
				// A restarted process knows what the last one has seen (R8).
				c.kill(c.seats[victim])
				c.start(c.seats[victim])
				if failed := c.seats[victim].live.Load().Failed() != ""; failed != x.failed {
					t.Errorf("after a restart the store has failed: %v", failed)
				}
				im.check(t)
				other.change(t)
				other.check(t)
				old := im.o
				im.o = c.own(v)
				old.Close()
				im.check(t)
				im.o.Close()
			})
		}
	}
}

// onSegments fails operations on segment files only.
func onSegments(op vfs.Op, err error) vfs.Fault {
	return func(c vfs.Call) error {
		if c.Op == op && bytes.Contains([]byte(c.Path), []byte("/segments/")) {
			return err
		}
		return nil
	}
}

// With two members and one of them broken nothing is acknowledged that is on one only, and nothing is lost.
func TestNoSecondStore(t *testing.T) {
	c := newFaultyCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(7, 7))}
	for range 30 {
		im.change(t)
	}
	c.seats[1].faults.Add(onSegments(vfs.OpWrite, syscall.EIO))
	var answered atomic.Bool
	op := NewOp()
	op.Kind, op.Length, op.Buf = wire.OpWrite, 4096, NewWriteBuf(0, 4096)
	done := make(chan error, 1)
	op.Done = func(_ *Op, err error) { answered.Store(true); done <- err }
	im.o.Submit(op)
	eventually(t, "the owner waits", func() bool {
		im.o.ask(im.o.publish)
		return im.o.View().State == "waiting for a second core server"
	})
	if answered.Load() {
		t.Error("a write was answered that one store has")
	}
	im.o.Close()
	if err := <-done; !errors.Is(err, wire.ErrNotOwner) {
		t.Errorf("the write ended with %v", err)
	}
}

// A read was given up, and had to be looked up again behind a leaf of the map that was not in memory: the list of pieces is still the
// store's that hangs.
func TestAReadThatIsAskedForAgainLeavesTheStoresListAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	want := bytes.Repeat([]byte{7}, 8192)
	if err := writeAt(o, 4096, want, false); err != nil {
		t.Fatal(err)
	}
	asked := wire.ReadPiece{First: 3, Blocks: 5}
	op := NewOp()
	op.Kind, op.Offset, op.Length = wire.OpRead, 4096, 8192
	op.read.Pieces, op.lent = []wire.ReadPiece{asked}, true
	if err := do(o, op); err != nil {
		t.Fatal(err)
	}
	if got := bytes.Join(op.Data, nil); !bytes.Equal(got, want) {
		t.Errorf("%d bytes that are not what was written", len(got))
	}
	if len(op.read.Pieces) != 1 || op.read.Pieces[0] != asked {
		t.Errorf("the list that the store has is %v now", op.read.Pieces)
	}
	op.Release()
	o.Close()
}
