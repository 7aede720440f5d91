package control

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// fakeNear knows voters whose clients connect when they are used, so never; hangs says which do not answer.
func fakeNear(hangs map[string]bool) (n *nearest, dialled *int) {
	dialled = new(int)
	n = &nearest{kick: make(chan struct{}, 1)}
	n.life, n.stop = context.WithCancel(context.Background())
	n.dial = func(e string) (*clientv3.Client, error) {
		*dialled++
		return clientv3.New(clientv3.Config{Endpoints: []string{e}})
	}
	n.beat = func(ctx context.Context, c *clientv3.Client) error {
		if hangs[c.Endpoints()[0]] {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	return n, dialled
}

func (n *nearest) picked() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pickLocked()
}

// Which voter is asked, and when it changes.
func TestNearest(t *testing.T) {
	n, dialled := fakeNear(nil)
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
		{[3]time.Duration{30 * ms, 39 * ms, 90 * ms}, "b", 1},   // nor by a third
		{[3]time.Duration{ms, 4 * ms, 9 * ms}, "a", 2},
		{[3]time.Duration{-1, 4 * ms, 3 * ms}, "c", 3},
		{[3]time.Duration{-1, -1, -1}, "c", 3}, // nobody answers: it may as well be us
		{[3]time.Duration{20 * ms, 2 * ms, 9 * ms}, "b", 3},
	} {
		n.choose([]string{"a", "b", "c"}, x.took[:])
		got := n.picked()
		if got != "" {
			_, _, _, done := n.use(t.Context(), nil, false)
			done()
		}
		if got != x.want || *dialled != x.dial {
			t.Errorf("%d: %q after %d clients, want %q after %d", i, got, *dialled, x.want, x.dial)
		}
	}
	n.choose([]string{"a", "c"}, []time.Duration{20 * ms, 30 * ms}) // b is no voter any more
	if n.picked() != "a" {
		t.Errorf("%q is asked, which is no voter", n.picked())
	}
}

// Where only one voter is left there is nothing to choose, and nobody asks those that have gone.
func TestNearestIsNoVoterThatHasGone(t *testing.T) {
	n, _ := fakeNear(nil)
	defer n.close()
	probe := func(context.Context, string) (time.Duration, error) { return time.Millisecond, nil }
	n.look(t.Context(), []string{"a", "b"}, probe)
	n.look(t.Context(), []string{"b"}, probe)
	if got := n.picked(); got != "" {
		t.Errorf("%q is asked, and b is the only voter", got)
	}
}

// What fails at the nearest goes to the next one for a while, and may take longer.
func TestNearestFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		general := &clientv3.Client{}
		n, _ := fakeNear(nil)
		defer n.close()
		k := &etcdKV{cli: general, near: n}
		n.choose([]string{"a", "b"}, []time.Duration{time.Millisecond, time.Second})
		use := func(fails error) (used string, patience time.Duration) {
			_, err := attempt(t.Context(), k, 30*time.Second, func(ctx context.Context, c *clientv3.Client) (int, error) {
				if c != general {
					used = c.Endpoints()[0]
				}
				end, _ := ctx.Deadline()
				patience = time.Until(end)
				return 0, fails
			})
			if err != fails {
				t.Errorf("%v became %v", fails, err)
			}
			return used, patience
		}
		lost := errors.New("connection lost")
		for i, x := range []struct {
			fails    error
			want     string
			patience time.Duration
		}{
			{nil, "a", nearAttempt},
			{lost, "a", nearAttempt},
			{lost, "b", 2 * nearAttempt},
			{lost, "", 30 * time.Second}, // none is left but any
		} {
			if used, patience := use(x.fails); used != x.want || patience != x.patience {
				t.Errorf("%d: %q was asked for %v, want %q for %v", i, used, patience, x.want, x.patience)
			}
		}
		time.Sleep(nearPause + 1)
		if used, _ := use(nil); used != "a" {
			t.Errorf("afterwards %q is asked", used)
		}
		k.near = nil
		if used, _ := use(nil); used != "" {
			t.Error("without a nearest")
		}
	})
}

