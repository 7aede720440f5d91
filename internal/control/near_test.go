package control

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Which voter is asked, and when it changes. Clients connect when they are used, so these never do.
func TestNearest(t *testing.T) {
	dialled := 0
	n := &nearest{dial: func(e string) (*clientv3.Client, error) {
		dialled++
		return clientv3.New(clientv3.Config{Endpoints: []string{e}})
	}, stop: func() {}}
	defer n.close()
	const ms = time.Millisecond
	for i, x := range []struct {
		took [3]time.Duration
		want string
		dial int
	}{
		{[3]time.Duration{-1, -1, -1}, "", 0},
		{[3]time.Duration{20 * ms, 2 * ms, 9 * ms}, "b", 1},
		{[3]time.Duration{ms, ms + nearGain/2, 9 * ms}, "b", 1}, // not worth a change
		{[3]time.Duration{ms, 4 * ms, 9 * ms}, "a", 2},
		{[3]time.Duration{-1, 4 * ms, 3 * ms}, "c", 3},
		{[3]time.Duration{-1, -1, -1}, "c", 3}, // nobody answers: it may as well be us
	} {
		n.choose([]string{"a", "b", "c"}, x.took[:])
		if n.mu.endpoint != x.want || dialled != x.dial {
			t.Errorf("%d: %q after %d clients, want %q after %d", i, n.mu.endpoint, dialled, x.want, x.dial)
		}
	}
	n.choose([]string{"a", "b"}, []time.Duration{20 * ms, 30 * ms}) // c is no voter any more
	if n.mu.endpoint != "a" {
		t.Errorf("%q is asked, which is no voter", n.mu.endpoint)
	}
}

// What fails at the nearest goes to the others for a while.
func TestNearestFails(t *testing.T) {
	general, near := &clientv3.Client{}, &clientv3.Client{}
	synctest.Test(t, func(t *testing.T) {
		k := &etcdKV{cli: general, near: &nearest{}}
		k.near.mu.cli = near
		use := func(fails error) (used *clientv3.Client) {
			_, err := attempt(t.Context(), k, time.Second, func(_ context.Context, c *clientv3.Client) (int, error) {
				used = c
				return 0, fails
			})
			if err != fails {
				t.Errorf("%v became %v", fails, err)
			}
			return used
		}
		lost := errors.New("connection lost")
		if use(nil) != near || use(lost) != near {
			t.Error("the nearest is not asked first")
		}
		if use(nil) != general || use(lost) != general {
			t.Error("the nearest is asked though it has just failed")
		}
		time.Sleep(nearPause)
		if use(nil) != near {
			t.Error("the nearest is never asked again")
		}
		k.near = nil
		if use(nil) != general {
			t.Error("without a nearest")
		}
	})
}
