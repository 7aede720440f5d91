package peer

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// remote is a store behind connections.
type remote struct {
	id   ident.StoreID
	peer *Peer
	bulk bool
}

var _ journal.Store = (*remote)(nil)

// Store gives the store id of the node at a. Requests fail with wire.ErrUnreached when they can't be sent or
// their connection ends, with wire.ErrBusy when too much waits to be sent (Options.QueueMax).
//
// Callbacks of Append and Read run on the connection's reader: what they wait for, all later answers wait for,
// and what they ask for is sent together, once the answers that have arrived are dealt with. A message handed
// to a method with a context must not be changed later either, as it may still wait for a connection.
func (p *Pool) Store(id ident.StoreID, a Addr) journal.Store {
	return &remote{id: id, peer: p.Peer(a)}
}

// BulkStore gives the same store for copying: its appends, syncs and reads go by the bulk connections,
// where they hold up nobody and are paced. Those of one segment stay in order.
func (p *Pool) BulkStore(id ident.StoreID, a Addr) journal.Store {
	return &remote{id: id, peer: p.Peer(a), bulk: true}
}

func (s *remote) ID() ident.StoreID { return s.id }

// class is where messages of type t go.
func (s *remote) class(t wire.Type) wire.Class {
	k, _ := wire.KindOf(t)
	if s.bulk && k.Class != wire.ClassControl {
		return wire.ClassBulk
	}
	return k.Class
}

// keyOf keeps what concerns one segment in order and spreads segments.
func keyOf(id *ident.SegmentID) uint64 {
	return binary.LittleEndian.Uint64(id.Journal[:]) + uint64(id.Number)
}

func (s *remote) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	if n := dataBytes(m.Data); n > wire.DataMax {
		done(wire.AppendReply{}, wire.Errorf(wire.CodeBadRequest, "append of %d bytes, at most %d", n, wire.DataMax))
		return
	}
	x := calls.Get().(*call)
	x.header, x.msg, x.append = wire.Header{Type: wire.TypeAppend, Store: s.id}, m, done
	s.peer.submit(s.class(wire.TypeAppend), keyOf(&m.Segment), x)
}

func dataBytes(pieces [][]byte) (n int) {
	for _, p := range pieces {
		n += len(p)
	}
	return n
}

// Notice goes by any connection that is there: what it says holds whenever it arrives. With none it is lost.
func (s *remote) Notice(m *wire.Notice) {
	for _, class := range [...]wire.Class{s.class(wire.TypeNotice), wire.ClassControl} {
		slots := s.peer.slots[class]
		for i := range slots {
			if c := slots[i].link.Load(); c != nil {
				c.post(wire.Header{Type: wire.TypeNotice, Store: s.id}, m)
				return
			}
		}
	}
}

func (s *remote) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	if n := m.ReadBytes(); n > wire.DataMax {
		done(wire.ReadReply{}, wire.Errorf(wire.CodeBadRequest, "read of %d bytes, at most %d", n, wire.DataMax))
		return
	}
	x := calls.Get().(*call)
	x.header, x.msg, x.read = wire.Header{Type: wire.TypeRead, Store: s.id}, m, done
	s.peer.submit(s.class(wire.TypeRead), uint64(s.peer.next.Add(1)), x)
}

// ask sends m on the connection of key and waits for the answer.
func (s *remote) ask(ctx context.Context, key uint64, m, reply wire.Message) error {
	return s.peer.ask(ctx, s.class(m.Type()), key, wire.Header{Store: s.id}, m, reply)
}

// ask for one segment or journal. The answer is not touched if the waiting ended before it came: whoever
// decodes it later has it for himself.
func ask[T any, P interface {
	*T
	wire.Message
}](ctx context.Context, s *remote, key uint64, m wire.Message) (T, error) {
	reply := new(T)
	if err := s.ask(ctx, key, m, P(reply)); err != nil {
		var none T
		return none, err
	}
	return *reply, nil
}

func (s *remote) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	return ask[wire.OpenReply](ctx, s, keyOf(&m.Segment), m)
}

func (s *remote) Sync(ctx context.Context, m *wire.Sync) (wire.SyncReply, error) {
	key := binary.LittleEndian.Uint64(m.Journal[:])
	if len(m.Segments) == 1 {
		key = keyOf(&m.Segments[0]) // behind the appends that were sent before it
	}
	return ask[wire.SyncReply](ctx, s, key, m)
}

func (s *remote) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	return ask[wire.SealReply](ctx, s, keyOf(&m.Segment), m)
}

func (s *remote) Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error) {
	return ask[wire.FenceReply](ctx, s, 0, m)
}

func (s *remote) Inventory(ctx context.Context, m *wire.Inventory) (wire.InventoryReply, error) {
	return ask[wire.InventoryReply](ctx, s, uint64(s.peer.next.Add(1)), m)
}

func (s *remote) ReadRaw(ctx context.Context, m *wire.ReadRaw) (wire.ReadReply, error) {
	if m.Len > wire.DataMax {
		return wire.ReadReply{}, wire.Errorf(wire.CodeBadRequest, "raw read of %d bytes, at most %d", m.Len, wire.DataMax)
	}
	return s.data(ctx, m)
}

