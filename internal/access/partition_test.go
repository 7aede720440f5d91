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

// The policy is changed while the volume is served. What counts is what the owner has said in its key: one that is cut off
// before it hears of stop goes on, and nobody takes its volume; one that hears of it is silent when it is cut off then; and
// one that can not take its word back heeds it, whatever the specification says.
func TestThePolicyIsChanged(t *testing.T) {
	set := func(t *testing.T, n *nodes, v control.VolumeSpec, p control.Partition) {
		t.Helper()
		if _, err := n.ctl.UpdateVolume(t.Context(), v.ID, func(v *control.VolumeSpec) error { v.Partition = p; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	stops := func(n *nodes, v control.VolumeSpec) bool { return n.listed(v).Stops }
	// cutFor cuts the owner's site off, and says for how long the owner acknowledged, and who has the volume in the end.
	cutFor := func(n *nodes, v control.VolumeSpec, o *Owner, during func()) (acked time.Duration, by ident.NodeName) {
		n.cutSiteOff(1, true)
		if during != nil {
			during()
		}
		begun := time.Now()
		for time.Since(begun) < 25*time.Second {
			if writeAt(o, 0, make([]byte, 4096), false) == nil {
				acked = time.Since(begun)
			}
			if by = n.listed(v).Owner; by != o.env.Node {
				break
			}
			time.Sleep(500 * time.Millisecond)
		}
		return acked, by
	}
	t.Run("stop", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNodes(t, 3, 2, time.Second)
			v := n.policyVolume(t, control.PartitionContinue)
			x := n.served(t, v)
			o := x.srv.Load().Owners()[0]
			eventually(t, "a write", func() bool { return writeAt(o, 0, make([]byte, 4096), false) == nil })
			acked, by := cutFor(n, v, o, func() { set(t, n, v, control.PartitionStop) })
			if by != x.name || acked < 20*time.Second {
				t.Errorf("cut off before it was told to stop: acknowledged for %v, the owner is %s", acked, by)
			}
			n.cutSiteOff(1, false)
			eventually(t, "the owner has said that it stops", func() bool { return stops(n, v) })
			if err := writeAt(o, 0, make([]byte, 4096), false); err != nil {
				t.Errorf("the change of the policy: %v", err)
			}
			time.Sleep(3 * time.Second)
			n.inStep(t, o)
			if acked, by = cutFor(n, v, o, nil); by == x.name || acked > silentAfter {
				t.Errorf("cut off after it was told to stop: acknowledged for %v, the owner is %s", acked, by)
			}
			n.cutSiteOff(1, false)
			eventually(t, "the new owner has said that it stops", func() bool { return stops(n, v) })
			n.stopAll()
		})
	})
	t.Run("continue", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNodes(t, 3, 2, time.Second)
			v := n.policyVolume(t, control.PartitionStop)
			x := n.served(t, v)
			o := x.srv.Load().Owners()[0]
			eventually(t, "a write", func() bool { return writeAt(o, 0, make([]byte, 4096), false) == nil })
			if !stops(n, v) {
				t.Error("who takes a volume with stop says so at once")
			}
			set(t, n, v, control.PartitionContinue)
			eventually(t, "the owner has taken its word back", func() bool { return !stops(n, v) })
			time.Sleep(3 * time.Second)
			n.inStep(t, o)
			if acked, by := cutFor(n, v, o, nil); by != x.name || acked < 20*time.Second {
				t.Errorf("acknowledged for %v, the owner is %s", acked, by)
			}
			n.cutSiteOff(1, false)
			set(t, n, v, control.PartitionStop)
			eventually(t, "the owner has said that it stops", func() bool { return stops(n, v) })
			time.Sleep(3 * time.Second)
			n.inStep(t, o)
			// It hears that it may go on, and can not take its word back.
			n.mem.SetDown(true)
			goOn := *o.spec.Load()
			goOn.Partition = control.PartitionContinue
			o.SetSpec(goOn)
			time.Sleep(silentAfter + time.Second)
			if err := writeAt(o, 0, make([]byte, 4096), false); !errors.Is(err, wire.ErrBusy) {
				t.Errorf("while it is said to stop: %v", err)
			}
			n.mem.SetDown(false)
			eventually(t, "it goes on", func() bool { return writeAt(o, 0, make([]byte, 4096), false) == nil })
			n.stopAll()
		})
	})
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
