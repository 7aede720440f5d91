package control

import (
	"context"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The client library spreads requests over all voters in turn. Between sites most of them are then far away, and a change
// of ownership, for which clients wait, takes a round trip to a far voter before anything happens. So reads and
// transactions go to the nearest voter, by a client of its own, and to any of them where that one fails.

const (
	nearLook    = 30 * time.Second       // between two looks at who is how far
	nearAttempt = 2 * time.Second        // of one request: longer than an election at short distances; then the others are asked
	nearPause   = 5 * time.Second        // after a failure
	nearProbe   = time.Second            // for a voter's answer
	nearGain    = 500 * time.Microsecond // what it has to be nearer by than the one that is used
)

// nearest knows the nearest voter.
type nearest struct {
	dial func(endpoint string) (*clientv3.Client, error)
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu struct {
		sync.Mutex
		endpoint string
		cli      *clientv3.Client
		failed   time.Time
		old      []*clientv3.Client // still in use by requests under way; closed at the end
	}
}

// watchNearest begins to look; all gives the endpoints, probe takes how long one takes to answer.
func watchNearest(all func() []string, probe func(context.Context, string) (time.Duration, error), dial func(string) (*clientv3.Client, error)) *nearest {
	ctx, cancel := context.WithCancel(context.Background())
	n := &nearest{dial: dial, stop: cancel}
	n.wg.Go(func() {
		for ctx.Err() == nil {
			n.look(ctx, all(), probe)
			select {
			case <-time.After(nearLook):
			case <-ctx.Done():
			}
		}
	})
	return n
}

// look asks each voter and takes the nearest.
func (n *nearest) look(ctx context.Context, endpoints []string, probe func(context.Context, string) (time.Duration, error)) {
	if len(endpoints) < 2 {
		return
	}
	took := make([]time.Duration, len(endpoints))
	var wg sync.WaitGroup
	for i, e := range endpoints {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, nearProbe)
			defer cancel()
			d, err := probe(ctx, e)
			if err != nil {
				d = -1
			}
			took[i] = d
		})
	}
	wg.Wait()
	n.choose(endpoints, took)
}

// choose takes the endpoint that answered first; took is below 0 where there was no answer.
func (n *nearest) choose(endpoints []string, took []time.Duration) {
	best := -1
	for i, d := range took {
		if d >= 0 && (best < 0 || d < took[best]) {
			best = i
		}
	}
	if best < 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(endpoints, n.mu.endpoint); i >= 0 && took[i] >= 0 && took[i] < took[best]+nearGain {
		return
	}
	cli, err := n.dial(endpoints[best])
	if err != nil {
		return // the others are asked, as before
	}
	if n.mu.cli != nil {
		n.mu.old = append(n.mu.old, n.mu.cli)
	}
	n.mu.endpoint, n.mu.cli, n.mu.failed = endpoints[best], cli, time.Time{}
}

// client gives the client of the nearest voter, nil if it is not known or has failed lately.
func (n *nearest) client() *clientv3.Client {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.cli == nil || time.Since(n.mu.failed) < nearPause {
		return nil
	}
	return n.mu.cli
}

func (n *nearest) fail() {
	n.mu.Lock()
	n.mu.failed = time.Now()
	n.mu.Unlock()
}

func (n *nearest) close() {
	if n == nil {
		return
	}
	n.stop()
	n.wg.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range append(n.mu.old, n.mu.cli) {
		if c != nil {
			_ = c.Close()
		}
	}
	n.mu.cli, n.mu.old = nil, nil
}

// attempt runs one request at the nearest voter, or where that is not to be had at any. What failed at the nearest may have
// taken effect: the caller decides whether to repeat it.
func attempt[T any](ctx context.Context, k *etcdKV, timeout time.Duration, f func(context.Context, *clientv3.Client) (T, error)) (T, error) {
	cli := k.near.client()
	if cli == nil {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return f(ctx, k.cli)
	}
	nctx, cancel := context.WithTimeout(ctx, min(timeout, nearAttempt))
	defer cancel()
	v, err := f(nctx, cli)
	if err != nil && ctx.Err() == nil && !isPermanent(classify(err)) {
		k.near.fail()
	}
	return v, err
}
