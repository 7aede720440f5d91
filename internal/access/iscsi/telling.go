package iscsi

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// telling has SendTargets answered one at a time, with pauses between answers that take long. Anybody may ask, as often as he likes,
// and where there are thousands of volumes an answer takes milliseconds: without a bound some that ask in a loop have all processors, and
// commands wait for them. Of one address only one is in the line, so that others wait for few.
type telling struct {
	now chan struct{} // holds one while somebody is told, and in the pause after it

	mu   sync.Mutex
	from map[netip.Addr]*asking
}

// asking is an address by which somebody asks.
type asking struct {
	turn  chan struct{}
	users int // under telling.mu
}

const (
	tellingShort = 200 * time.Microsecond // answers that take no longer are followed by no pause
	tellingRest  = 2                      // times what an answer took: all answers together have a third of a processor. A guess.
)

func newTelling() *telling {
	return &telling{now: make(chan struct{}, 1), from: map[netip.Addr]*asking{}}
}

// enter waits for the turn of somebody at an address; done ends it.
func (t *telling) enter(ctx context.Context, from netip.Addr) (done func(), err error) {
	t.mu.Lock()
	a := t.from[from]
	if a == nil {
		a = &asking{turn: make(chan struct{}, 1)}
		t.from[from] = a
	}
	a.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if a.users--; a.users == 0 {
			delete(t.from, from)
		}
	}
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
	select {
	case t.now <- struct{}{}:
	case <-ctx.Done():
		<-a.turn
		leave()
		return nil, ctx.Err()
	}
	began := time.Now()
	return func() {
		rest := func() {
			<-t.now
			<-a.turn
			leave()
		}
		if took := time.Since(began); took > tellingShort {
			time.AfterFunc(tellingRest*took, rest)
		} else {
			rest()
		}
	}, nil
}
