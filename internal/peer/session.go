package peer

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"dozo/internal/journal"
	"dozo/internal/wire"
)

// request is one that the reader has taken and that is not yet answered. The hot kinds are decoded into it and
// answered by functions that are bound once, so that they allocate nothing.
type request struct {
	session *session
	header  wire.Header // of the answer
	buf     *buffer     // holds the data; nil if there are none
	inUse   bool        // the store goes on reading it, though it has answered (journal.InUse): it is left to the garbage collector
	cost    int64       // taken from the budget

	append    wire.Append
	read      wire.Read
	forward   wire.Forward
	held      wire.AppendReply
	data      wire.ReadReply
	forwarded wire.ForwardReply
	onAppend  func(wire.AppendReply, error)
	onRead    func(wire.ReadReply, error)
	onForward func(wire.ForwardReply, error)
}

var requests sync.Pool

func getRequest() *request {
	if r, ok := requests.Get().(*request); ok {
		return r
	}
	r := new(request)
	r.onAppend = func(reply wire.AppendReply, err error) {
		r.held = reply
		if err != nil {
			_, r.inUse = errors.AsType[*journal.InUse](err)
		}
		r.answer(&r.held, err, nil)
	}
	r.onRead = func(reply wire.ReadReply, err error) {
		r.data = reply
		r.answer(&r.data, err, reply.Release)
	}
	r.onForward = func(reply wire.ForwardReply, err error) {
		r.forwarded = reply
		r.answer(&r.forwarded, err, reply.Release)
	}
	return r
}

// answer queues the answer and gives back what the request has used.
func (r *request) answer(m wire.Message, err error, release func()) {
	s := r.session
	if r.buf != nil && !r.inUse {
		r.buf.put() // it was in use until now
	}
	h := r.header
	h.Flags = wire.FlagReply
	if dataLen(m) > wire.DataMax && err == nil {
		err = wire.Errorf(wire.CodeBadRequest, "answer to %s is longer than %d bytes", h.Type, wire.DataMax)
	}
	sendErr := s.lockToSend()
	if sendErr == nil {
		b := s.mu.cur
		if err != nil {
			b.addError(h, wireError(err), s.checked)
		} else {
			b.add(h, m, s.checked, release)
			release = nil
		}
		b.credit += r.cost
		s.unlockAndSend()
	} else if sendErr == errQueueFull {
		// Can't be: the budget bounds what is queued. If it is, the client must not wait for ever.
		s.fail(sendErr)
	}
	if release != nil {
		release()
	}
	if !r.inUse {
		r.put()
	}
	s.server.wg.Done()
}

func dataLen(m wire.Message) int {
	switch m := m.(type) {
	case *wire.ReadReply:
		return len(m.Data)
	case *wire.ForwardReply:
		return len(m.Data)
	}
	return 0
}

func (r *request) put() {
	clear(r.append.Data)
	clear(r.forward.Data)
	r.session, r.buf, r.data, r.forwarded = nil, nil, wire.ReadReply{}, wire.ForwardReply{}
	requests.Put(r)
}

// wireError makes any error one that can be sent.
func wireError(err error) *wire.Error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	if errors.Is(err, context.Canceled) {
		return wire.Errorf(wire.CodeShutdown, "%v", err)
	}
	return wire.Errorf(wire.CodeIO, "%v", err)
}

func isResource(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) ||
		errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ECONNABORTED)
}

// overhead is what a request costs beside its data: it bounds how many small ones there can be.
const overhead = 512

func (s *session) wants(h *wire.Header) (bool, error) {
	k, ok := wire.KindOf(h.Type)
	switch {
	case !ok || h.Flags&wire.FlagReply != 0:
		return false, wire.Errorf(wire.CodeBadRequest, "%s is not a request", h.Type)
	case h.Type == wire.TypeAppend, h.Type == wire.TypeForward:
		if h.Flags&wire.FlagMore != 0 {
			return false, wire.Errorf(wire.CodeBadRequest, "data of %s are continued", h.Type)
		}
		// Before the memory is taken.
		return true, s.spend(int64(h.Length) + overhead)
	case k.Class == wire.ClassControl && s.class != wire.ClassControl:
		// Fences and leases must not wait behind data, and tickets need encryption.
		return false, wire.Errorf(wire.CodeBadRequest, "%s on a connection of class %s", h.Type, s.class)
	}
	return false, nil
}

