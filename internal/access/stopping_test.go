package access

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"dozo/internal/control"
	"dozo/internal/wire"
)

// A planned stop: volumes are handed over, under load, before the node closes; it takes none back; and clients of
// the other nodes see no error and no takeover.
func TestAPlannedStopHandsOver(t *testing.T) {
	t.Parallel()
	rec := &blockHistory{}
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		x := n.served(t, v)
		other := n.other(x, 1)
		vol := other.volumeAt(v)
		vol.Open()
		defer vol.Close()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 3 {
			c := &linearClient{n: n, id: i, v: v.ID, rng: rand.New(rand.NewPCG(1, uint64(i))), rec: rec, seen: map[int]blockState{}}
			wg.Go(func() { c.run(t, 3, stop) })
		}
		time.Sleep(time.Second)
		srv := x.srv.Load()
		began := time.Now()
		srv.HandOverAll()
		took := time.Since(began)
		if y := n.owner(v.ID, nil); y == x || took >= stopPatience {
			t.Errorf("after %v the node that stops owns it: %v", took, y == x)
		}
		t.Logf("it took %v", took)
		y := n.owner(v.ID, nil)
		if _, err := y.moveTo(v, x.name, 0); err == nil {
			t.Error("a node that stops has taken a volume")
		}
		began = time.Now()
		srv.HandOverAll() // there is nothing left to do
		if took := time.Since(began); took > 0 {
			t.Errorf("a second time it took %v", took)
		}
		x.stop()
		if err := simple(y.volumeAt(v).Owner(), wire.OpFlush, 0, 0); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		close(stop)
		wg.Wait()
		n.stopAll()
	})
	if res, _ := porcupine.CheckOperationsVerbose(blockModel, rec.ops, time.Minute); res != porcupine.Ok {
		t.Errorf("the history of %d commands is not linearizable: %v", len(rec.ops), res)
	}
}

// The last access server of a site, or the last of a cluster that stops as a whole, waits for nobody.
func TestAPlannedStopOfTheLastWaitsForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		x := n.served(t, v)
		if err := writeAt(x.volumeAt(v).Owner(), 0, bytes.Repeat([]byte{7}, 4096), false); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		began := time.Now()
		for _, y := range n.list {
			srv := y.srv.Load()
			wg.Go(srv.HandOverAll)
		}
		wg.Wait()
		if took := time.Since(began); took >= stopPatience {
			t.Errorf("all nodes of a site stop at once: it took %v", took)
		}
		if n.owner(v.ID, nil) == nil {
			t.Error("nobody owns it")
		}
		n.stopAll()
	})
}
