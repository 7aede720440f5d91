package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"dozo/internal/access"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// This part of Node tells its owners what they need to place replicas: how much room stores have, what is damaged, and
// which stores an operator wants emptied or has declared lost. Every node asks every other one every few seconds; what it
// knows may be that old, and decides about places only.

const (
	blocksEvery = 3 * time.Second
	blocksOld   = time.Minute // what was not confirmed for so long counts for nothing
)

// storeFacts is what a store said last.
type storeFacts struct {
	wire.StoreBlocks
	boot ident.BootID
	at   time.Time
}

// knownStores is what all stores said last.
type knownStores struct {
	mu    sync.RWMutex
	facts map[ident.StoreID]storeFacts
}

func (k *knownStores) get(id ident.StoreID) (storeFacts, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	f, ok := k.facts[id]
	return f, ok && time.Since(f.at) < blocksOld
}

func (k *knownStores) put(r *wire.BlocksReply) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.facts == nil {
		k.facts = map[ident.StoreID]storeFacts{}
	}
	for _, s := range r.Stores {
		k.facts[s.Store] = storeFacts{s, r.Boot, time.Now()}
	}
}

// about is access.Env's: it is asked often and must not wait.
func (n *Node) about(id ident.StoreID) (i access.StoreInfo) {
	ctl := n.control()
	x, ok := ctl.NodeOfStore(id)
	i.Leaving = ok && x.Leaves(id)
	i.Lost = ctl.StoreLost(id)
	if f, ok := n.known.get(id); ok {
		i.Known, i.Free, i.Capacity, i.Replicas, i.Damaged, i.Failed = true, f.Free, f.Capacity, f.Replicas, f.Damaged, f.Failed != ""
	}
	return i
}

// blocks answers for this node's part of the block manager.
func (n *Node) blocks(ctx context.Context, m *wire.Blocks) (r wire.BlocksReply) {
	r.Boot = n.boot
	if m.Stores {
		for _, st := range n.stores {
			b, err := st.Blocks(ctx)
			if err != nil {
				n.log.Debug("store does not say how it is", "store", st.Dir(), "err", err)
				continue
			}
			r.Stores = append(r.Stores, b)
		}
	}
	if m.Journals && n.access != nil {
		c := n.access.Copies()
		r.RateBps, r.Copied = c.Rate()
		r.LimitBps = c.Limit()
		r.Journals = n.access.Blocks()
	}
	return r
}

// askBlocks asks all nodes for their parts; those that do not answer are left out.
func (n *Node) askBlocks(ctx context.Context, m *wire.Blocks) []reply[wire.BlocksReply] {
	var ask []control.Node
	for _, x := range n.control().Nodes() {
		if x.Has(control.RoleCore) || x.Has(control.RoleAccess) {
			ask = append(ask, x)
		}
	}
	return askNodes(ctx, ask, func(ctx context.Context, x control.Node) (wire.BlocksReply, error) {
		if x.Name == n.cfg.Node {
			return n.blocks(ctx, m), nil
		}
		if n.pool == nil {
			return wire.BlocksReply{}, fmt.Errorf("node %s asks no others", n.cfg.Node)
		}
		p := n.peerOf(x)
		if !p.Up() {
			return wire.BlocksReply{}, fmt.Errorf("node %s can not be reached", x.Name)
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		own := *m // encoding touches it, and all are asked at once
		return p.Blocks(ctx, &own)
	})
}

// keepBlocks follows what stores say until ctx ends, and has this node's own obey an operator's word.
func (n *Node) keepBlocks(ctx context.Context, fatal chan<- error) {
	changed, cancel := n.control().Subscribe()
	defer cancel()
	for {
		for _, a := range n.askBlocks(ctx, &wire.Blocks{Stores: true}) {
			if a.err == nil {
				n.known.put(&a.value)
			}
		}
		timer := time.NewTimer(blocksEvery)
		for again := false; !again; {
			if _, member := n.control().Node(n.cfg.Node); !member && n.takenOut(ctx) {
				select {
				case fatal <- fmt.Errorf("node %s was taken out of the cluster", n.cfg.Node):
				case <-ctx.Done():
				}
				timer.Stop()
				return
			}
			for id, st := range n.stores {
				if n.control().StoreLost(id) && st.Failed() == "" {
					st.GiveUp("it was declared lost: it is not used any more")
				}
			}
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-changed:
			case <-timer.C:
				again = true
			}
		}
	}
}

// takenOut makes sure that this node is out of the cluster: the cache may be about to be filled.
func (n *Node) takenOut(ctx context.Context) bool {
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return false
	}
	_, member := n.control().Node(n.cfg.Node)
	connected, _ := n.control().Connected()
	return !member && connected
}

// startBlocks begins what the block manager does by itself.
func (n *Node) startBlocks(ctx context.Context, fatal chan<- error) {
	if n.pool != nil {
		n.wg.Go(func() { n.keepBlocks(ctx, fatal) })
		n.wg.Go(func() { n.watchTroubles(ctx) })
	}
	for _, st := range n.stores {
		n.wg.Go(func() { st.KeepScrubbed(ctx, time.Duration(n.cfg.Timeouts.ScrubPeriod)) })
	}
}
