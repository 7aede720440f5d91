package access

import (
	"context"
	"fmt"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// handed is with what a takeover begins: the journal's key as it is, and, after a hand-over, what the former owner
// has said.
type handed struct {
	state    control.JournalState
	rev      control.Rev
	told     bool // by the owner that handed over
	moved    bool // from another site
	point    journal.CheckpointPoint
	warm     *volume.Map // as point has it, with its leaves
	late     *lateBefore
	requests []wire.HandRequest
	fences   []wire.HandFence // answers to a fence of this epoch, which the former owner has asked for
	hot      []uint64
}

// loaded is the map of a checkpoint if it has been loaded already. It is given once.
func (h *handed) loaded(p journal.CheckpointPoint) *volume.Map {
	if h.warm == nil || p != h.point {
		return nil
	}
	m := h.warm
	h.warm = nil
	return m
}

// knowsRequests reports that the requests of all records behind the checkpoint are known.
func (h *handed) knowsRequests(p journal.CheckpointPoint) bool {
	return h.told && h.point.At.Seq <= p.At.Seq
}

// lateBefore is what an owner needs to judge commands stamped in the epoch before its own (R9). Stamps of an epoch
// that ended in any other way are refused: nobody knows what was refused in it, or had come. Of a hand-over that
// is known, and so is how old such a stamp is at least here: prior, on this node's clock, was before stopped on the
// old owner's.
type lateBefore struct {
	epoch          ident.Epoch
	stopped, prior uint64
	reset          uint64
	bars           map[[16]byte]bar
	aborted        aborts
	acks           map[string][]ack
}

// give fills in what the next owner needs. It runs in the old one's loop, as its last act.
func (l *late) give(m *wire.HandOver) {
	m.Reset = l.resetTick
	for n, b := range l.bars {
		m.Bars = append(m.Bars, wire.HandBar{Nexus: n, Session: b.session, Tick: b.tick})
	}
	l.aborted.each(func(first wire.RequestID, last, tick uint64) {
		m.Aborted = append(m.Aborted, wire.HandAbort{Request: first, More: last - first.Number, Tick: tick})
	})
	for name, i := range l.sessions {
		last := map[uint64]uint64{}
		note := func(a ack) { last[a.session] = max(last[a.session], a.tick) }
		if i.newest.tick != 0 {
			note(i.newest)
		}
		i.acks.each(note)
		i.acksOlder.each(note)
		for _, w := range i.wide {
			note(w.ack)
		}
		for s, t := range last {
			if t+stampAgeMax >= m.Stopped {
				m.Acks = append(m.Acks, wire.HandAck{Initiator: name, Session: s, Tick: t})
			}
		}
	}
}

func newLateBefore(m *wire.HandOver) *lateBefore {
	b := &lateBefore{epoch: m.Epoch, stopped: m.Stopped, prior: m.Prior, reset: m.Reset, bars: map[[16]byte]bar{}, aborted: aborts{},
		acks: map[string][]ack{}}
	for _, x := range m.Bars {
		b.bars[x.Nexus] = bar{x.Session, x.Tick}
	}
	for _, x := range m.Aborted {
		b.aborted.add(x.Request, x.Request.Number+min(x.More, ^uint64(0)-x.Request.Number), x.Tick)
	}
	for _, x := range m.Acks {
		b.acks[x.Initiator] = append(b.acks[x.Initiator], ack{x.Tick, x.Session})
	}
	return b
}

// here is a tick of the old owner on this one's clock, or one before it.
func (b *lateBefore) here(tick uint64) uint64 {
	age := b.stopped - min(tick, b.stopped)
	return b.prior - min(age, b.prior)
}

// check applies the refusals of the epoch before. Which blocks were written in it isn't known here: a write that is
// older than any by another session of its initiator is refused.
func (b *lateBefore) check(op *Op, since uint64) *wire.Error {
	if since <= b.reset && b.reset != 0 {
		return wire.Errorf(wire.CodeStale, "older than a reset")
	}
	if x, ok := b.bars[op.Nexus.Digest]; ok && x.session != op.Session && since <= x.tick {
		return wire.Errorf(wire.CodeStale, "older than a newer login of its nexus")
	}
	if b.aborted.has(op.Request) {
		return wire.Errorf(wire.CodeStale, "aborted")
	}
	if writes(op.Kind) {
		for _, a := range b.acks[op.Nexus.Initiator] {
			if a.session != op.Session && op.Stamp.Tick <= a.tick {
				return wire.Errorf(wire.CodeStale, "older than a newer write by another session")
			}
		}
	}
	return nil
}

// warmUp loads the map of a checkpoint with its leaves, as far as there is time and room for them: those that are
// left are loaded when they are needed.
func warmUp(ctx context.Context, env *Env, spec *control.VolumeSpec, point journal.CheckpointPoint, stores []ident.StoreID) (*volume.Map, error) {
	rd := &nearParts{ctx: ctx, env: env, stores: stores}
	m, err := volume.Load(spec.ID, point, rd)
	if err != nil {
		return nil, fmt.Errorf("map of %s: %w", spec.ID, err)
	}
	leaves := volume.LeafID((m.Size()*journal.BlockSize + leafBytes - 1) / leafBytes)
	begun := time.Now()
	for id := range leaves {
		if ctx.Err() != nil || time.Since(begun) > warmPatience || m.Memory() > env.mapRoom() {
			break
		}
		if _, ok := m.Locate(id); !ok {
			continue
		}
		if err := m.LoadLeaf(id, rd); err != nil {
			return nil, fmt.Errorf("map of %s: %w", spec.ID, err)
		}
	}
	return m, nil
}

const (
	warmPatience = 10 * time.Second // leaves that take longer are loaded when they are needed
	leafBytes    = 4 << 20          // of the volume, a leaf of its map (volume.LeafID)
)

// nearParts reads a checkpoint's parts before the takeover, from whichever store has them, near ones first.
type nearParts struct {
	ctx    context.Context
	env    *Env
	stores []ident.StoreID
}

func (p *nearParts) ReadPart(id ident.SegmentID, offset uint32, digest uint64) (*journal.Record, []byte, error) {
	reader := Owner{env: *p.env, ctx: p.ctx}
	last := error(wire.Errorf(wire.CodeAbsent, "no store has segment %s", id))
	for i, s := range p.stores {
		st, ok := p.env.Stores.Store(s)
		if !ok || !p.env.Stores.Up(s) {
			continue
		}
		rec, body, err := reader.readOne(st, id, offset)
		if err == nil && rec.BodyDigest != digest {
			err = wire.Errorf(wire.CodeCorrupt, "part of digest %016x at %d of segment %s at %s where the checkpoint says %016x", rec.BodyDigest, offset, id, s, digest)
		}
		if err == nil {
			// Who had it has the next one too.
			p.stores[0], p.stores[i] = p.stores[i], p.stores[0]
			return rec, body, nil
		}
		last = err
	}
	return nil, nil, last
}
