package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// EtcdConfig says how to reach etcd, our own voters or an external one.
type EtcdConfig struct {
	Endpoints []string    // URLs
	TLS       *tls.Config // nil only for an external etcd without TLS
	Prefix    string      // of all keys; default DefaultPrefix
}

// A connection on which nothing was heard for so long is pinged, and given up when the ping is not answered;
// both well above a round trip of 200 ms.
const (
	etcdPingAfter   = 10 * time.Second
	etcdPingTimeout = 5 * time.Second
)

// How long one attempt may take before the next one goes to another voter: longer than an election, and for
// listings long enough for some megabytes over a slow line.
const (
	etcdAttempt = 4 * time.Second
	etcdListing = 20 * time.Second
)

// releaseTimeout bounds giving back a lease when the process ends; otherwise it runs out by itself.
const releaseTimeout = time.Second

func (e EtcdConfig) dial(log *slog.Logger) (*clientv3.Client, error) {
	if len(e.Endpoints) == 0 {
		return nil, invalidf("control store: no endpoints")
	}
	var dial []grpc.DialOption
	if e.TLS != nil && e.TLS.ServerName != "" {
		dial = append(dial, grpc.WithTransportCredentials(namedCreds{credentials.NewTLS(e.TLS), e.TLS.ServerName}))
	}
	cli, err := clientv3.New(clientv3.Config{
		DialOptions:          dial, // later than TLS, so they win
		Endpoints:            e.Endpoints,
		TLS:                  e.TLS,
		DialKeepAliveTime:    etcdPingAfter,
		DialKeepAliveTimeout: etcdPingTimeout,
		Logger:               zapLogger(log, nil),
	})
	if err != nil {
		return nil, fmt.Errorf("control store at %s: %w", strings.Join(e.Endpoints, ", "), err)
	}
	return cli, nil
}

// namedCreds verifies the server by the name that the TLS configuration asks for. gRPC would put the endpoint's
// address in its place, and a voter's certificate need not know its address.
type namedCreds struct {
	credentials.TransportCredentials
	name string
}

func (n namedCreds) ClientHandshake(ctx context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return n.TransportCredentials.ClientHandshake(ctx, n.name, c)
}

func (n namedCreds) Clone() credentials.TransportCredentials {
	return namedCreds{n.TransportCredentials.Clone(), n.name}
}

// OpenEtcd opens a client of an etcd. It returns once everything was read, or when ctx ends.
func OpenEtcd(ctx context.Context, e EtcdConfig, o Options) (*Client, error) {
	cli, err := e.dial(o.withDefaults().Log)
	if err != nil {
		return nil, err
	}
	prefix := e.Prefix
	if prefix == "" {
		prefix = DefaultPrefix
	}
	k := &etcdKV{cli: cli, prefix: prefix, log: o.withDefaults().Log}
	k.near = watchNearest(cli.Endpoints, k.probe, func(endpoint string) (*clientv3.Client, error) {
		e := e
		e.Endpoints = []string{endpoint}
		return e.dial(k.log)
	}, func(ctx context.Context, cli *clientv3.Client) error {
		// A voter answers such a read by itself, whoever leads and whether or not anybody does.
		_, err := cli.Get(ctx, k.prefix+keyCluster, clientv3.WithSerializable(), clientv3.WithKeysOnly())
		return err
	})
	return open(ctx, k, o)
}

// etcdKV is kv upon an etcd client.
type etcdKV struct {
	cli    *clientv3.Client
	prefix string
	log    *slog.Logger
	near   *nearest
	store  atomic.Uint64 // etcd's own ID of its cluster, 0 until something has answered
}

// probe says how long a voter takes to answer something of which it asks nobody else.
func (k *etcdKV) probe(ctx context.Context, endpoint string) (time.Duration, error) {
	began := time.Now()
	_, err := k.cli.Status(ctx, endpoint)
	return time.Since(began), err
}

