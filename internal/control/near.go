package control

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// The client library spreads requests over all voters in turn. Between sites most of them are then far away, and a change
// of ownership, for which clients wait, takes a round trip to a far voter before anything happens. And a voter whose process
// hangs keeps its connections: the library notices after 15 s, and until then a watch by way of it hears nothing, so that
// this node does not learn who owns a volume now. So everything goes to the nearest voter that answers, by a client of its
// own, and that voter is asked something every second.
//
//	look: all are asked how far they are ──> order ──> pick: the first that is not avoided
//	a request fails there ──> avoided for a while, and asked at once whether it lives
//	it does not answer that ──> whatever is under way there ends, and goes to the next one
//	its host refuses the connection, as its process has ended ──> likewise, at once

const (
	nearLook    = 30 * time.Second       // between two looks at who is how far
	nearAttempt = time.Second            // of one request: longer than a change takes at 200 ms; doubled with each that fails
	nearPause   = 5 * time.Second        // after a failure
	nearProbe   = time.Second            // for a voter's answer
	nearBeat    = time.Second            // between two questions to those that are in use
	nearGain    = 500 * time.Microsecond // what a voter has to be nearer by, and a third, than the one that is used
)

// errMoved ends what was under way at a voter, since another one is used now.
var errMoved = errors.New("control store: another voter is asked from now on")

// errVoterHangs likewise, as the voter does not answer, or can't be connected to.
var errVoterHangs = errors.New("control store: the voter does not answer")

// nearest knows the nearest voter.
type nearest struct {
	dial func(endpoint string) (*clientv3.Client, error)
	beat func(context.Context, *clientv3.Client) error // asks the voter something that it answers by itself
	life context.Context                               // until close
	stop context.CancelFunc
	wg   sync.WaitGroup
	kick chan struct{} // look after those in use now

	mu struct {
		sync.Mutex
		order   []string                    // voters that answered, nearest first; one that is used stays first
		clients map[string]*clientv3.Client // by endpoint; closed at the end
		avoid   map[string]time.Time        // until when others are asked
		fails   int                         // requests in a row that failed
		uses    map[*nearUse]struct{}
	}
}

// nearUse is a request or a watch under way at a voter; an empty endpoint is any.
type nearUse struct {
	endpoint string
	stream   bool
	end      context.CancelCauseFunc
}

// watchNearest begins to look; all gives the endpoints, probe takes how long one takes to answer.
func watchNearest(all func() []string, probe func(context.Context, string) (time.Duration, error), dial func(string) (*clientv3.Client, error),
	beat func(context.Context, *clientv3.Client) error) *nearest {
	ctx, cancel := context.WithCancel(context.Background())
	n := &nearest{dial: dial, beat: beat, life: ctx, stop: cancel, kick: make(chan struct{}, 1)}
	n.wg.Go(func() {
		for ctx.Err() == nil {
			n.look(ctx, all(), probe)
			n.lookAfter(ctx)
		}
	})
	return n
}

// lookAfter sees to those in use until it is time for the next look.
func (n *nearest) lookAfter(ctx context.Context) {
	t := time.NewTicker(nearBeat)
	defer t.Stop()
	until := time.Now().Add(nearLook)
	for time.Now().Before(until) {
		select {
		case <-t.C:
		case <-n.kick:
		case <-ctx.Done():
			return
		}
		if n.beats(ctx) {
			if soon := time.Now().Add(nearPause); soon.Before(until) {
				until = soon
			}
		}
	}
}

// beats asks every voter that is in use, and gives up those that do not answer.
func (n *nearest) beats(ctx context.Context) (failed bool) {
	n.mu.Lock()
	var ask []string
	if e := n.pickLocked(); e != "" {
		ask = append(ask, e)
	}
	for u := range n.mu.uses {
		if u.endpoint != "" && !slices.Contains(ask, u.endpoint) {
			ask = append(ask, u.endpoint)
		}
	}
	n.mu.Unlock()
	bad := make([]bool, len(ask))
	var wg sync.WaitGroup
	for i, e := range ask {
		wg.Go(func() {
			cli, err := n.client(e)
			if err == nil {
				bctx, cancel := context.WithTimeout(ctx, nearProbe)
				defer cancel()
				err = n.beat(bctx, cli)
			}
			if bad[i] = err != nil && ctx.Err() == nil; bad[i] {
				n.giveUp(e)
			}
		})
	}
	wg.Wait()
	return slices.Contains(bad, true)
}

// giveUp ends all that is under way at a voter.
func (n *nearest) giveUp(endpoint string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.avoidLocked(endpoint)
	for u := range n.mu.uses {
		if u.endpoint == endpoint {
			u.end(errVoterHangs)
			delete(n.mu.uses, u)
		}
	}
}

func (n *nearest) avoidLocked(endpoint string) {
	if n.mu.avoid == nil {
		n.mu.avoid = map[string]time.Time{}
	}
	n.mu.avoid[endpoint] = time.Now().Add(nearPause)
}