// A voter whose process hangs keeps its connections: what is under way there ends as soon as it does not answer, and a watch
// that began before any voter was known goes to the nearest.
func TestAVoterThatHangsIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := map[string]bool{}
		n, _ := fakeNear(hangs)
		defer n.close()
		k := &etcdKV{cli: &clientv3.Client{}, near: n}
		first, fctx, _, done := n.use(t.Context(), k.cli, true)
		defer done()
		if first != k.cli {
			t.Fatal("a watch has a voter that nobody knows")
		}
		n.choose([]string{"a", "b"}, []time.Duration{time.Millisecond, time.Second})
		if !errors.Is(context.Cause(fctx), errMoved) {
			t.Errorf("the watch stays anywhere: %v", context.Cause(fctx))
		}
		_, wctx, at, done := n.use(t.Context(), k.cli, true)
		defer done()
		if n.beats(t.Context()) || at != "a" || wctx.Err() != nil {
			t.Fatalf("the watch at %q ends: %v", at, context.Cause(wctx))
		}
		hangs["a"] = true
		asked := make(chan error)
		go func() {
			_, err := attempt(t.Context(), k, time.Minute, func(ctx context.Context, _ *clientv3.Client) (int, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			})
			asked <- err
		}()
		synctest.Wait()
		if !n.beats(t.Context()) {
			t.Error("it is not noticed")
		}
		if err := <-asked; err == nil {
			t.Error("a request there did not fail")
		}
		if !errors.Is(context.Cause(wctx), errVoterHangs) {
			t.Errorf("the watch goes on there: %v", context.Cause(wctx))
		}
		if n.picked() != "b" {
			t.Errorf("%q is asked", n.picked())
		}
		if n.beats(t.Context()) {
			t.Error("b hangs, too")
		}
	})
}

// TestAVoterThatIsGoneIsLeft: what is under way at a voter to which no connection can be made ends as soon as that is known, and
// the next one is asked.
func TestAVoterThatIsGoneIsLeft(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	here := "http://" + l.Addr().String()
	n, _ := fakeNear(nil)
	defer n.close()
	n.choose([]string{here, "b"}, []time.Duration{time.Millisecond, 2 * time.Millisecond})
	cli, ctx, endpoint, done := n.use(t.Context(), nil, false)
	defer done()
	if endpoint != here {
		t.Fatalf("asks %s", endpoint)
	}
	_ = l.Close()
	cli.ActiveConnection().Connect()
	<-ctx.Done()
	if context.Cause(ctx) != errVoterHangs {
		t.Errorf("it ended because of: %v", context.Cause(ctx))
	}
	if got := n.picked(); got != "b" {
		t.Errorf("then %q is asked", got)
	}
}

// stuckWatcher is a client library whose stream stands in a send to a voter that has gone: it ends no watch.
type stuckWatcher struct{ clientv3.Watcher }

func (stuckWatcher) Watch(context.Context, string, ...clientv3.OpOption) clientv3.WatchChan {
	return make(chan clientv3.WatchResponse)
}

// A watch ends with its context and when its voter is given up, whatever the client library is waiting for.
func TestAWatchEndsWhileItsStreamIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := fakeNear(nil)
		defer n.close()
		k := &etcdKV{cli: &clientv3.Client{Watcher: stuckWatcher{}}, near: n}
		ended := make(chan error)
		watch := func(ctx context.Context) {
			go func() { ended <- k.watch(ctx, "", 1, func([]change, Rev) error { return nil }) }()
			synctest.Wait()
		}
		ends := func(why error) {
			t.Helper()
			select {
			case err := <-ended:
				if !errors.Is(err, why) {
					t.Errorf("it ended with %v, want %v", err, why)
				}
			case <-time.After(time.Hour):
				t.Fatal("it does not end")
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		watch(ctx)
		cancel()
		ends(context.Canceled)
		watch(t.Context())
		n.choose([]string{"a"}, []time.Duration{time.Millisecond})
		ends(errMoved)
	})
}
