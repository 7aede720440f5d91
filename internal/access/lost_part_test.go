package access

import (
	"errors"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// loseWrite has a store's disk lose the write of the record at one place of a segment: what is there is another one, whole.
func (c *cluster) loseWrite(s *seat, id ident.SegmentID, at, has uint32) {
	c.t.Helper()
	f, err := s.mem.OpenReadWrite("/store/segments/" + c.name(id))
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	raw := make([]byte, 64<<10)
	n, _ := f.ReadAt(raw, int64(has))
	var r journal.Record
	if err := r.Decode(raw[:n]); err != nil {
		c.t.Fatal(err)
	}
	if _, err := f.WriteAt(raw[:journal.RecordSize(r.StoredLen)], int64(at)); err != nil {
		c.t.Fatal(err)
	}
}

// A store that has lost the write of a part of the map, with another part there, is passed over. Where all have, who reads
// what the part maps gets an error.
func TestAPartThatADiskHasLostIsReadElsewhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.limit.MapBudgetBytes = 1
	v := c.volume(16<<20, 1, control.Replicated)
	o := c.own(v)
	data := make([]byte, 4096)
	data[0] = 7
	for leaf := range int64(4) {
		if err := writeAt(o, leaf<<22, data, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	var at [4]volume.PartPlace
	out := func() {
		t.Helper()
		o.ask(func() {
			o.everySecond()
			o.everySecond()
			if n := o.m.Leaves(); n != 0 {
				t.Fatalf("%d leaves stay in memory", n)
			}
			for i := range at {
				at[i], _ = o.m.Locate(volume.LeafID(i))
			}
		})
	}
	read := func(leaf int64) error {
		done := make(chan error, 1)
		go func() {
			got, err := readAt(o, leaf<<22, 4096)
			if err == nil && got[0] != 7 {
				err = errors.New("what is read was never written")
			}
			done <- err
		}()
		var err error
		eventually(t, "the read ends", func() bool {
			select {
			case err = <-done:
				return true
			default:
				return false
			}
		})
		return err
	}
	out()
	c.loseWrite(c.seats[0], at[0].Segment, at[0].Offset, at[1].Offset)
	if err := read(0); err != nil {
		t.Errorf("a part that one of two stores has lost: %v", err)
	}
	if n := counter(o.env.Metrics.Corrupt); n != 1 {
		t.Errorf("%v corrupt replicas counted", n)
	}
	eventually(t, "the replica is made again", func() bool { return counter(o.env.Metrics.Repaired) >= 1 })

	out()
	for _, s := range c.seats {
		c.loseWrite(s, at[1].Segment, at[1].Offset, at[2].Offset)
	}
	if err := read(1); !errors.Is(err, wire.ErrCorrupt) {
		t.Errorf("a part that both stores have lost: %v", err)
	}
	if err := read(3); err != nil {
		t.Errorf("another part: %v", err)
	}
	// It needs that part: what has been written to the leaf is to be put above what was there.
	if err := writeAt(o, 1<<22+4096, data, false); err != nil {
		t.Fatal(err)
	}
	checkpointed := make(chan error, 1)
	go func() { checkpointed <- o.Checkpoint() }()
	var err error
	eventually(t, "the checkpoint ends", func() bool {
		select {
		case err = <-checkpointed:
			return true
		default:
			return false
		}
	})
	if !errors.Is(err, wire.ErrCorrupt) {
		t.Errorf("a checkpoint without the part: %v", err)
	}
	o.Close()
}

// A takeover whose nearest store has lost the root of the checkpoint, with another part there, loads it from the other store.
func TestATakeoverFindsALostPart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(16<<20, 1, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 100)
	if err := o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	var root journal.CheckpointPoint
	var leaf volume.PartPlace
	o.ask(func() { root = o.w.Point(); leaf, _ = o.m.Locate(0) })
	o.Close()
	c.loseWrite(c.seats[0], root.Segment, root.Offset, leaf.Offset)
	o = c.own(v)
	n.check(t, o, n.acked, "with a root that one store has lost")
	o.Close()
}
