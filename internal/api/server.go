package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"

	"dozo/internal/api/dozov1/dozov1connect"
	"dozo/internal/pki"
)

// Bounds of what a client can make the server hold.
const (
	requestMax     = 1 << 20 // the largest request is a list of addresses
	headerMax      = 32 << 10
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	connectionsMax = 1024 // of one listener; more wait in the kernel's queue
	closeTimeout   = 3 * time.Second
)

// Options are what a Server needs.
type Options struct {
	Node    string // own name, for errors
	Log     *slog.Logger
	Backend Backend
	// Peer says who a client certificate belongs to, and refuses what does not count; pki.Identity.Check is
	// meant. nil: certificates are no credentials here.
	Peer func(tls.ConnectionState) (pki.Peer, error)
	// Metrics answers /metrics; nil: there is none. OpenMetrics lets everybody read them: Prometheus without a
	// token.
	Metrics     http.Handler
	OpenMetrics bool
	Registerer  prometheus.Registerer // for the server's own metrics; may be nil
	Now         func() time.Time      // nil: time.Now
}

// Server answers the API on any number of listeners.
type Server struct {
	node    string
	log     *slog.Logger
	backend Backend
	peer    func(tls.ConnectionState) (pki.Peer, error)
	now     func() time.Time
	metrics *serverMetrics
	handler http.Handler

	life context.Context // ends with Close: streams end with it
	end  context.CancelFunc

	mu struct {
		sync.Mutex
		servers []*http.Server
		closed  bool
	}
}

// NewServer makes a server; Serve and ServeSocket give it listeners.
func NewServer(o Options) *Server {
	s := &Server{node: o.Node, log: o.Log, backend: o.Backend, peer: o.Peer, now: o.Now, metrics: newServerMetrics(o.Registerer)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.life, s.end = context.WithCancel(context.Background())

	opts := []connect.HandlerOption{
		connect.WithInterceptors(gate{s}),
		connect.WithCodec(jsonCodec{"json"}),
		connect.WithCodec(jsonCodec{"json; charset=utf-8"}),
		connect.WithReadMaxBytes(requestMax),
		// Answers are small, and the network between a client and its node is fast: compression would cost
		// more than it saves, and opens the door to bombs.
		connect.WithCompression("gzip", nil, nil),
		connect.WithRecover(func(_ context.Context, spec connect.Spec, _ http.Header, r any) error {
			s.log.Error("panic in an API call", slog.String("method", spec.Procedure), slog.Any("err", r), slog.String("stack", string(debug.Stack())))
			return fmt.Errorf("%s: fault in the program: %v", spec.Procedure, r)
		}),
	}
	mux := http.NewServeMux()
	mount := func(path string, h http.Handler) { mux.Handle(path, h) }
	mount(dozov1connect.NewVolumeServiceHandler(volumeService{o.Backend}, opts...))
	mount(dozov1connect.NewHostServiceHandler(hostService{o.Backend}, opts...))
	mount(dozov1connect.NewSessionServiceHandler(sessionService{o.Backend}, opts...))
	mount(dozov1connect.NewReservationServiceHandler(reservationService{o.Backend}, opts...))
	mount(dozov1connect.NewNodeServiceHandler(nodeService{o.Backend}, opts...))
	mount(dozov1connect.NewStoreServiceHandler(storeService{o.Backend}, opts...))
	mount(dozov1connect.NewSiteServiceHandler(siteService{o.Backend}, opts...))
	mount(dozov1connect.NewForkServiceHandler(forkService{o.Backend}, opts...))
	mount(dozov1connect.NewClusterServiceHandler(clusterService{s}, opts...))
	mount(dozov1connect.NewControlServiceHandler(controlService{o.Backend}, opts...))
	mux.HandleFunc("GET /healthz", s.serveHealth)
	if o.Metrics != nil {
		next := o.Metrics
		if !o.OpenMetrics {
			next = s.guard(next, pki.RoleViewer)
		}
		mux.Handle("GET /metrics", next)
	}
	// Profiles of the running process, in the form that go tool pprof reads.
	mux.Handle("GET /debug/pprof/", s.guard(http.HandlerFunc(pprof.Index), pki.RoleAdmin))
	mux.Handle("GET /debug/pprof/profile", s.guard(http.HandlerFunc(pprof.Profile), pki.RoleAdmin))
	mux.Handle("GET /debug/pprof/trace", s.guard(http.HandlerFunc(pprof.Trace), pki.RoleAdmin))
	s.handler = hasten(s.authenticate(mux))
	return s
}

// Handler answers what Serve's listeners get, for embedding in another server: TLS is that one's affair.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers HTTPS (HTTP/2 and 1.1) on ln until Close; then it returns nil. conf is pki's APIServer.
func (s *Server) Serve(ln net.Listener, conf *tls.Config) error {
	conf = conf.Clone()
	conf.NextProtos = []string{"h2", "http/1.1"}
	srv := s.newHTTP()
	srv.TLSConfig = conf
	return s.run(srv, func() error { return srv.ServeTLS(netutil.LimitListener(ln, connectionsMax), "", "") }, ln)
}

// ServeSocket answers HTTP on a unix socket until Close; then it returns nil. Whoever can open the socket is
// an admin: ListenSocket makes it so that only the socket's owner can.
func (s *Server) ServeSocket(ln net.Listener) error {
	srv := s.newHTTP()
	srv.ConnContext = socketContext
	return s.run(srv, func() error { return srv.Serve(ln) }, ln)
}

func (s *Server) newHTTP() *http.Server {
	return &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerMax,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // such as failed handshakes
	}
}

func (s *Server) run(srv *http.Server, serve func() error, ln net.Listener) error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return ln.Close()
	}
	s.mu.servers = append(s.mu.servers, srv)
	s.mu.Unlock()
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve API at %s: %w", ln.Addr(), err)
	}
	return nil
}

// Close ends streams, lets running calls end for a short while, and closes all listeners and connections.
// A second call does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	servers := s.mu.servers
	s.mu.servers, s.mu.closed = nil, true
	s.mu.Unlock()
	s.end()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(servers))
	for i, srv := range servers {
		wg.Go(func() {
			if err := srv.Shutdown(ctx); err != nil {
				errs[i] = srv.Close()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// serveHealth answers /healthz: 200 where the node is ready, 503 where it is not, and why in JSON.
func (s *Server) serveHealth(w http.ResponseWriter, _ *http.Request) {
	h := s.backend.Health()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !h.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if err := json.NewEncoder(w).Encode(h); err != nil {
		s.log.Debug("healthz", slog.Any("err", err))
	}
}

// guard lets callers of that role and better through to what is not an API call.
func (s *Server) guard(next http.Handler, need pki.Role) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, _ := r.Context().Value(authKey{}).(authenticated)
		if err := a.require(permission{need: need}); err != nil {
			status := http.StatusForbidden
			if errors.Is(a.err, ErrUnavailable) {
				status = http.StatusServiceUnavailable
			} else if a.err != nil || a.caller.Role == "" {
				status = http.StatusUnauthorized
				w.Header().Set("WWW-Authenticate", "Bearer")
			}
			http.Error(w, err.Error(), status)
			return
		}
		next.ServeHTTP(w, r)
	})
}
