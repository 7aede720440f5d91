package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"dozo/internal/access"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// losing is what it would mean if stores were declared lost.
type losing struct {
	b      *backend
	c      *control.Client
	stores []ident.StoreID
}

// StoreLoss implements api.Stores. Nothing is changed, and nobody is kept from anything.
func (b *backend) StoreLoss(ctx context.Context, req *dozov1.StoreLossRequest) (*dozov1.StoreLossResponse, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	srv, err := b.accessServer()
	if err != nil {
		return nil, err
	}
	l := &losing{b: b, c: c}
	var sites []ident.SiteID
	for _, name := range req.Stores {
		list, err := b.storesNamed(c, name)
		if err != nil {
			return nil, err
		}
		for _, id := range list {
			if x, _ := c.NodeOfStore(id); !slices.Contains(l.stores, id) {
				l.stores, sites = append(l.stores, id), append(sites, x.Site)
			}
		}
	}
	out := &dozov1.StoreLossResponse{}
	all, err := b.ListStores(ctx, &dozov1.ListStoresRequest{})
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		id, err := ident.ParseStoreID(s.Id)
		up := err == nil && (b.n.pool != nil || b.n.stores[id] != nil) && b.n.Up(id)
		switch {
		case err == nil && slices.Contains(l.stores, id):
			out.Stores = append(out.Stores, s)
			if !up {
				out.Silent = append(out.Silent, s.Node+"/"+s.Label)
			} else {
				out.Notes = append(out.Notes, fmt.Sprintf("store %s/%s answers: dozo node remove and dozo store replace without force would lose nothing", s.Node, s.Label))
			}
		case s.State != storeLost && !up:
			out.Unheard = append(out.Unheard, s.Node+"/"+s.Label)
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, surveysAtOnce)
	for _, v := range c.Volumes() {
		state, _, ok := c.Journal(v.ID)
		if !ok || !slices.ContainsFunc(state.Sites, func(s ident.SiteID) bool { return slices.Contains(sites, s) }) && !lists(state, l.stores) {
			continue
		}
		out.Volumes++
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			m := l.of(ctx, srv, v)
			if m.SingleSegments+m.LostSegments+m.LostRecords == 0 && !m.Unproven && m.Message == "" {
				return
			}
			mu.Lock()
			out.Hit = append(out.Hit, m)
			mu.Unlock()
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	slices.SortFunc(out.Hit, func(a, b *dozov1.VolumeLoss) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Volume, b.Volume))
	})
	return out, nil
}

// lists reports that an ensemble of a journal lists one of the stores.
func lists(state control.JournalState, stores []ident.StoreID) bool {
	return slices.ContainsFunc(state.Ensembles, func(e control.Ensemble) bool {
		return slices.ContainsFunc(e.Stores, func(s ident.StoreID) bool { return slices.Contains(stores, s) })
	})
}

// of says what the loss would mean for one volume.
func (l *losing) of(ctx context.Context, srv *access.Server, v control.VolumeSpec) *dozov1.VolumeLoss {
	m := &dozov1.VolumeLoss{Id: v.ID.String(), Tenant: v.Tenant, Volume: v.Name}
	s, err := srv.Survey(ctx, v.ID, l.stores...)
	if err != nil {
		m.Message = err.Error()
		return m
	}
	m.LastSeq, m.LostRecords = uint64(s.Last), s.Records
	m.Unproven = !s.Enough && len(s.State.Ensembles) > 0 && !s.Kept()
	for _, c := range s.Held {
		if c.Stores == 1 {
			m.SingleSegments++
			m.SingleBytes += c.Bytes
		}
	}
	only := map[ident.SegmentID]bool{}
	for _, id := range l.stores {
		list, err := l.b.inventoryOf(ctx, id, v.ID)
		if err != nil {
			continue // it does not answer
		}
		for i := range list {
			if _, elsewhere := s.Held[list[i].Segment]; !elsewhere && access.CountsAsCopy(&list[i]) {
				only[list[i].Segment] = true
			}
		}
	}
	m.LostSegments = uint64(len(only))
	return m
}

// storesNamed gives the store that is meant, or all stores of the node.
func (b *backend) storesNamed(c *control.Client, name string) (out []ident.StoreID, err error) {
	if x, ok := c.Node(ident.NodeName(name)); ok {
		for _, s := range x.Stores {
			if !c.StoreLost(s.ID) {
				out = append(out, s.ID)
			}
		}
		return out, nil
	}
	_, s, err := b.findStore(name)
	return []ident.StoreID{s.ID}, err
}
