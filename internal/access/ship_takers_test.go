package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// A disk of another site fails, or is full. What comes goes to the other store of the site, also the segment of which the first one has a
// part, while what that has whole still counts: nothing of it is shipped again.
func TestAStoreOfAnotherSiteThatTakesNothingIsPassedOver(t *testing.T) {
	for _, x := range []struct {
		name  string
		fault vfs.Fault
	}{
		{"EIO on write", onSegments(vfs.OpWrite, syscall.EIO)},
		{"EIO on fdatasync", onSegments(vfs.OpSyncData, syscall.EIO)},
		{"ENOSPC on write", onSegments(vfs.OpWrite, syscall.ENOSPC)},
		{"ENOSPC on preallocation", onSegments(vfs.OpPreallocate, syscall.ENOSPC)},
	} {
		for _, ack := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, acknowledged %v", x.name, ack), func(t *testing.T) {
				t.Parallel()
				c := newFaultyCluster(t, 2, 2)
				v, im := c.shipsToBoth(t, ack)
				o, stays, fails := im.o, c.seats[2], c.seats[3]
				o.ask(o.w.CloseIdle)
				c.inStep(t, o)
				before := o.Segments()
				fails.faults.Add(x.fault)
				old := c.replicas(stays, v.ID)
				eventually(t, "what comes is at the other store", func() bool {
					im.change(t)
					return c.newerThan(stays, v, old) >= 4
				})
				c.inStep(t, o)
				for _, s := range before {
					at := func(id *seat) bool {
						return slices.ContainsFunc(s.Holders, func(h HolderView) bool { return h.Store == id.id && h.Stable && !h.Bad })
					}
					if _, again := c.replicas(stays, v.ID)[s.ID]; again && !s.ID.IsCheckpoint() && at(fails) && !at(stays) {
						t.Errorf("segment %s is shipped again", s.ID)
					}
				}
				im.check(t)
				o.Close()
			})
		}
	}
}

// Somebody may have made room: a store that was passed over is tried again, but for one of which it is known that its disk has failed.
func TestAStoreThatWasPassedOverIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, 2)
		o := &Owner{env: c.env()}
		s := &siteShip{site: 2}
		var stores []journal.Store
		for _, x := range c.seats[2:] {
			stores = append(stores, x)
		}
		full, other := stores[0].ID(), stores[1].ID()
		s.failedAt(full, wire.Errorf(wire.CodeNoSpace, "full"))
		takers := o.takers(s, stores)
		if among(takers, full) || !among(takers, other) {
			t.Fatal("a full store is shipped to, or none")
		}
		s.failedAt(other, wire.Errorf(wire.CodeIO, "broken"))
		if len(o.takers(s, stores)) != 2 {
			t.Error("nobody is tried where nobody takes anything")
		}
		c.tellOf(other, StoreInfo{Known: true, Failed: true})
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 8)
		done := make(chan struct{})
		began := time.Now()
		go func() { defer close(done); o.watchPassed(ctx, s, stores, nil, failed) }()
		if err := <-failed; !errors.Is(err, errSiteChanged) || !strings.Contains(err.Error(), full.String()) {
			t.Error(err)
		}
		if time.Since(began) < passOver {
			t.Error("it is tried at once")
		}
		cancel()
		<-done
		if takers = o.takers(s, stores); !among(takers, full) || among(takers, other) {
			t.Error("a store whose disk has failed is tried again, or the other one is not")
		}
	})
}