// check says whether an answer comes from the control store that was seen before.
func (k *etcdKV) check(h *etcdserverpb.ResponseHeader) error {
	if id := h.GetClusterId(); k.store.CompareAndSwap(0, id) || k.store.Load() == id {
		return nil
	}
	return errRenewed
}

func (k *etcdKV) renew() { k.store.Store(0) }

func (k *etcdKV) pairOf(p *mvccpb.KeyValue) pair {
	return pair{key: strings.TrimPrefix(string(p.Key), k.prefix), value: p.Value, mod: Rev(p.ModRevision)}
}

func (k *etcdKV) get(ctx context.Context, key string) (pair, Rev, error) {
	res, err := attempt(ctx, k, etcdAttempt, func(ctx context.Context, cli *clientv3.Client) (*clientv3.GetResponse, error) {
		return cli.Get(ctx, k.prefix+key)
	})
	if err != nil {
		return pair{}, 0, classify(err)
	}
	if err := k.check(res.Header); err != nil {
		return pair{}, 0, err
	}
	if len(res.Kvs) == 0 {
		return pair{key: key}, Rev(res.Header.Revision), nil
	}
	return k.pairOf(res.Kvs[0]), Rev(res.Header.Revision), nil
}

func (k *etcdKV) list(ctx context.Context, dir string) ([]pair, Rev, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdListing)
	defer cancel()
	res, err := k.cli.Get(ctx, k.prefix+dir, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, classify(err)
	}
	if err := k.check(res.Header); err != nil {
		return nil, 0, err
	}
	out := make([]pair, len(res.Kvs))
	for i, p := range res.Kvs {
		out[i] = k.pairOf(p)
	}
	return out, Rev(res.Header.Revision), nil
}

func (k *etcdKV) commit(ctx context.Context, t txn) (txnResult, error) {
	conds := make([]clientv3.Cmp, len(t.conds))
	for i, c := range t.conds {
		if c.value != nil {
			conds[i] = clientv3.Compare(clientv3.Value(k.prefix+c.key), "=", string(c.value))
		} else if c.dir != "" {
			conds[i] = clientv3.Compare(clientv3.ModRevision(k.prefix+c.dir).WithPrefix(), "<", int64(c.rev)+1)
		} else {
			conds[i] = clientv3.Compare(clientv3.ModRevision(k.prefix+c.key), "=", int64(c.rev))
		}
	}
	ops := make([]clientv3.Op, len(t.ops))
	for i, o := range t.ops {
		if o.delete {
			ops[i] = clientv3.OpDelete(k.prefix + o.key)
		} else {
			ops[i] = clientv3.OpPut(k.prefix+o.key, string(o.value))
		}
	}
	reads := make([]clientv3.Op, len(t.reads))
	for i, key := range t.reads {
		reads[i] = clientv3.OpGet(k.prefix + key)
	}
	// The client library never repeats a transaction by itself.
	res, err := attempt(ctx, k, etcdAttempt, func(ctx context.Context, cli *clientv3.Client) (*clientv3.TxnResponse, error) {
		return cli.Txn(ctx).If(conds...).Then(ops...).Else(reads...).Commit()
	})
	if err != nil {
		return txnResult{}, classify(err)
	}
	out := txnResult{ok: res.Succeeded, rev: Rev(res.Header.Revision)}
	if !out.ok {
		for i, r := range res.Responses {
			p := pair{key: t.reads[i]}
			if kvs := r.GetResponseRange().GetKvs(); len(kvs) > 0 {
				p = k.pairOf(kvs[0])
			}
			out.reads = append(out.reads, p)
		}
	}
	return out, nil
}