// take makes a request object. Every one is answered exactly once.
func (s *session) take(h *wire.Header, cost int64) *request {
	r := getRequest()
	r.session, r.cost = s, cost
	r.header = wire.Header{Type: h.Type, Request: h.Request, Store: h.Store}
	s.server.wg.Add(1) // the reader is counted too: never from zero
	return r
}

func (s *session) handle(h *wire.Header, payload []byte, buf *buffer) error {
	switch h.Type {
	case wire.TypePing:
		r := s.take(h, 0)
		r.answer(&wire.Pong{}, nil, nil)
		return nil
	case wire.TypeAppend:
		s.server.opt.Busy()
		r := s.take(h, int64(h.Length)+overhead)
		r.buf = buf
		if err := wire.DecodeAt(&r.append, payload, s.version); err != nil {
			return s.undecodable(r, err)
		}
		if store := s.store(r); store != nil {
			store.Append(&r.append, r.onAppend)
		}
		return nil
	case wire.TypeForward:
		s.server.opt.Busy()
		return s.handleForward(h, payload, buf)
	case wire.TypeRead:
		s.server.opt.Busy()
		return s.handleRead(h, payload)
	case wire.TypeNotice:
		m := new(wire.Notice) // rare: only when a journal falls idle
		if err := wire.DecodeAt(m, payload, s.version); err != nil {
			return s.undecodable(nil, err)
		}
		if store := s.server.handler.Store(h.Store, s.class); store != nil {
			store.Notice(m)
		}
		return nil
	}
	return s.handleSlow(h, payload)
}

// undecodable ends the link: a peer that encodes wrongly is not to be believed in anything.
func (s *session) undecodable(r *request, err error) error {
	if r != nil {
		r.answer(nil, err, nil)
	}
	return errors.Join(errMalformed, err)
}

// store finds the request's store, or answers that there is none.
func (s *session) store(r *request) journal.Store {
	store := s.server.handler.Store(r.header.Store, s.class)
	if store == nil {
		r.answer(nil, wire.Errorf(wire.CodeAbsent, "store %s is not on node %s", r.header.Store, s.server.opt.Self.Node), nil)
	}
	return store
}

func (s *session) handleForward(h *wire.Header, payload []byte, buf *buffer) error {
	r := s.take(h, int64(h.Length)+overhead)
	r.buf = buf
	if err := wire.DecodeAt(&r.forward, payload, s.version); err != nil {
		return s.undecodable(r, err)
	}
	if r.forward.Op == wire.OpRead {
		if r.forward.Length > wire.DataMax {
			r.answer(nil, wire.Errorf(wire.CodeBadRequest, "read of %d bytes, at most %d", r.forward.Length, wire.DataMax), nil)
			return nil
		}
		if err := s.spend(int64(r.forward.Length)); err != nil {
			r.answer(nil, err, nil)
			return err
		}
		r.cost += int64(r.forward.Length)
	}
	s.server.handler.Forward(&s.from, &r.forward, r.onForward)
	return nil
}

func (s *session) handleRead(h *wire.Header, payload []byte) error {
	r := s.take(h, 0)
	if err := wire.DecodeAt(&r.read, payload, s.version); err != nil {
		return s.undecodable(r, err)
	}
	n := r.read.ReadBytes()
	if n > wire.DataMax {
		r.answer(nil, wire.Errorf(wire.CodeBadRequest, "read of %d bytes, at most %d", n, wire.DataMax), nil)
		return nil
	}
	if err := s.spend(n + overhead); err != nil {
		r.answer(nil, err, nil)
		return err
	}
	r.cost = n + overhead
	if store := s.store(r); store != nil {
		store.Read(&r.read, r.onRead)
	}
	return nil
}

