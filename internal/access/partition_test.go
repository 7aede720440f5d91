package access

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// cutSiteOff parts a site from the others and from the control store.
func (n *nodes) cutSiteOff(site ident.SiteID, cut bool) {
	n.away.Store(0)
	if cut {
		n.away.Store(int32(site))
	}
	for _, x := range n.list {
		if x.home.site == site {
			n.mem.CutOff(x.name, cut)
		}
	}
}

func (n *nodes) policyVolume(t *testing.T, p control.Partition) control.VolumeSpec {
	t.Helper()
	v, err := n.ctl.CreateVolume(context.Background(), control.VolumeSpec{Name: "v", SizeBytes: 1 << 20, BlockSize: 512, Sites: 3, AtSite: 1, Durability: control.Replicated, Partition: p},
		[]ident.SiteID{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A site is cut off. With stop its owner is silent 7 s later, and another site serves once the lease is gone, with a prefix of
// what was acknowledged; nothing is acknowledged in between. With continue the owner goes on, and nobody else takes over.
func TestASiteThatIsCutOff(t *testing.T) {
	for _, policy := range []control.Partition{control.PartitionStop, control.PartitionContinue} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNodes(t, 3, 2, time.Second)
				v := n.policyVolume(t, policy)
				x := n.served(t, v)
				if x.home.site != 1 {
					t.Fatalf("the owner is at site %d", x.home.site)
				}
				o := x.srv.Load().Owners()[0]
				put := func(i byte) error {
					return writeAt(o, int64(i)*4096, bytes.Repeat([]byte{i}, 4096), false)
				}
				eventually(t, "a write", func() bool { return put(1) == nil })
				n.inStep(t, o)
				time.Sleep(3 * time.Second)
				n.cutSiteOff(1, true)
				begun := time.Now()
				var acked time.Time
				last := byte(1)
				var taken *node
				for time.Since(begun) < 20*time.Second && taken == nil {
					if err := put(last + 1); err == nil {
						last++
						acked = time.Now()
					} else if policy == control.PartitionContinue {
						t.Fatalf("after %v: %v", time.Since(begun), err)
					} else if !errors.Is(err, wire.ErrBusy) && !errors.Is(err, wire.ErrNotOwner) {
						t.Fatalf("after %v: %v", time.Since(begun), err)
					}
					if state := n.listed(v); state.Owner != x.name {
						for _, y := range n.list {
							if y.name == state.Owner {
								taken = y
							}
						}
					}
					time.Sleep(500 * time.Millisecond)
				}
				if policy == control.PartitionContinue {
					if taken != nil {
						t.Fatalf("%s has taken it over", taken.name)
					}
					n.cutSiteOff(1, false)
					n.stopAll()
					return
				}
				if taken == nil {
					t.Fatal("nobody has taken it over")
				}
				t.Logf("cut off: acknowledged for %v, taken over by %s after %v", acked.Sub(begun), taken.name, time.Since(begun))
				if d := acked.Sub(begun); d > silentAfter || d < 4*time.Second {
					t.Errorf("the last write was acknowledged %v after the cut", d)
				}
				if d := time.Since(begun); d < control.HoldTTL-control.HoldEvery {
					t.Errorf("taken over after %v", d)
				}
				eventually(t, "the new owner", func() bool { return n.owner(v.ID, nil) == taken })
				o2 := taken.srv.Load().Owners()[0]
				if o2.proven {
					t.Error("proven")
				}
				var d []byte
				eventually(t, "a read", func() (ok bool) {
					var err error
					d, err = readAt(o2, 4096, 4096)
					return err == nil
				})
				if d[0] != 1 {
					t.Errorf("block 1 has %d", d[0])
				}
				if err := writeAt(o2, 0, bytes.Repeat([]byte{0xee}, 4096), false); err != nil {
					t.Errorf("write at the new owner: %v", err)
				}
				// The site is back: its owner is over, what it had acknowledged is a fork.
				n.cutSiteOff(1, false)
				eventually(t, "the old owner is over", func() bool { return isClosed(o.Stopped()) })
				eventually(t, "the fork is reported", func() bool { return len(n.events("volume.fork")) > 0 })
				n.inStep(t, o2)
				n.stopAll()
			})
		})
	}
}

// A node whose key was gone for a while, while nobody took over, goes on once it has asked for its journals.
func TestALeaseThatWasGoneForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second) // two sites, no witness: nothing happens by itself
		v, err := n.ctl.CreateVolume(context.Background(), control.VolumeSpec{Name: "v", SizeBytes: 1 << 20, BlockSize: 512, Sites: 2, AtSite: 1, Durability: control.Replicated,
			Partition: control.PartitionStop}, []ident.SiteID{1, 2})
		if err != nil {
			t.Fatal(err)
		}
		x := n.served(t, v)
		o := x.srv.Load().Owners()[0]
		put := func() error { return writeAt(o, 0, make([]byte, 4096), false) }
		eventually(t, "a write", func() bool { return put() == nil })
		n.cutSiteOff(1, true)
		time.Sleep(30 * time.Second)
		if err := put(); !errors.Is(err, wire.ErrBusy) {
			t.Errorf("cut off: %v", err)
		}
		if _, err := readAt(o, 0, 4096); !errors.Is(err, wire.ErrBusy) {
			t.Errorf("a read, cut off: %v", err)
		}
		if state := n.listed(v); state.Owner != x.name {
			t.Errorf("%s has taken it over", state.Owner)
		}
		n.cutSiteOff(1, false)
		eventually(t, "it goes on", func() bool { return put() == nil })
		n.stopAll()
	})
}