// look asks each voter and orders them.
func (n *nearest) look(ctx context.Context, endpoints []string, probe func(context.Context, string) (time.Duration, error)) {
	if len(endpoints) < 2 {
		n.mu.Lock()
		n.mu.order = nil // those that were there before are no voters any more
		n.mu.Unlock()
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
	if ctx.Err() == nil {
		n.choose(endpoints, took)
	}
}

// choose orders the endpoints by when they answered; took is below 0 where there was no answer. Watches go to the first.
func (n *nearest) choose(endpoints []string, took []time.Duration) {
	distance := map[string]time.Duration{}
	var order []string
	for i, e := range endpoints {
		if took[i] >= 0 {
			order = append(order, e)
			distance[e] = took[i]
		}
	}
	if len(order) == 0 {
		return
	}
	slices.SortStableFunc(order, func(a, b string) int { return int(distance[a] - distance[b]) })
	n.mu.Lock()
	defer n.mu.Unlock()
	if used := n.firstLocked(); used != "" {
		if d, ok := distance[used]; ok && d < distance[order[0]]*4/3+nearGain {
			i := slices.Index(order, used)
			order = slices.Insert(slices.Delete(order, i, i+1), 0, used)
		}
	}
	n.mu.order = order
	first := n.pickLocked()
	for u := range n.mu.uses {
		if u.stream && first != "" && u.endpoint != first {
			u.end(errMoved)
		}
	}
}

func (n *nearest) firstLocked() string {
	if len(n.mu.order) == 0 {
		return ""
	}
	return n.mu.order[0]
}

// pickLocked is the voter to ask, empty if that is not known.
func (n *nearest) pickLocked() string {
	for _, e := range n.mu.order {
		if time.Now().After(n.mu.avoid[e]) {
			return e
		}
	}
	return ""
}

// client gives the client of one voter.
func (n *nearest) client(endpoint string) (*clientv3.Client, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.clientLocked(endpoint)
}

func (n *nearest) clientLocked(endpoint string) (*clientv3.Client, error) {
	if cli := n.mu.clients[endpoint]; cli != nil {
		return cli, nil
	}
	cli, err := n.dial(endpoint)
	if err != nil {
		return nil, err
	}
	if n.mu.clients == nil {
		n.mu.clients = map[string]*clientv3.Client{}
	}
	n.mu.clients[endpoint] = cli
	if conn := cli.ActiveConnection(); conn != nil {
		n.wg.Go(func() { n.watch(endpoint, conn) })
	}
	return cli, nil
}

// watch ends what is under way at a voter whenever its connection can't be made again. The library would have that wait until it
// can, or the request's time is over: a second in which a takeover stands still, when the nearest voter died with the owner.
func (n *nearest) watch(endpoint string, conn *grpc.ClientConn) {
	for state := conn.GetState(); conn.WaitForStateChange(n.life, state); {
		if state = conn.GetState(); state == connectivity.TransientFailure {
			n.giveUp(endpoint)
		}
	}
}

// use gives the client to ask by, any if no voter is known to be the one, and a context that ends when that voter turns out to
// hang; a stream's also when another voter is to be used. done says that it is over.
func (n *nearest) use(ctx context.Context, general *clientv3.Client, stream bool) (cli *clientv3.Client, uctx context.Context, endpoint string, done func()) {
	uctx, end := context.WithCancelCause(ctx)
	if n == nil {
		return general, uctx, "", func() { end(nil) }
	}
	u := &nearUse{stream: stream, end: end}
	n.mu.Lock()
	defer n.mu.Unlock()
	cli = general
	if e := n.pickLocked(); e != "" {
		if c, err := n.clientLocked(e); err == nil {
			cli, u.endpoint = c, e
		}
	}
	if n.mu.uses == nil {
		n.mu.uses = map[*nearUse]struct{}{}
	}
	n.mu.uses[u] = struct{}{}
	return cli, uctx, u.endpoint, func() {
		n.mu.Lock()
		delete(n.mu.uses, u)
		n.mu.Unlock()
		end(nil)
	}
}

// patience is how long a request at one voter may take.
func (n *nearest) patience(most time.Duration) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return min(most, nearAttempt<<min(n.mu.fails, 8))
}

// result notes how a request at one voter ended.
func (n *nearest) result(endpoint string, failed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !failed {
		n.mu.fails = 0
		return
	}
	n.mu.fails++
	n.avoidLocked(endpoint)
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

func (n *nearest) close() {
	if n == nil {
		return
	}
	n.stop()
	n.wg.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.mu.clients {
		_ = c.Close()
	}
	n.mu.clients, n.mu.order = nil, nil
}

// attempt runs one request at the nearest voter, or where that is not to be had at any. What failed there may have taken
// effect: the caller decides whether to repeat it.
func attempt[T any](ctx context.Context, k *etcdKV, timeout time.Duration, f func(context.Context, *clientv3.Client) (T, error)) (T, error) {
	cli, uctx, endpoint, done := k.near.use(ctx, k.cli, false)
	defer done()
	if endpoint != "" {
		timeout = k.near.patience(timeout)
	}
	tctx, cancel := context.WithTimeout(uctx, timeout)
	defer cancel()
	v, err := f(tctx, cli)
	if endpoint != "" && ctx.Err() == nil {
		k.near.result(endpoint, err != nil && !isPermanent(classify(err)) && !errors.Is(err, rpctypes.ErrLeaseNotFound))
	}
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(uctx), errVoterHangs) {
		err = errVoterHangs
	}
	return v, err
}
