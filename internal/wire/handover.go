package wire

import (
	"time"

	"dozo/internal/ident"
)

// The messages of a hand-over (protocol.md R10). Who wants one asks the owner to begin and then how it goes; the
// owner asks the taker to prepare, for its tick, and, once the control store has the change, to take.

// HandStep is what a HandOver asks for.
type HandStep uint8

// Steps. Numbers are part of the format.
const (
	HandBegin   HandStep = 1 // of the owner: hand the journal over to Node, or to a node of Site
	HandStatus  HandStep = 2 // of the owner: how does it go
	HandPrepare HandStep = 3 // of the taker: load the map, say which ensemble is to be listed
	HandReady   HandStep = 4 // of the taker: its tick
	HandTake    HandStep = 5 // of the taker: the control store has Node as the owner; serve
	HandCancel  HandStep = 6 // of the taker: forget what was prepared; of the owner: don't, if it is not too late
	handMax     HandStep = 6
)

// HandOver is a step of a hand-over.
type HandOver struct {
	Journal ident.JournalID
	Step    HandStep
	Node    ident.NodeName // begin: the taker, or empty; else the owner that hands over
	Site    ident.SiteID   // begin: where a taker is to be found, if Node is empty
	Epoch   ident.Epoch    // of the owner that hands over
	Point   []byte         // prepare, take: the newest committed checkpoint, as its announcement has it; empty: none

	// HandTake: the journal's key as the control store has it now.
	Next      ident.Epoch
	Rev       uint64
	Ensembles []HandEnsemble
	Sites     []ident.SiteID

	// HandTake: what the taker needs for commands stamped in the epoch before (R9). Ticks are the old owner's.
	Stopped uint64 // when it stopped
	Prior   uint64 // the taker's tick of its answer to HandReady, which came before
	Reset   uint64
	Bars    []HandBar
	Aborted []HandAbort
	Acks    []HandAck

	// HandTake: the requests of records behind the checkpoint.
	Requests []HandRequest

	// HandTake: what stores near the old owner have answered to a fence of the next epoch. It has asked them in the
	// taker's name, and so spares it the way there and back.
	Fences []HandFence `since:"2"`

	// HandTake: leaves of the map that were read lately, those that were read most first.
	Hot []uint64 `since:"2"`

	// HandTake: of the journal's key, too.
	Ack      uint16    `since:"2"`
	AckSince ident.Seq `since:"2"`

	// HandTake, where the key was changed while the old owner served: what the taker's site has to have stable before the
	// taker begins (R10). The old owner has sent it, and has not heard of its being there.
	Tail []HandTail `since:"2"`
}

// HandTail is an end of a segment that is on its way to a store.
type HandTail struct {
	Segment ident.SegmentID
	Store   ident.StoreID
	Last    ident.Position // its last record
}

// HandEnsemble is an entry of the list of ensembles.
type HandEnsemble struct {
	Epoch  ident.Epoch
	Number uint32
	Stores []ident.StoreID
}

// HandFence is a store's answer to a fence.
type HandFence struct {
	Store ident.StoreID
	Reply FenceReply
}

// HandBar is a refusal of older sessions of a nexus.
type HandBar struct {
	Nexus   [16]byte
	Session uint64
	Tick    uint64
}

// HandAbort are requests of a forwarder that were aborted.
type HandAbort struct {
	Request RequestID // the first
	Tick    uint64
	More    uint64 `since:"3"` // how many follow it
}

// handAbortsMost bounds how many requests are told one by one to a node that knows no ranges.
const handAbortsMost = 1 << 18

// HandAck says when a write of a session was last acknowledged.
type HandAck struct {
	Initiator string
	Session   uint64
	Tick      uint64
}

// HandRequest is a part of a request that became a record.
type HandRequest struct {
	Request RequestID
	Part    uint8
	Seq     ident.Seq
}

// HandOverReply answers HandOver.
type HandOverReply struct {
	Tick   uint64          // prepare, ready: the taker's clock, milliseconds
	Stores []ident.StoreID // prepare: the ensemble to list; empty: the one that is used now stays

	// Begin and status.
	Taker    ident.NodeName
	Phase    string // for people
	Done     bool
	Failed   Code   // with Done, if it was not done; take, without Done: nothing was begun, and nothing will be by this leave
	Detail   string // of that
	LagBytes uint64 // what the taker's site lacks
	Pause    time.Duration
	Epoch    ident.Epoch // with Done: of the new owner
}

func (*HandOver) Type() Type      { return TypeHandOver }
func (*HandOverReply) Type() Type { return TypeHandOver }

