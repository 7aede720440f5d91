package access

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// thinLink reaches a store over a link that carries thinRate: what is appended takes its time, one after the other.
type thinLink struct {
	journal.Store
	queue chan func()
}

const thinRate = 4 << 20 // bytes a second

func (l *thinLink) run() {
	for f := range l.queue {
		f()
	}
}

func (l *thinLink) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	n := 0
	for _, d := range m.Data {
		n += len(d)
	}
	l.queue <- func() {
		time.Sleep(time.Duration(n) * time.Second / thinRate)
		l.Store.Append(m, done)
	}
}

// Writers run ahead of another site, by more than the link carries: they are slowed until it has caught up, to no less
// than half of the link (R10), and the volume moves. Nobody sees an error.
func TestWritersAreSlowedForAHandOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second)
		n.limit.SegmentBytes = 1 << 20
		var links sync.WaitGroup
		var thin []*thinLink
		for _, x := range n.list {
			x.thin = map[ident.StoreID]*thinLink{}
			for _, s := range n.seats {
				if s.site != x.home.site {
					l := &thinLink{x.far[s.id], make(chan func(), 1024)}
					x.thin[s.id], thin = l, append(thin, l)
					links.Go(l.run)
				}
			}
		}
		v := n.volume(8<<20, 2, control.Replicated)
		x := n.served(t, v)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var written atomic.Int64
		for i := range int64(2) {
			wg.Go(func() {
				vol := x.volumeAt(v)
				vol.Open()
				defer vol.Close()
				for at := i * 4 << 20; ; at = i*4<<20 + (at+32<<10)%(4<<20) {
					select {
					case <-stop:
						return
					case <-time.After(10 * time.Millisecond):
					}
					if _, err := through(x, v, wire.OpWrite, at, bytes.Repeat([]byte{byte(at >> 15)}, 32<<10), 0); err != nil {
						t.Errorf("write at %d: %v", at, err)
						return
					}
					written.Add(32 << 10)
				}
			})
		}
		time.Sleep(time.Second)
		s := x.srv.Load()
		r, err := s.HandOver(context.Background(), x.name, &wire.HandOver{Journal: v.ID, Step: wire.HandBegin, Site: 2})
		if err != nil {
			t.Fatal(err)
		}
		var slowed time.Time
		var before, during int64
		for !r.Done {
			if slowed.IsZero() && strings.Contains(r.Phase, "slowed") {
				slowed, before = time.Now(), written.Load()
			} else if !slowed.IsZero() && strings.Contains(r.Phase, "slowed") {
				during = written.Load() - before
			}
			time.Sleep(50 * time.Millisecond)
			if r, err = s.HandOver(context.Background(), x.name, &wire.HandOver{Journal: v.ID, Step: wire.HandStatus}); err != nil {
				t.Fatal(err)
			}
		}
		if r.Failed != 0 || slowed.IsZero() {
			t.Fatalf("slowed %v, %+v", !slowed.IsZero(), r)
		}
		took := time.Since(slowed)
		if rate := float64(during) / took.Seconds(); rate < 0.45*thinRate || rate > 0.9*thinRate {
			t.Errorf("slowed to %.0f bytes a second of a link of %d", rate, thinRate)
		}
		t.Logf("slowed for %v, to %d bytes in all; pause %v", took, during, r.Pause)
		if r.Pause > drainPatience/2 {
			t.Errorf("a pause of %v", r.Pause)
		}
		time.Sleep(time.Second)
		close(stop)
		wg.Wait()
		n.stopAll()
		for _, l := range thin {
			close(l.queue)
		}
		links.Wait()
	})
}
