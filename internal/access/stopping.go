package access

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

const (
	// stopPatience is for all volumes together: who stops a node waits for that. Within a site one takes some 10 ms.
	stopPatience = 2 * time.Second
	stopAtOnce   = 4
	stopLook     = 5 * time.Millisecond
)

// HandOverAll prepares for a planned stop: the volumes that are served here are handed over to other access servers of the
// site, those in use first, and no more are taken. It returns when that is done, or after stopPatience: what stays is taken
// over when this node is gone.
func (s *Server) HandOverAll() {
	s.stopping.Store(true)
	ctx, cancel := context.WithTimeout(s.ctx, stopPatience)
	defer cancel()
	tried := map[ident.JournalID]bool{}
	for began, n := time.Now(), 0; ctx.Err() == nil; pauseFor(ctx, stopLook) {
		var list []*Volume
		use := map[ident.JournalID]int{}
		under := 0
		s.mu.Lock()
		for id, v := range s.mu.volumes {
			switch o := v.owner.Load(); {
			case v.moving != nil && !v.moving.status().Done:
				under++
			case o != nil && !tried[id]:
				list = append(list, v)
				use[id] = 2 * v.urgency()
				if !o.doze.asleep.Load() { // by way of other nodes, it may be
					use[id]++
				}
			}
		}
		s.mu.Unlock()
		if len(list) == 0 && under == 0 {
			if n > 0 {
				s.env.Log.Info("volumes are handed over: the node stops", "volumes", n, "took", time.Since(began).Round(time.Millisecond))
			}
			return
		}
		slices.SortFunc(list, func(a, b *Volume) int {
			return cmp.Or(use[b.id]-use[a.id], slices.Compare(a.id[:], b.id[:]))
		})
		for _, v := range list {
			if under >= stopAtOnce {
				break
			}
			tried[v.id] = true
			switch _, err := s.beginMove(v, "", s.env.Site); {
			case err == nil:
				under++
				n++
			case nobodyElse(err): // nobody else is there
				return
			default:
				s.env.Log.Info("a volume is not handed over before the node stops", "volume", v.Spec().Name, "err", err)
			}
		}
	}
}

func nobodyElse(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == wire.CodeUnreached
}

// refusal says why this node is to own nothing more; nil: nothing is against it.
func (s *Server) refusal() error {
	switch {
	case s.stopping.Load():
		return wire.Errorf(wire.CodeBadRequest, "node %s is stopping", s.env.Node)
	case s.draining():
		return wire.Errorf(wire.CodeBadRequest, "node %s is draining", s.env.Node)
	}
	return nil
}
