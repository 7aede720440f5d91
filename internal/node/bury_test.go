package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

func TestBurial(t *testing.T) {
	b := newBench(t)
	st, err := core.Open(core.Options{FS: vfs.NewMem(1 << 30), Dir: "store", Create: true, Boot: ident.BootID{1}, FailMarkDir: "marks"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	b.n.stores, b.n.reg = map[ident.StoreID]*core.Store{st.ID(): st}, prometheus.NewRegistry()
	self := *b.n.self.Load()
	self.Stores = []control.StoreSpec{{ID: st.ID(), CapacityBytes: 1 << 30}}
	if self, err = b.ctl.RegisterNode(b.ctx, self); err != nil {
		t.Fatal(err)
	}
	v, err := b.ctl.CreateVolume(b.ctx, control.VolumeSpec{Name: "v", SizeBytes: 1 << 20, Sites: 1, AtSite: self.Site}, []ident.SiteID{self.Site})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := b.ctl.CreateVolume(b.ctx, control.VolumeSpec{Name: "kept", SizeBytes: 1 << 20, Sites: 1, AtSite: self.Site}, []ident.SiteID{self.Site})
	if err != nil {
		t.Fatal(err)
	}
	stranger := ident.NewJournalID()
	epoch := ident.Epoch{Number: 3, Lineage: 7}
	open := func(id ident.JournalID, number uint32, epoch ident.Epoch) error {
		_, err := st.OpenSegment(b.ctx, &wire.OpenSegment{Epoch: epoch, Segment: ident.SegmentID{Journal: id, Epoch: epoch, Number: number, Site: self.Site}, Capacity: 1 << 20})
		return err
	}
	for _, id := range []ident.JournalID{v.ID, kept.ID, stranger} {
		for number := range uint32(3) {
			if err := open(id, number, epoch); err != nil {
				t.Fatal(err)
			}
		}
	}
	replicas := func(id ident.JournalID) int {
		t.Helper()
		list, err := replicasOf(b.ctx, st, id)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	ctx, stop := context.WithCancel(b.ctx)
	done := make(chan struct{})
	go func() { defer close(done); b.n.buryDeleted(ctx) }()
	t.Cleanup(func() { stop(); <-done })

	if _, err := b.ctl.DeleteVolume(b.ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store has not confirmed", func() error {
		if now, ok := b.ctl.Volume(v.ID); !ok || !slices.Contains(now.Confirmed, st.ID()) {
			return fmt.Errorf("%v", now)
		}
		return nil
	})
	if n := replicas(v.ID); n != 0 {
		t.Errorf("%d replicas of the deleted volume", n)
	}
	// The owner was paused, or another one takes over without knowing: neither puts anything there again.
	for _, e := range []ident.Epoch{epoch, {Number: 4, Lineage: 7}, {Number: 1000, Lineage: 8}} {
		if err := open(v.ID, 9, e); !errors.Is(err, wire.ErrFenced) {
			t.Errorf("an owner of epoch %s after the deletion: %v", e, err)
		}
	}
	// n2 has a store that has not confirmed: the tombstone stays until it has, or is out of the cluster.
	if _, ok := b.ctl.Volume(v.ID); !ok {
		t.Fatal("the tombstone went before all stores had confirmed")
	}
	if err := b.ctl.RemoveNode(b.ctx, "n2"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tombstone is still there", func() error {
		if _, ok := b.ctl.Volume(v.ID); ok {
			return errors.New("it is")
		}
		return nil
	})
	if _, _, err := b.ctl.JournalNow(b.ctx, v.ID); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("the journal's key: %v", err)
	}
	if n, m := replicas(kept.ID), replicas(stranger); n != 3 || m != 3 {
		t.Errorf("%d replicas of a volume that was not deleted, %d of a journal that nobody knows", n, m)
	}
	if got := gauge(t, b.n.reg, "dozo_node_unknown_journals"); got != 1 {
		t.Errorf("%v unknown journals were reported", got)
	}
}

func gauge(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
