package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/pprof"
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Handler is what a node does for others. Methods may be called concurrently; ctx lives as long as the
// server. An error that is not a *wire.Error is sent as wire.CodeIO.
type Handler interface {
	// Store gives a store of this node for a connection of a class, nil if it isn't here. It is called for every request by the
	// connection's reader and must not block. The store's Append, Read and Notice are too: what they wait
	// for, later requests of the connection wait for as well. Appends are never Trusted.
	Store(id ident.StoreID, class wire.Class) journal.Store

	// Forward is called by the reader, in the order of arrival; done is called once, from any goroutine. m
	// and its Data are the handler's until then. The reply's Release, if not nil, runs once its Data are
	// sent.
	Forward(from *From, m *wire.Forward, done func(wire.ForwardReply, error))

	Lease(ctx context.Context, from *From, m *wire.Lease) (wire.LeaseReply, error)
	Bar(ctx context.Context, from *From, m *wire.Bar) (wire.BarReply, error)
	Tick(ctx context.Context, from *From, m *wire.Tick) (wire.TickReply, error)
	OwnerStatus(ctx context.Context, from *From, m *wire.OwnerStatus) (wire.OwnerStatusReply, error)
	Unit(ctx context.Context, from *From, m *wire.Unit) (wire.UnitReply, error)
	HandOver(ctx context.Context, from *From, m *wire.HandOver) (wire.HandOverReply, error)
	Blocks(ctx context.Context, from *From, m *wire.Blocks) (wire.BlocksReply, error)
	Troubles(ctx context.Context, from *From, m *wire.Troubles) (wire.TroublesReply, error)
}

// Server answers other nodes.
type Server struct {
	opt     Options
	handler Handler
	tickets ticketBox
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup // goroutines, and requests that the handler still has

	mu struct {
		sync.Mutex
		closed    bool
		listeners []net.Listener
		links     map[*session]struct{}
		shaking   int
	}
}

// shakingMax bounds the connections that have not finished their handshake.
const shakingMax = 256

// NewServer makes a server without listeners.
func NewServer(h Handler, o Options) (*Server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if !o.Insecure && o.ServerTLS == nil {
		return nil, errors.New("peer server without TLS")
	}
	s := &Server{opt: o, handler: h}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.mu.links = make(map[*session]struct{})
	s.wg.Go(s.watch)
	return s, nil
}

// Serve makes a server for the listeners and closes it when ctx ends.
func Serve(ctx context.Context, h Handler, o Options, listeners ...net.Listener) error {
	s, err := NewServer(h, o)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	var wg sync.WaitGroup
	errs := make([]error, len(listeners))
	for i, l := range listeners {
		wg.Go(func() {
			if errs[i] = s.Accept(l); errs[i] != nil {
				s.shut() // one listener fails, all stop: half a node is worse than none
			}
		})
	}
	wg.Wait()
	s.Close()
	return errors.Join(errs...)
}

// Accept takes connections from l until the server is closed, when it returns nil, or l fails.
func (s *Server) Accept(l net.Listener) error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return l.Close()
	}
	s.mu.listeners = append(s.mu.listeners, l)
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	for {
		conn, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || isResource(err) {
				s.opt.Log.Warn("accept", "err", err)
				select {
				case <-time.After(100 * time.Millisecond): // out of descriptors: others may end meanwhile
				case <-s.ctx.Done():
				}
				continue
			}
			return fmt.Errorf("accept: %w", err)
		}
		s.mu.Lock()
		if s.mu.closed || s.mu.shaking >= shakingMax {
			s.mu.Unlock()
			_ = conn.Close()
			continue
		}
		s.mu.shaking++
		s.wg.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.wg.Done()
			s.serve(conn)
		}()
	}
}

// shut makes everything end without waiting.
func (s *Server) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closed = true
	s.cancel()
	for _, l := range s.mu.listeners {
		_ = l.Close()
	}
	s.mu.listeners = nil
	for l := range s.mu.links {
		l.fail(errClosed)
	}
}

// Close ends listeners and connections and returns when all goroutines are gone and the handler has answered
// everything. A second call waits too. It must not be called by the handler.
func (s *Server) Close() {
	s.shut()
	s.wg.Wait()
}

// watch ends connections from which nothing has come for too long: clients ping.
func (s *Server) watch() {
	tick := time.NewTicker(s.opt.DeadAfter / 4)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-tick.C:
			s.mu.Lock()
			for l := range s.mu.links {
				received, sent := l.received.Load(), l.sent.Load()
				if received != l.lastReceived || sent != l.lastSent {
					l.lastReceived, l.lastSent, l.lastSign = received, sent, now
				} else if now.Sub(l.lastSign) >= s.opt.DeadAfter {
					l.fail(fmt.Errorf("no sign of life for %v", now.Sub(l.lastSign).Round(time.Millisecond)))
				}
			}
			s.mu.Unlock()
		}
	}
}

// serve is the goroutine of one connection.
func (s *Server) serve(conn net.Conn) {
	log := s.opt.Log.With("addr", conn.RemoteAddr().String())
	ctx, cancel := context.WithTimeout(s.ctx, s.opt.DialTimeout)
	sock, hello, err := s.opt.accepted(ctx, conn, &s.tickets)
	cancel()
	s.mu.Lock()
	s.mu.shaking--
	s.mu.Unlock()
	if err != nil {
		_ = conn.Close()
		if hello != nil {
			log = log.With("peer", hello.Node)
		}
		if s.ctx.Err() == nil {
			log.Warn("connection refused", "err", err)
		}
		return
	}
	l := &session{
		link:   newLink(sock, hello.Class, hello, sock.tls == nil, s.opt.QueueMax, s.opt.InflightMax),
		server: s,
		from:   From{Node: hello.Node, Instance: hello.Instance, Class: hello.Class, Addr: conn.RemoteAddr()},
		log:    log.With("peer", hello.Node, "class", hello.Class.String()),
		slow:   make(chan struct{}, s.opt.SlowMax),
	}
	l.link.queued = int(min(s.opt.InflightMax*4, 1<<31-1)) // answers are bounded by the budget already
	l.handler = l
	l.lastSign = time.Now()
	s.mu.Lock()
	if s.mu.closed {
		l.fail(errClosed)
	}
	s.mu.links[l] = struct{}{}
	s.mu.Unlock()
	if l.sock.tls != nil {
		// A certificate revoked between the handshake and now has been seen by neither it nor Recheck.
		l.recheck(&s.opt)
	}
	pprof.Do(s.ctx, pprof.Labels("peer", string(hello.Node), "class", hello.Class.String(), "task", "server"), func(context.Context) {
		err = l.run()
	})
	s.mu.Lock()
	delete(s.mu.links, l)
	s.mu.Unlock()
	if errors.Is(err, errMalformed) {
		l.log.Warn("connection ended for what it sent", "err", err)
	} else if s.ctx.Err() == nil {
		l.log.Info("connection ended", "err", err)
	}
}

// session is the answering side of a link.
type session struct {
	*link
	server *Server
	from   From
	log    *slog.Logger
	slow   chan struct{}

	lastReceived uint64 // by watch
	lastSent     uint64
	lastSign     time.Time
}
