package iscsi

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestTelling: who asks for the list of targets again and again takes a third of a processor, and others wait for one of his answers only.
func TestTelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		many, one := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		tell := newTelling()
		began := time.Now()
		var mu sync.Mutex
		var got []string
		ask := func(who string, from netip.Addr, takes time.Duration) {
			done, err := tell.enter(t.Context(), from)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			got = append(got, fmt.Sprint(who, " ", time.Since(began)))
			mu.Unlock()
			time.Sleep(takes)
			done()
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { ask("many", many, 10*time.Millisecond) })
			synctest.Wait()
		}
		wg.Go(func() { ask("one", one, tellingShort) })
		wg.Wait()
		short := 30*time.Millisecond + tellingShort
		want := []string{"many 0s", "one 30ms", fmt.Sprint("many ", short), fmt.Sprint("many ", short+30*time.Millisecond), fmt.Sprint("many ", short+60*time.Millisecond)}
		if !slices.Equal(got, want) {
			t.Errorf("told at %q, want %q", got, want)
		}
		// Who has no patience leaves nothing behind.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := tell.enter(ctx, one); err == nil {
			t.Error("told in the pause after another's answer")
		}
		time.Sleep(time.Second)
		tell.mu.Lock()
		defer tell.mu.Unlock()
		if len(tell.from) != 0 || len(tell.now) != 0 {
			t.Errorf("%d addresses are remembered", len(tell.from))
		}
	})
}