func (k *etcdKV) watch(ctx context.Context, dir string, after Rev, f func([]change, Rev) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cli, wctx, _, done := k.near.use(ctx, k.cli, true)
	defer done()
	// Requiring a leader ends the watch at a voter that is cut off from the others, instead of hearing nothing
	// from it for ever; the next attempt goes to another one.
	ch := cli.Watch(clientv3.WithRequireLeader(wctx), k.prefix+dir, clientv3.WithPrefix(), clientv3.WithRev(int64(after)+1), clientv3.WithProgressNotify())
	for {
		var res clientv3.WatchResponse
		open := false
		// The client library closes the channel when wctx ends, but not while it sends by a connection that waits for
		// a voter to come back: it learns of the end only after that.
		select {
		case res, open = <-ch:
		case <-wctx.Done():
		}
		if !open {
			break
		}
		if err := res.Err(); err != nil {
			if cause := context.Cause(wctx); cause != nil && ctx.Err() == nil {
				return cause
			}
			if res.CompactRevision != 0 || errors.Is(err, rpctypes.ErrCompacted) {
				return errCompacted
			}
			return classify(err)
		}
		if err := k.check(res.Header); err != nil {
			return err
		}
		upTo := after
		if res.IsProgressNotify() {
			upTo = Rev(res.Header.Revision)
		}
		batch := make([]change, len(res.Events))
		for i, e := range res.Events {
			batch[i] = change{k.pairOf(e.Kv), e.Type == mvccpb.DELETE}
			// The header may be ahead of what a watch that is catching up has delivered.
			upTo = max(upTo, batch[i].mod)
		}
		if err := f(batch, upTo); err != nil {
			return err
		}
		after = max(after, upTo)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := context.Cause(wctx); err != nil {
		return err
	}
	return errors.New("control store: watch ended")
}

func (k *etcdKV) keep(ctx context.Context, key string, value []byte, ttl time.Duration) {
	var b backoff
	for {
		started := time.Now()
		err := k.keepOnce(ctx, key, value, ttl)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > ttl {
			b.reset() // it held for a while; this is a new trouble
		}
		k.log.Warn("announcement in the control store was lost", "err", err)
		if !b.wait(ctx) {
			return
		}
	}
}

// keepOnce holds the key by one lease until the lease is lost or ctx ends.
func (k *etcdKV) keepOnce(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	id, err := k.grantWith(ctx, key, value, ttl)
	if id != 0 {
		defer k.revoke(ctx, id)
	}
	if err != nil {
		return err
	}
	t := time.NewTicker(ttl / 4)
	defer t.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		r, err := k.renewLease(ctx, id, ttl/4)
		switch {
		case err == nil && r.TTL > 0:
			last = time.Now()
		case errors.Is(err, rpctypes.ErrLeaseNotFound) || err == nil:
			return errors.New("lease ran out")
		case time.Since(last) > 2*ttl:
			return err // perhaps it is there, perhaps not: a new one is asked for
		}
	}
}

// grantWith puts a key with a lease of its own. A lease that is given with an error is one that may have to be given back.
func (k *etcdKV) grantWith(ctx context.Context, key string, value []byte, ttl time.Duration) (clientv3.LeaseID, error) {
	lease, err := attempt(ctx, k, etcdAttempt, func(ctx context.Context, cli *clientv3.Client) (*clientv3.LeaseGrantResponse, error) {
		return cli.Grant(ctx, max(int64(ttl/time.Second), 1))
	})
	if err != nil {
		return 0, err
	}
	_, err = attempt(ctx, k, etcdAttempt, func(ctx context.Context, cli *clientv3.Client) (*clientv3.PutResponse, error) {
		return cli.Put(ctx, k.prefix+key, string(value), clientv3.WithLease(lease.ID))
	})
	return lease.ID, err
}

func (k *etcdKV) renewLease(ctx context.Context, id clientv3.LeaseID, timeout time.Duration) (*clientv3.LeaseKeepAliveResponse, error) {
	return attempt(ctx, k, timeout, func(ctx context.Context, cli *clientv3.Client) (*clientv3.LeaseKeepAliveResponse, error) {
		return cli.KeepAliveOnce(ctx, id)
	})
}