func (s *remote) ReadIndex(ctx context.Context, m *wire.ReadIndex) (wire.ReadReply, error) {
	return s.data(ctx, m)
}

// data asks for bytes. If nobody waits any more when they come, their buffer goes back at once.
func (s *remote) data(ctx context.Context, m wire.Message) (wire.ReadReply, error) {
	type answer struct {
		reply wire.ReadReply
		err   error
	}
	answered := make(chan answer, 1)
	var over atomic.Bool // whoever sets it second has the answer for himself
	x := calls.Get().(*call)
	x.header, x.msg = wire.Header{Type: m.Type(), Store: s.id}, m
	x.read = func(r wire.ReadReply, err error) {
		answered <- answer{r, err}
		if over.Swap(true) {
			if a := <-answered; a.reply.Release != nil {
				a.reply.Release()
			}
		}
	}
	s.peer.submit(s.class(m.Type()), uint64(s.peer.next.Add(1)), x)
	select {
	case a := <-answered:
		return a.reply, a.err
	case <-ctx.Done():
		if over.Swap(true) {
			a := <-answered
			return a.reply, a.err
		}
		return wire.ReadReply{}, fmt.Errorf("%w (%w)", unreached(s.peer.addr().Node, fmt.Errorf("gave up waiting for %s", m.Type())), ctx.Err())
	}
}

func (s *remote) Push(ctx context.Context, m *wire.Push) (wire.AppendReply, error) {
	return ask[wire.AppendReply](ctx, s, keyOf(&m.Segment), m)
}

func (s *remote) Drop(ctx context.Context, m *wire.Drop) (wire.DropReply, error) {
	return ask[wire.DropReply](ctx, s, 0, m)
}

func (s *remote) Status(ctx context.Context, m *wire.StoreStatus) (wire.StoreStatusReply, error) {
	return ask[wire.StoreStatusReply](ctx, s, 0, m)
}

// askNode asks the node itself.
func askNode[T any, P interface {
	*T
	wire.Message
}](ctx context.Context, p *Peer, m wire.Message) (T, error) {
	reply := new(T)
	if err := p.ask(ctx, wire.ClassControl, 0, wire.Header{}, m, P(reply)); err != nil {
		var none T
		return none, err
	}
	return *reply, nil
}

// Lease asks for leases of all the node's stores.
func (p *Peer) Lease(ctx context.Context, m *wire.Lease) (wire.LeaseReply, error) {
	return askNode[wire.LeaseReply](ctx, p, m)
}

// Bar has a refusal recorded by the owner.
func (p *Peer) Bar(ctx context.Context, m *wire.Bar) (wire.BarReply, error) {
	return askNode[wire.BarReply](ctx, p, m)
}

// Tick asks for the ticks of journals.
func (p *Peer) Tick(ctx context.Context, m *wire.Tick) (wire.TickReply, error) {
	return askNode[wire.TickReply](ctx, p, m)
}

// OwnerStatus asks how the node's journals are.
func (p *Peer) OwnerStatus(ctx context.Context, m *wire.OwnerStatus) (wire.OwnerStatusReply, error) {
	return askNode[wire.OwnerStatusReply](ctx, p, m)
}

// Unit tells the node's access server how a unit is now.
func (p *Peer) Unit(ctx context.Context, m *wire.Unit) (wire.UnitReply, error) {
	return askNode[wire.UnitReply](ctx, p, m)
}

// Blocks asks the node for its part of the block manager.
func (p *Peer) Blocks(ctx context.Context, m *wire.Blocks) (wire.BlocksReply, error) {
	return askNode[wire.BlocksReply](ctx, p, m)
}

// Troubles asks the node what has become of what it sees to be wrong.
func (p *Peer) Troubles(ctx context.Context, m *wire.Troubles) (wire.TroublesReply, error) {
	return askNode[wire.TroublesReply](ctx, p, m)
}

// HandOver does a step of a hand-over.
func (p *Peer) HandOver(ctx context.Context, m *wire.HandOver) (wire.HandOverReply, error) {
	return askNode[wire.HandOverReply](ctx, p, m)
}

// Forward hands a client's command to the owner. It is asynchronous like journal.Store.Append: done is called
// once, possibly before Forward returns; m and its Data are in use until then; the reply's Data are valid
// until its Release, if not nil, is called. Commands are sent in the order of the calls.
func (p *Peer) Forward(m *wire.Forward, done func(wire.ForwardReply, error)) {
	if n := dataBytes(m.Data); n > wire.DataMax || m.Op == wire.OpRead && m.Length > wire.DataMax {
		done(wire.ForwardReply{}, wire.Errorf(wire.CodeBadRequest, "forwarded command of more than %d bytes", wire.DataMax))
		return
	}
	x := calls.Get().(*call)
	x.header, x.msg, x.forward = wire.Header{Type: wire.TypeForward}, m, done
	p.submit(wire.ClassForward, 0, x)
}
