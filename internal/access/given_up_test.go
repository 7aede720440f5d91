package access

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// mute is a store that does what it is told and says nothing of it, as one whose process was paused with all that in its sockets.
type mute struct {
	journal.Store
	is func() bool
}

func (m *mute) Append(a *wire.Append, done func(wire.AppendReply, error)) {
	if !m.is() {
		m.Store.Append(a, done)
		return
	}
	m.Store.Append(a, func(wire.AppendReply, error) {
		time.AfterFunc(2*time.Second, func() { done(wire.AppendReply{}, errMute) }) // long after it was given up
	})
}

func (m *mute) Seal(ctx context.Context, s *wire.Seal) (r wire.SealReply, err error) {
	if m.is() {
		return r, errMute
	}
	return m.Store.Seal(ctx, s)
}

func (m *mute) Sync(ctx context.Context, s *wire.Sync) (r wire.SyncReply, err error) {
	if m.is() {
		return r, errMute
	}
	return m.Store.Sync(ctx, s)
}

func (m *mute) Drop(ctx context.Context, d *wire.Drop) (r wire.DropReply, err error) {
	if m.is() {
		return r, errMute
	}
	return m.Store.Drop(ctx, d)
}

var errMute = wire.Errorf(wire.CodeUnreached, "no answer")

// A store hangs while writes are under way to it in two segments, the last one of a segment and the first of the next, and is given up: both
// are written again, into one segment at the two other stores. When the owner is gone, too, the store is back, with a segment that begins in
// the middle of that one. It ends nothing, and all that was flushed is there.
func TestAStoreIsBackWithASegmentThatWasGivenUp(t *testing.T) {
	t.Parallel()
	for range 5 {
		if aStoreIsBack(t) {
			return
		}
	}
	t.Fatal("what the test is about was not met: two records behind the commit point, in two segments")
}

// aStoreIsBack is that test. Where a pause of the machine has the writes come in another way it gives false, and means nothing.
func aStoreIsBack(t *testing.T) bool {
	t.Helper()
	const size = 16 << 10 // three such records fill a segment, and the next one is opened behind the second
	c := newCluster(t, 1, 3)
	c.limit.SegmentBytes = 64 << 10
	var hangs atomic.Pointer[seat]
	c.wrap = func(s journal.Store) journal.Store {
		return &mute{s, func() bool { h := hangs.Load(); return h != nil && h.id == s.ID() }}
	}
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	written := 0
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, size) }
	write := func(count int) {
		t.Helper()
		var wg sync.WaitGroup
		for range count {
			i := written
			written++
			wg.Go(func() {
				if err := writeAt(o, int64(i)*size, content(i), false); err != nil {
					t.Errorf("write %d: %v", i, err)
				}
			})
		}
		wg.Wait()
	}
	for range 3 + 2 {
		write(1)
	}
	var last, next ident.SegmentID
	eventually(t, "the next segment is open at a store of the last one", func() bool {
		commit := o.View().Commit
		for _, s := range c.seats {
			var a, b ident.SegmentID
			for id, r := range c.replicas(s, v.ID) {
				switch {
				case r.State != wire.ReplicaOpen:
				case r.End == 0:
					b = id
				case r.Last == commit && r.Last.Seq == r.Before.Seq+2:
					a = id
				}
			}
			if a != b && a.Number != 0 && b.Number > a.Number {
				last, next = a, b
				hangs.Store(s)
				return true
			}
		}
		return false
	})
	commit, store := o.View().Commit.Seq, hangs.Load()
	write(2)
	write(2)
	has := c.replicas(store, v.ID)
	if has[last].Last.Seq != commit+1 || has[next].Last.Seq != commit+2 || has[next].Before.Seq != commit+1 {
		t.Logf("not what the test is about: the store has %+v and %+v behind %d", has[last], has[next], commit)
		o.Close()
		return false
	}
	if err := simple(o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	o.Close()
	hangs.Store(nil)
	for _, s := range c.seats {
		if s != store {
			c.kill(s)
			break
		}
	}
	o = c.own(v)
	if !o.proven || o.recovered.Lost {
		t.Errorf("proven %v: %s", o.proven, o.recovered.Describe())
	}
	for i := range written {
		if got, err := readAt(o, int64(i)*size, size); err != nil || !bytes.Equal(got, content(i)) {
			t.Errorf("write %d, which was flushed, is not there: %v", i, err)
		}
	}
	o.Close()
	return true
}
