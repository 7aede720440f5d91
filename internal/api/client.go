package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"dozo/internal/api/dozov1/dozov1connect"
)

// ErrUnreachable: none of the endpoints answered.
var ErrUnreachable = errors.New("no endpoint can be reached")

// How long a client waits before it tries the next endpoint. A node that is up answers a connection in a round
// trip; one that is paused accepts in the kernel and then says nothing.
const (
	dialTimeout    = 3 * time.Second
	attemptTimeout = 10 * time.Second
)

// ClientOptions say where the API is and with what to call it.
type ClientOptions struct {
	// Endpoints are tried in this order: unix:///PATH or https://HOST[:PORT].
	Endpoints []string
	// TLS is for https endpoints: pki.APIClientWithoutCert or Identity.APIClient.
	TLS *tls.Config
	// Token is sent over https; empty: none.
	Token string
}

// Client calls the API of a cluster at the first of its endpoints that answers. It goes on to the next one
// where no connection can be made, and, for calls without side effects, where a node does not answer or says
// that it can not. A call that may have been carried out is never repeated.
type Client struct {
	Volumes      dozov1connect.VolumeServiceClient
	Hosts        dozov1connect.HostServiceClient
	Sessions     dozov1connect.SessionServiceClient
	Reservations dozov1connect.ReservationServiceClient
	Nodes        dozov1connect.NodeServiceClient
	Stores       dozov1connect.StoreServiceClient
	Sites        dozov1connect.SiteServiceClient
	Forks        dozov1connect.ForkServiceClient
	Cluster      dozov1connect.ClusterServiceClient
	Control      dozov1connect.ControlServiceClient

	endpoints []endpoint
	first     atomic.Int64 // index of the endpoint to try first
	transport *http.Transport
}

type endpoint struct {
	text    string
	network string
	address string
}

// parseEndpoint takes unix:///PATH and https://HOST[:PORT].
func parseEndpoint(text string) (endpoint, error) {
	u, err := url.Parse(text)
	if err != nil {
		return endpoint{}, fmt.Errorf("endpoint %q: %w", text, err)
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		return endpoint{text: text, network: "unix", address: u.Path}, nil
	case u.Scheme == "https" && u.Hostname() != "" && strings.Trim(u.Path, "/") == "" && u.User == nil:
		port := u.Port()
		if port == "" {
			port = "7070"
		}
		return endpoint{text: text, network: "tcp", address: net.JoinHostPort(u.Hostname(), port)}, nil
	case u.Scheme == "http":
		return endpoint{}, fmt.Errorf("endpoint %q: the API is only served over https", text)
	}
	return endpoint{}, fmt.Errorf("endpoint %q: want https://HOST:PORT or unix:///PATH", text)
}

// Dial makes a client. It connects only when it is used.
func Dial(o ClientOptions) (*Client, error) {
	if len(o.Endpoints) == 0 {
		return nil, errors.New("no endpoint given")
	}
	c := &Client{}
	for _, text := range o.Endpoints {
		e, err := parseEndpoint(text)
		if err != nil {
			return nil, err
		}
		if e.network != "unix" && o.TLS == nil {
			return nil, fmt.Errorf("endpoint %s: the CA's certificate is needed to verify it", text)
		}
		c.endpoints = append(c.endpoints, e)
	}
	// The transport thinks that it speaks plain HTTP to one host: which endpoint a connection goes to, and
	// whether TLS is on it, is decided where it is made.
	c.transport = &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx, o.TLS) },
		DisableCompression: true,
		IdleConnTimeout:    time.Minute,
	}
	hc := &http.Client{Transport: c.transport}
	opts := []connect.ClientOption{
		connect.WithAcceptCompression("gzip", nil, nil),
		connect.WithInterceptors(outgoing{c: c, token: o.Token}),
	}
	const base = "http://dozo"
	c.Volumes = dozov1connect.NewVolumeServiceClient(hc, base, opts...)
	c.Hosts = dozov1connect.NewHostServiceClient(hc, base, opts...)
	c.Sessions = dozov1connect.NewSessionServiceClient(hc, base, opts...)
	c.Reservations = dozov1connect.NewReservationServiceClient(hc, base, opts...)
	c.Nodes = dozov1connect.NewNodeServiceClient(hc, base, opts...)
	c.Stores = dozov1connect.NewStoreServiceClient(hc, base, opts...)
	c.Sites = dozov1connect.NewSiteServiceClient(hc, base, opts...)
	c.Forks = dozov1connect.NewForkServiceClient(hc, base, opts...)
	c.Cluster = dozov1connect.NewClusterServiceClient(hc, base, opts...)
	c.Control = dozov1connect.NewControlServiceClient(hc, base, opts...)
	return c, nil
}