// revoke gives a lease back; it runs out anyway.
func (k *etcdKV) revoke(ctx context.Context, id clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	_, _ = attempt(ctx, k, releaseTimeout, func(ctx context.Context, cli *clientv3.Client) (*clientv3.LeaseRevokeResponse, error) {
		return cli.Revoke(ctx, id)
	})
}

func (k *etcdKV) hold(ctx context.Context, key string, value []byte, clock func() int64, renewed func(asked int64, anew bool)) error {
	asked := clock()
	gctx, cancel := context.WithTimeout(ctx, HoldEvery)
	defer cancel()
	id, err := k.grantWith(gctx, key, value, HoldTTL)
	if id != 0 {
		defer k.revoke(ctx, id)
	}
	if err != nil {
		return err
	}
	renewed(asked, true)
	return keepRenewed(ctx, HoldTTL, HoldEvery, clock, renewed, func() error {
		r, err := k.renewLease(ctx, id, HoldEvery)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) || err == nil && r.TTL <= 0 {
			return errLeaseOver
		}
		return err
	})
}

var errLeaseOver = errors.New("lease ran out")

// keepRenewed renews a lease until that is over, or nobody has answered for so long that it must be: perhaps it is there, perhaps
// not, and a new one is asked for. renewed is told of each renewal that was answered, and when it was asked for.
func keepRenewed(ctx context.Context, ttl, every time.Duration, clock func() int64, renewed func(asked int64, anew bool), renew func() error) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		asked := clock()
		switch err := renew(); {
		case err == nil:
			last = time.Now()
			renewed(asked, false)
		case errors.Is(err, errLeaseOver) || time.Since(last) > 2*ttl:
			return err
		}
	}
}

// etcd is the seam upon etcd, if that is what is below.
func (c *Client) etcd() (*etcdKV, bool) {
	l, _ := c.kv.(levelled)
	k, ok := l.kv.(*etcdKV)
	return k, ok
}

// Endpoints are the URLs at which the client looks for the control store now; none for a client in memory.
func (c *Client) Endpoints() []string {
	if k, ok := c.etcd(); ok {
		return k.cli.Endpoints()
	}
	return nil
}

// SyncVoters asks the voters of an embedded control store who they are, has the client use exactly those from now
// on, and gives their URLs, sorted. One that has no vote yet is left out: it answers nobody. It is not for an
// external etcd, whose members may call themselves what only they can dial.
func (c *Client) SyncVoters(ctx context.Context) ([]string, error) {
	k, ok := c.etcd()
	if !ok {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, etcdAttempt)
	defer cancel()
	res, err := k.cli.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list voters: %w", classify(err))
	}
	var urls []string
	for _, m := range res.Members {
		if m.Name != "" && !m.IsLearner {
			urls = append(urls, m.ClientURLs...)
		}
	}
	slices.Sort(urls)
	if len(urls) == 0 {
		return nil, errors.New("list voters: there is none that has started")
	}
	have := slices.Sorted(slices.Values(k.cli.Endpoints()))
	if !slices.Equal(have, urls) {
		k.cli.SetEndpoints(urls...)
	}
	return urls, nil
}

func (k *etcdKV) close() error {
	k.near.close()
	return k.cli.Close()
}

// classify marks errors that surely had no effect and that no repetition cures. Of all others, a deadline or a
// lost connection included, nobody knows whether a transaction took effect.
func classify(err error) error {
	if errors.Is(err, rpctypes.ErrTooManyRequests) || errors.Is(err, rpctypes.ErrNoSpace) { // of both the voters see that they pass
		return err
	}
	code := status.Code(err)
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		code = e.Code()
	}
	switch code {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented, codes.OutOfRange, codes.ResourceExhausted:
		return permanentError{fmt.Errorf("control store: %w", err)}
	}
	return err
}