// handleSlow gives a request to a goroutine of its own. With Options.SlowMax of them the reader waits.
func (s *session) handleSlow(h *wire.Header, payload []byte) error {
	k, _ := wire.KindOf(h.Type)
	m := k.Request()
	if err := wire.DecodeAt(m, payload, s.version); err != nil {
		return s.undecodable(nil, err)
	}
	cost := int64(len(payload)) + overhead
	switch m := m.(type) {
	case *wire.ReadRaw:
		if m.Len > wire.DataMax {
			s.take(h, 0).answer(nil, wire.Errorf(wire.CodeBadRequest, "raw read of %d bytes, at most %d", m.Len, wire.DataMax), nil)
			return nil
		}
		cost += int64(m.Len)
	case *wire.ReadIndex:
		cost += indexGuess
	}
	cost = min(cost, s.server.opt.InflightMax/2)
	if err := s.spend(cost); err != nil {
		return err
	}
	r := s.take(h, cost)
	select {
	case s.slow <- struct{}{}:
	default:
		s.uncork()
		select {
		case s.slow <- struct{}{}:
		case <-s.ctx.Done():
			r.answer(nil, errClosed, nil)
			return errClosed
		}
	}
	// Counted by take.
	go func() {
		defer func() { <-s.slow }()
		s.run1(r, m)
	}()
	return nil
}

// indexGuess is what an index usually takes at most: 32 MiB of small records.
const indexGuess = 1 << 20

// run1 runs a slow request.
func (s *session) run1(r *request, m wire.Message) {
	ctx, h := s.server.ctx, s.server.handler
	var reply wire.Message
	var err error
	switch m := m.(type) {
	case *wire.Ticket:
		reply, err = s.ticket(m)
	case *wire.Lease:
		reply, err = got(h.Lease(ctx, &s.from, m))
	case *wire.Bar:
		reply, err = got(h.Bar(ctx, &s.from, m))
	case *wire.Tick:
		reply, err = got(h.Tick(ctx, &s.from, m))
	case *wire.OwnerStatus:
		reply, err = got(h.OwnerStatus(ctx, &s.from, m))
	case *wire.Unit:
		reply, err = got(h.Unit(ctx, &s.from, m))
	case *wire.HandOver:
		reply, err = got(h.HandOver(ctx, &s.from, m))
	case *wire.Blocks:
		reply, err = got(h.Blocks(ctx, &s.from, m))
	case *wire.Troubles:
		reply, err = got(h.Troubles(ctx, &s.from, m))
	default:
		store := s.store(r)
		if store == nil {
			return
		}
		reply, err = askStore(ctx, store, m)
	}
	var release func()
	if data, ok := reply.(*wire.ReadReply); ok {
		release = data.Release
	}
	r.answer(reply, err, release)
}

func askStore(ctx context.Context, store journal.Store, m wire.Message) (wire.Message, error) {
	switch m := m.(type) {
	case *wire.OpenSegment:
		return got(store.OpenSegment(ctx, m))
	case *wire.Sync:
		return got(store.Sync(ctx, m))
	case *wire.Seal:
		return got(store.Seal(ctx, m))
	case *wire.Fence:
		return got(store.Fence(ctx, m))
	case *wire.Inventory:
		return got(store.Inventory(ctx, m))
	case *wire.ReadRaw:
		return got(store.ReadRaw(ctx, m))
	case *wire.ReadIndex:
		return got(store.ReadIndex(ctx, m))
	case *wire.Push:
		return got(store.Push(ctx, m))
	case *wire.Drop:
		return got(store.Drop(ctx, m))
	case *wire.StoreStatus:
		return got(store.Status(ctx, m))
	}
	return nil, wire.Errorf(wire.CodeBadRequest, "%s is not for a store", m.Type())
}

// got makes a reply a message.
func got[T any, P interface {
	*T
	wire.Message
}](reply T, err error) (wire.Message, error) {
	return P(&reply), err
}

// ticket lets the peer open a connection without encryption.
func (s *session) ticket(m *wire.Ticket) (wire.Message, error) {
	switch {
	case s.sock.tls == nil:
		return nil, wire.Errorf(wire.CodeDenied, "a ticket needs an encrypted connection")
	case !s.server.opt.PlainData:
		return nil, wire.Errorf(wire.CodeDenied, "plain data connections are not enabled at %s", s.server.opt.Self.Node)
	case m.Class == wire.ClassControl:
		return nil, wire.Errorf(wire.CodeDenied, "control connections are always encrypted")
	}
	t := s.server.tickets.issue(s.from.Node, m.Class, time.Now())
	if t == nil {
		return nil, wire.Errorf(wire.CodeBusy, "too many unused tickets")
	}
	return t, nil
}
