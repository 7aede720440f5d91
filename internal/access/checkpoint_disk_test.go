package access

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/vfs"
)

// A disk that takes nothing any more, while its server answers, keeps nobody from making checkpoints on the others.
func TestCheckpointsGoOnBesideADiskThatFails(t *testing.T) {
	t.Parallel()
	for victim := range 3 {
		c := newFaultyCluster(t, 1, 3)
		c.limit.AppendTimeout, c.limit.RepairGrace = time.Second, time.Hour
		v := c.volume(1<<20, 1, control.Replicated)
		im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(4, uint64(victim)))}
		s := c.seat(im.o.members[victim].Store)
		s.faults.Add(vfs.FailOn(vfs.OpSyncData, "*", syscall.EIO))
		for range 40 {
			im.change(t)
		}
		eventually(t, "a checkpoint", func() bool { return im.o.Checkpoint() == nil })
		im.o.Close()
		im.o = c.own(v)
		im.check(t)
		im.o.Close()
	}
}
