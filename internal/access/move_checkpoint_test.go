package access

import (
	"bytes"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A checkpoint is made after the taker has loaded the one that was made for it, and is not copied to its site at once. The site that is
// left is lost right behind the hand-over: the new owner has the whole map.
func TestACheckpointWithinAHandOverIsAtTheNewSite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 3, time.Second)
		var opens, pushes atomic.Bool
		n.wrap = func(s journal.Store) journal.Store { return &shut{s, &opens, &pushes} }
		v := n.volume(64<<20, 2, control.Replicated)
		x := n.served(t, v)
		const blocks, apart = 12, 4 << 20 // a leaf of the map each
		write := func(i int, what byte) {
			t.Helper()
			if _, err := through(x, v, wire.OpWrite, int64(i)*apart, bytes.Repeat([]byte{what}, 4096), 0); err != nil {
				t.Fatal(err)
			}
		}
		for i := range blocks {
			write(i, 1)
		}
		asked := false
		n.onHandOver = func(_ *node, m *wire.HandOver, done bool) {
			if asked || done || m.Step != wire.HandReady {
				return
			}
			asked = true
			for i := range blocks {
				write(i, 2)
			}
			pushes.Store(true)
			vol, _ := x.srv.Load().Volume(v.ID)
			if err := vol.owner.Load().Checkpoint(); err != nil {
				t.Error(err)
			}
			time.AfterFunc(3*time.Second, func() { pushes.Store(false) })
		}
		r, err := x.moveTo(v, "", 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range n.list {
			if o.home.site == 1 {
				o.cut.Store(true)
			}
		}
		if !asked || pushes.Load() {
			t.Error("handed over before the checkpoint was there")
		}
		y := n.owner(v.ID, x)
		if y == nil || y.name != r.Taker {
			t.Fatalf("%s was to own it", r.Taker)
		}
		for i := range blocks {
			if got, err := through(y, v, wire.OpRead, int64(i)*apart, nil, 4096); err != nil || got[0] != 2 {
				t.Errorf("block %d: %v, %v", i, got[:min(1, len(got))], err)
			}
		}
		vol, _ := y.srv.Load().Volume(v.ID)
		if err := vol.owner.Load().Checkpoint(); err != nil {
			t.Errorf("the new owner's checkpoint: %v", err)
		}
		for _, o := range n.list {
			o.cut.Store(false)
		}
		n.stopAll()
	})
}