// Close closes connections that are idle.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Health asks the first endpoint that can be reached for its health.
func (c *Client) Health(ctx context.Context) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://dozo/healthz", nil)
	if err != nil {
		return nil, err
	}
	return c.transport.RoundTrip(req)
}

// dialError is a failure before anything was sent: trying elsewhere can not do anything twice.
type dialError struct{ errs []error }

func (e *dialError) Error() string {
	return fmt.Sprintf("%v: %v", ErrUnreachable, errors.Join(e.errs...))
}
func (e *dialError) Unwrap() []error { return append([]error{ErrUnreachable}, e.errs...) }

// dial connects to the first endpoint that can be reached, beginning with the one that worked last.
func (c *Client) dial(ctx context.Context, conf *tls.Config) (net.Conn, error) {
	failed := &dialError{}
	start := int(c.first.Load())
	for i := range c.endpoints {
		at := (start + i) % len(c.endpoints)
		conn, err := dialOne(ctx, c.endpoints[at], conf)
		if err == nil {
			c.first.Store(int64(at))
			return conn, nil
		}
		failed.errs = append(failed.errs, fmt.Errorf("%s: %w", c.endpoints[at].text, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

func dialOne(ctx context.Context, e endpoint, conf *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, e.network, e.address)
	if err != nil || e.network == "unix" {
		return raw, err
	}
	conf = conf.Clone()
	conf.NextProtos = []string{"http/1.1"}
	if conf.ServerName == "" {
		if conf.ServerName, _, err = net.SplitHostPort(e.address); err != nil {
			_ = raw.Close()
			return nil, err
		}
	}
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return conn, nil
}

// next makes later connections begin at the endpoint after the one that at was.
func (c *Client) next(at int64) {
	c.first.CompareAndSwap(at, (at+1)%int64(len(c.endpoints)))
	c.transport.CloseIdleConnections()
}

// outgoing adds the token to calls and repeats, elsewhere, those that may be.
type outgoing struct {
	c     *Client
	token string
}

// WrapUnary implements connect.Interceptor.
func (o outgoing) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if o.token != "" {
			req.Header().Set("Authorization", "Bearer "+o.token)
		}
		// What changes something is repeated only where it is known that nothing was done.
		repeatable := req.Spec().IdempotencyLevel == connect.IdempotencyNoSideEffects
		tries := len(o.c.endpoints)
		for {
			at := o.c.first.Load()
			tries--
			resp, err := o.attempt(ctx, req, next, repeatable && tries > 0)
			if err == nil || tries == 0 || ctx.Err() != nil || !worthAnother(err) || !repeatable && Reason(err) != reasonNotReady {
				return resp, explain(err)
			}
			o.c.next(at)
		}
	}
}

// attempt bounds a call where there is another endpoint to go to.
func (o outgoing) attempt(ctx context.Context, req connect.AnyRequest, next connect.UnaryFunc, bounded bool) (connect.AnyResponse, error) {
	if !bounded {
		return next(ctx, req)
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return next(ctx, req)
}

// worthAnother: another node may give a better answer than this one's error. dial has tried them all already.
func worthAnother(err error) bool {
	if errors.Is(err, ErrUnreachable) {
		return false
	}
	code := connect.CodeOf(err)
	return code == connect.CodeUnavailable || code == connect.CodeDeadlineExceeded
}

// explain keeps what dial said readable: connect and net/http put their own words around it.
func explain(err error) error {
	if d, ok := errors.AsType[*dialError](err); ok {
		return d
	}
	return err
}

// WrapStreamingClient implements connect.Interceptor.
func (o outgoing) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		if o.token != "" {
			conn.RequestHeader().Set("Authorization", "Bearer "+o.token)
		}
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (o outgoing) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
