package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Times of burying.
const (
	// buryAfter leaves the owner the time to see the tombstone and to end by itself; the fence would end it too.
	buryAfter = time.Second
	// buryAgain is when a try is repeated that failed, and when the stores are looked through for journals that
	// nobody knows.
	buryAgain   = 5 * time.Second
	strangersAt = 10 * time.Minute
)

// burier removes what this node's stores hold of deleted volumes (R13).
type burier struct {
	n         *Node
	seen      map[ident.JournalID]time.Time // when a tombstone was first seen
	strangers map[ident.JournalID]bool      // journals without a key that were reported
	unknown   prometheus.Gauge
}

// buryDeleted removes the replicas of deleted volumes from this node's stores, and finally the tombstones, until
// ctx ends.
func (n *Node) buryDeleted(ctx context.Context) {
	u := &burier{n: n, seen: map[ident.JournalID]time.Time{}, strangers: map[ident.JournalID]bool{},
		unknown: prometheus.NewGauge(prometheus.GaugeOpts{Name: "dozo_node_unknown_journals",
			Help: "Journals of which a store holds replicas and the control store knows nothing; they are kept."})}
	n.reg.MustRegister(u.unknown)
	ctl := n.control()
	changed, cancel := ctl.Subscribe()
	defer cancel()
	ctx = control.WithActor(ctx, nodeObject(string(n.cfg.Node)))
	var looked time.Time
	for {
		wait := u.round(ctx, ctl)
		if time.Since(looked) > strangersAt {
			looked = time.Now()
			u.lookForStrangers(ctx, ctl)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// round looks at every tombstone and says when to look again.
func (u *burier) round(ctx context.Context, ctl *control.Client) time.Duration {
	wait := strangersAt
	_, tombs := ctl.SharedVolumes()
	for id := range u.seen {
		if v, ok := ctl.Volume(id); !ok || v.Deleted == nil {
			delete(u.seen, id)
		}
	}
	for _, v := range tombs {
		first, known := u.seen[v.ID]
		if !known {
			first = time.Now()
			u.seen[v.ID] = first
		}
		if left := buryAfter - time.Since(first); left > 0 {
			wait = min(wait, left)
			continue
		}
		if err := u.bury(ctx, ctl, *v); err != nil && ctx.Err() == nil {
			u.n.log.Warn("deleted volume is not removed yet", "volume", v.Name, "journal", v.ID.String(), "err", err)
			wait = min(wait, buryAgain)
		}
	}
	return wait
}

// bury removes what this node's stores hold of a deleted volume and confirms it; when all stores have
// confirmed, one node removes the tombstone.
func (u *burier) bury(ctx context.Context, ctl *control.Client, v control.VolumeSpec) error {
	var gone []ident.StoreID
	var errs []error
	for id, st := range u.n.stores {
		if slices.Contains(v.Confirmed, id) {
			continue
		}
		if err := dropAll(ctx, st, v.ID); err != nil {
			errs = append(errs, fmt.Errorf("store %s: %w", st.Dir(), err))
			continue
		}
		gone = append(gone, id)
	}
	if len(gone) > 0 {
		var err error
		if v, err = ctl.ConfirmDeleted(ctx, v.ID, gone...); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, s := range storesOf(ctl) {
		if !slices.Contains(v.Confirmed, s) {
			return nil // its node will, when it is there
		}
	}
	if !u.first(ctl) {
		return nil
	}
	err := ctl.ForgetVolume(ctx, v.ID)
	if errors.Is(err, control.ErrNotFound) {
		return nil // another node was quicker
	}
	return err
}

// first reports whether this node is the first, by name, of those that are alive and have stores.
func (u *burier) first(ctl *control.Client) bool {
	for _, x := range ctl.Nodes() {
		if len(x.Stores) > 0 && (x.Name == u.n.cfg.Node || ctl.Alive(x.Name)) {
			return x.Name == u.n.cfg.Node
		}
	}
	return false
}

// lastEpoch is above every epoch that an owner can have: a journal that is fenced by it takes nothing any more,
// however late.
var lastEpoch = ident.Epoch{Number: math.MaxUint64}

// dropAll ends a journal at a store and removes its replicas. The fence comes first, so that a paused owner that
// does not know of the deletion can put nothing there afterwards; its answer waits for the leases given.
func dropAll(ctx context.Context, st *core.Store, id ident.JournalID) error {
	list, err := replicasOf(ctx, st, id)
	if err != nil {
		return err
	}
	if _, err := st.Fence(ctx, &wire.Fence{Journal: id, Epoch: lastEpoch}); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	for range 2 { // what was put there before the fence may be new in the second round
		for _, s := range list {
			if _, err := st.Drop(ctx, &wire.Drop{Epoch: lastEpoch, Segment: s}); err != nil {
				return fmt.Errorf("drop %s: %w", s, err)
			}
		}
		if list, err = replicasOf(ctx, st, id); err != nil || len(list) == 0 {
			return err
		}
	}
	return fmt.Errorf("%d replicas are there after the fence: %w", len(list), wire.ErrBusy)
}

// replicasOf lists a store's replicas of a journal.
func replicasOf(ctx context.Context, st *core.Store, id ident.JournalID) (out []ident.SegmentID, err error) {
	for m := (&wire.Inventory{Journal: id}); ; {
		r, err := st.Inventory(ctx, m)
		if err != nil {
			return nil, err
		}
		for _, x := range r.Replicas {
			out = append(out, x.Segment)
		}
		if !r.More || len(r.Replicas) == 0 {
			return out, nil
		}
		m.After = r.Replicas[len(r.Replicas)-1].Segment
	}
}

// lookForStrangers reports journals of which there are replicas here and no key in the control store. They are
// kept: nobody has said that they may go (R13), and a control store that was restored may have forgotten them.
func (u *burier) lookForStrangers(ctx context.Context, ctl *control.Client) {
	found := map[ident.JournalID]bool{}
	for _, st := range u.n.stores {
		var zero ident.JournalID
		list, err := replicasOf(ctx, st, zero)
		if err != nil {
			u.n.log.Warn("store was not looked through", "store", st.Dir(), "err", err)
			return
		}
		for _, s := range list {
			if _, _, known := ctl.Journal(s.Journal); known || found[s.Journal] {
				continue
			}
			// The cache may be behind.
			_, _, err := ctl.JournalNow(ctx, s.Journal)
			if !errors.Is(err, control.ErrNotFound) {
				continue
			}
			found[s.Journal] = true
			if !u.strangers[s.Journal] {
				u.strangers[s.Journal] = true
				u.n.log.Warn("store holds replicas of a journal that the control store does not know; they are kept", "store", st.Dir(), "journal", s.Journal.String())
			}
		}
	}
	u.unknown.Set(float64(len(found)))
	u.n.strangers.Store(uint64(len(found)))
}
