package node

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/settle"
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

// round looks at every tombstone and says when to look again. What the stores hold is removed, and that confirmed, for many
// volumes at a time: with thousands, the transactions are what takes long.
func (u *burier) round(ctx context.Context, ctl *control.Client) time.Duration {
	wait := strangersAt
	_, tombs := ctl.SharedVolumes()
	for id := range u.seen {
		if v, ok := ctl.Volume(id); !ok || v.Deleted == nil {
			delete(u.seen, id)
		}
	}
	stores := storesOf(ctl)
	var open, done []control.VolumeSpec // what this node has to confirm, and what everybody has confirmed
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
		switch {
		case u.unconfirmed(v):
			open = append(open, *v)
		case confirmedBy(v, stores):
			done = append(done, *v)
		}
	}
	// Every node begins elsewhere: two that change the same keys at once have to try again.
	open = slices.Concat(open[u.start(len(open)):], open[:u.start(len(open))])
	failed := func(n int, err error) {
		if err != nil && ctx.Err() == nil {
			u.n.log.Warn("deleted volumes are not removed yet", "volumes", n, "err", err)
			wait = min(wait, buryAgain)
		}
	}
	for list := range slices.Chunk(open, control.BurialsPerTxn) {
		now, err := u.bury(ctx, ctl, list)
		failed(len(list), err)
		for i := range now {
			if confirmedBy(&now[i], stores) {
				done = append(done, now[i])
			}
		}
		if ctx.Err() != nil {
			return wait
		}
	}
	if len(done) > 0 && settle.First(ctl, u.n.cfg.Node) {
		for list := range slices.Chunk(done, control.BurialsPerTxn/2) {
			failed(len(list), u.forget(ctx, ctl, list))
		}
	}
	return wait
}

// start is where in a list of n this node begins.
func (u *burier) start(n int) int {
	if n == 0 {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(u.n.cfg.Node))
	return int(h.Sum32() % uint32(n))
}

// unconfirmed reports that a store of this node has not confirmed a tombstone.
func (u *burier) unconfirmed(v *control.VolumeSpec) bool {
	for id := range u.n.stores {
		if !slices.Contains(v.Confirmed, id) {
			return true
		}
	}
	return false
}

func confirmedBy(v *control.VolumeSpec, stores []ident.StoreID) bool {
	return !slices.ContainsFunc(stores, func(s ident.StoreID) bool { return !slices.Contains(v.Confirmed, s) })
}

// buryAtOnce is how many volumes are removed from the stores at a time: their fences share writes, and each waits for the leases
// that its owner was given.
const buryAtOnce = 32

// bury removes what this node's stores hold of deleted volumes, and confirms in one transaction what is removed. Dying
// in between loses the confirmation, not the deed: it is done again, of nothing, and confirmed then.
func (u *burier) bury(ctx context.Context, ctl *control.Client, list []control.VolumeSpec) ([]control.VolumeSpec, error) {
	gone, errs := make([][]ident.StoreID, len(list)), make([]error, len(list))
	var wg sync.WaitGroup
	room := make(chan struct{}, buryAtOnce)
	for i := range list {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			for id, st := range u.n.stores {
				if slices.Contains(list[i].Confirmed, id) {
					continue
				}
				if err := dropAll(ctx, st, list[i].ID); err != nil {
					errs[i] = errors.Join(errs[i], fmt.Errorf("volume %s (%s), store %s: %w", list[i].Name, list[i].ID, st.Dir(), err))
					continue
				}
				gone[i] = append(gone[i], id)
			}
		})
	}
	wg.Wait()
	var burials []control.Burial
	for i := range list {
		if len(gone[i]) > 0 {
			burials = append(burials, control.Burial{Volume: list[i].ID, Stores: gone[i]})
		}
	}
	now, err := ctl.ConfirmBurials(ctx, burials)
	return now, errors.Join(append(errs, err)...)
}

// forget removes tombstones that all stores have confirmed. Where one can not go yet the others do.
func (u *burier) forget(ctx context.Context, ctl *control.Client, list []control.VolumeSpec) error {
	ids := make([]ident.JournalID, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	err := ctl.ForgetVolumes(ctx, ids)
	if err == nil || errors.Is(err, control.ErrUncertain) || ctx.Err() != nil {
		return err
	}
	var errs []error
	for i := range list {
		// Not found: another node was quicker.
		if err := ctl.ForgetVolume(ctx, list[i].ID); err != nil && !errors.Is(err, control.ErrNotFound) {
			errs = append(errs, fmt.Errorf("volume %s (%s): %w", list[i].Name, list[i].ID, err))
		}
	}
	return errors.Join(errs...)
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