const (
	handPointMax = 1024
	handPhaseMax = 255
)

func (m *HandOver) walk(c *coder) {
	c.journal(&m.Journal)
	c.enum((*uint8)(&m.Step), uint8(handMax), "step")
	c.node(&m.Node)
	c.site(&m.Site)
	c.epoch(&m.Epoch)
	point := string(m.Point)
	c.text(&point, handPointMax)
	m.Point = []byte(point)
	c.epoch(&m.Next)
	c.u64(&m.Rev)
	list(c, &m.Ensembles, epochSize+4+4, func(c *coder, e *HandEnsemble) {
		c.epoch(&e.Epoch)
		c.u32(&e.Number)
		list(c, &e.Stores, 16, (*coder).store)
	})
	list(c, &m.Sites, 2, (*coder).site)
	c.u64(&m.Stopped)
	c.u64(&m.Prior)
	reset := m.Reset
	if c.enc && !c.since(version3) && tooManyAborts(m.Aborted) {
		reset = m.Stopped
	}
	if c.u64(&reset); !c.enc {
		m.Reset = reset
	}
	list(c, &m.Bars, 16+8+8, func(c *coder, b *HandBar) {
		c.raw(b.Nexus[:])
		c.u64(&b.Session)
		c.u64(&b.Tick)
	})
	c.handAborts(&m.Aborted)
	list(c, &m.Acks, 2+8+8, func(c *coder, a *HandAck) {
		c.text(&a.Initiator, initiatorMax)
		c.u64(&a.Session)
		c.u64(&a.Tick)
	})
	list(c, &m.Requests, 16+1+8, func(c *coder, r *HandRequest) {
		c.u64(&r.Request.Forwarder)
		c.u64(&r.Request.Number)
		c.u8(&r.Part)
		c.seq(&r.Seq)
	})
	if !c.since(version2) {
		if !c.enc {
			m.Fences, m.Hot, m.Ack, m.AckSince, m.Tail = nil, nil, 0, 0, nil
		}
		return // they make it faster, no more; and who needs the tail is not asked by this version (control.LevelHandEarly)
	}
	list(c, &m.Fences, 16+fenceReplySize, func(c *coder, f *HandFence) {
		c.store(&f.Store)
		f.Reply.walk(c)
	})
	list(c, &m.Hot, 8, (*coder).u64)
	c.u16(&m.Ack)
	c.seq(&m.AckSince)
	list(c, &m.Tail, segmentSize+16+positionSize, func(c *coder, t *HandTail) {
		c.segment(&t.Segment)
		c.store(&t.Store)
		c.position(&t.Last)
	})
}

func (m *HandOverReply) walk(c *coder) {
	c.u64(&m.Tick)
	list(c, &m.Stores, 16, (*coder).store)
	c.node(&m.Taker)
	c.text(&m.Phase, handPhaseMax)
	c.boolean(&m.Done)
	failed := uint16(m.Failed)
	c.u16(&failed)
	m.Failed = Code(failed)
	c.text(&m.Detail, detailMax)
	c.u64(&m.LagBytes)
	c.duration(&m.Pause)
	c.epoch(&m.Epoch)
}

// handAborts has one request in each entry before version 3.
func (c *coder) handAborts(l *[]HandAbort) {
	if c.since(version3) {
		list(c, l, 16+8+8, func(c *coder, a *HandAbort) {
			c.u64(&a.Request.Forwarder)
			c.u64(&a.Request.Number)
			c.u64(&a.Tick)
			c.u64(&a.More)
		})
		return
	}
	var each []HandAbort
	if c.enc && !tooManyAborts(*l) {
		for _, a := range *l {
			for n := range a.More + 1 {
				each = append(each, HandAbort{Request: RequestID{Forwarder: a.Request.Forwarder, Number: a.Request.Number + n}, Tick: a.Tick})
			}
		}
	}
	list(c, &each, 16+8, func(c *coder, a *HandAbort) {
		c.u64(&a.Request.Forwarder)
		c.u64(&a.Request.Number)
		c.u64(&a.Tick)
	})
	if !c.enc {
		*l = each
	}
}

// tooManyAborts reports that a node that knows no ranges can't be told each request. It is told of a reset of everybody instead: what was
// sent before the hand-over is refused, and sent again.
func tooManyAborts(l []HandAbort) bool {
	n := uint64(0)
	for _, a := range l {
		if a.More >= handAbortsMost || n+a.More >= handAbortsMost {
			return true
		}
		n += a.More + 1
	}
	return false
}
