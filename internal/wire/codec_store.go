package wire

import "dozo/internal/ident"

// Fields of the messages of a store, in the order of docs/wire.md.

func (*OpenSegment) Type() Type      { return TypeOpenSegment }
func (*OpenReply) Type() Type        { return TypeOpenSegment }
func (*Append) Type() Type           { return TypeAppend }
func (*AppendReply) Type() Type      { return TypeAppend }
func (*Notice) Type() Type           { return TypeNotice }
func (*Sync) Type() Type             { return TypeSync }
func (*SyncReply) Type() Type        { return TypeSync }
func (*Seal) Type() Type             { return TypeSeal }
func (*SealReply) Type() Type        { return TypeSeal }
func (*Fence) Type() Type            { return TypeFence }
func (*FenceReply) Type() Type       { return TypeFence }
func (*Inventory) Type() Type        { return TypeInventory }
func (*InventoryReply) Type() Type   { return TypeInventory }
func (*Read) Type() Type             { return TypeRead }
func (*ReadReply) Type() Type        { return TypeRead }
func (*ReadRaw) Type() Type          { return TypeReadRaw }
func (*ReadIndex) Type() Type        { return TypeReadIndex }
func (*Push) Type() Type             { return TypePush }
func (*Drop) Type() Type             { return TypeDrop }
func (*DropReply) Type() Type        { return TypeDrop }
func (*Lease) Type() Type            { return TypeLease }
func (*LeaseReply) Type() Type       { return TypeLease }
func (*StoreStatus) Type() Type      { return TypeStoreStatus }
func (*StoreStatusReply) Type() Type { return TypeStoreStatus }

func (m *OpenSegment) walk(c *coder) {
	c.epoch(&m.Epoch)
	c.segment(&m.Segment)
	c.u32(&m.Capacity)
	c.boolean(&m.Copy)
}

func (m *OpenReply) walk(c *coder) { c.boot(&m.Boot) }

// appendFields is the size of an Append's fields.
const appendFields = epochSize + segmentSize + 4 + 2*positionSize

func (m *Append) walk(c *coder) {
	c.epoch(&m.Epoch)
	c.segment(&m.Segment)
	c.u32(&m.Offset)
	c.position(&m.Commit)
	c.position(&m.Stable)
}

func (m *AppendReply) walk(c *coder) {
	c.boot(&m.Boot)
	c.u32(&m.End)
	c.position(&m.Held)
}

func (m *Notice) walk(c *coder) {
	c.epoch(&m.Epoch)
	c.journal(&m.Journal)
	c.position(&m.Commit)
	c.position(&m.Stable)
	c.told(&m.Told)
}

const toldSize = positionSize + 3*8

func (c *coder) told(t *Told) {
	if !c.since(version2) {
		if !c.enc {
			*t = Told{}
		}
		return
	}
	c.position(&t.Commit)
	c.seq(&t.Mark)
	c.u64(&t.Behind)
	c.u64(&t.Time)
}

func (m *Sync) walk(c *coder) {
	c.epoch(&m.Epoch)
	c.journal(&m.Journal)
	list(c, &m.Segments, segmentSize, (*coder).segment)
}

func (m *SyncReply) walk(c *coder) {
	c.boot(&m.Boot)
	list(c, &m.Synced, segmentSize+4+positionSize, func(c *coder, s *SegmentSynced) {
		c.segment(&s.Segment)
		c.u32(&s.StableEnd)
		c.position(&s.Stable)
	})
}

func (m *Seal) walk(c *coder) {
	c.epoch(&m.Epoch)
	c.segment(&m.Segment)
	c.u32(&m.End)
	c.position(&m.Last)
	c.epochStart(&m.Start)
	if c.since(version2) {
		c.boolean(&m.Proven)
	} else if !c.enc {
		m.Proven = false
	}
}

func (m *SealReply) walk(c *coder) {
	c.boot(&m.Boot)
	c.u32(&m.Length)
	c.u64(&m.Made)
}

func (m *Fence) walk(c *coder) {
	c.journal(&m.Journal)
	c.epoch(&m.Epoch)
	c.node(&m.Taker)
	if c.since(version5) {
		c.boolean(&m.Taking)
	} else if !c.enc {
		m.Taking = false
	}
}

func (m *FenceReply) walk(c *coder) {
	c.boot(&m.Boot)
	c.epoch(&m.Was)
	c.position(&m.Commit)
	c.position(&m.Stable)
	list(c, &m.Replicas, replicaSize, (*coder).replica)
	c.told(&m.Told)
	if c.since(version5) {
		list(c, &m.Again, segmentSize, (*coder).segment)
	} else if !c.enc {
		m.Again = nil
	}
}

// fenceReplySize is that of one without replicas: the least.
const fenceReplySize = 16 + epochSize + 2*positionSize + 4

const replicaSize = segmentSize + 1 + 2*positionSize + 4 + 4 + epochStartSize + 8

func (c *coder) replica(r *Replica) {
	c.segment(&r.Segment)
	c.enum((*uint8)(&r.State), uint8(ReplicaCopy), "replica state")
	c.position(&r.Before)
	c.position(&r.Last)
	c.u32(&r.End)
	c.u32(&r.StableEnd)
	c.epochStart(&r.Start)
	c.u64(&r.Made)
	if c.since(version2) {
		c.boolean(&r.Unsure)
	} else if !c.enc {
		r.Unsure = false
	}
}

func (m *Inventory) walk(c *coder) {
	c.journal(&m.Journal)
	c.segment(&m.After)
	c.u32(&m.Limit)
}

func (m *InventoryReply) walk(c *coder) {
	c.boot(&m.Boot)
	list(c, &m.Replicas, replicaSize, (*coder).replica)
	c.boolean(&m.More)
	if !c.since(version2) {
		if !c.enc {
			m.Commit, m.Stable, m.Told = ident.Position{}, ident.Position{}, Told{}
		}
		return
	}
	c.position(&m.Commit)
	c.position(&m.Stable)
	c.told(&m.Told)
}

func (m *Read) walk(c *coder) {
	c.journal(&m.Journal)
	list(c, &m.Pieces, segmentSize+8, func(c *coder, p *ReadPiece) {
		c.segment(&p.Segment)
		c.u32(&p.Record)
		c.u16(&p.First)
		c.u16(&p.Blocks)
	})
}

func (m *ReadReply) walk(*coder) {}

func (m *ReadRaw) walk(c *coder) {
	c.segment(&m.Segment)
	c.u32(&m.Offset)
	c.u32(&m.Len)
}

func (m *ReadIndex) walk(c *coder) { c.segment(&m.Segment) }

func (m *Push) walk(c *coder) {
	c.epoch(&m.Epoch)
	c.segment(&m.Segment)
	c.u32(&m.From)
	c.u32(&m.To)
	c.position(&m.Commit)
	c.position(&m.Stable)
	c.store(&m.Dest)
}

func (m *Drop) walk(c *coder) {
	c.epoch(&m.Epoch)
	c.segment(&m.Segment)
	c.seq(&m.Permit)
	c.u64(&m.Made)
	c.boolean(&m.Replace)
}

func (m *DropReply) walk(*coder) {}

func (c *coder) journalEpoch(e *JournalEpoch) {
	c.store(&e.Store)
	c.journal(&e.Journal)
	c.epoch(&e.Epoch)
}

const journalEpochSize = 16 + 16 + epochSize

func (m *Lease) walk(c *coder) {
	c.node(&m.Owner)
	c.u64(&m.Instance)
	c.u64(&m.Sent)
	c.duration(&m.Duration)
	list(c, &m.Enroll, journalEpochSize, (*coder).journalEpoch)
	list(c, &m.Leave, journalEpochSize, (*coder).journalEpoch)
}

func (m *LeaseReply) walk(c *coder) {
	c.u64(&m.Sent)
	c.duration(&m.Duration)
	c.boot(&m.Boot)
	c.u64(&m.Instance)
	list(c, &m.Removed, journalEpochSize, (*coder).journalEpoch)
}

func (m *StoreStatus) walk(*coder) {}

func (m *StoreStatusReply) walk(c *coder) {
	c.boot(&m.Boot)
	c.text(&m.Failed, detailMax)
	c.u64(&m.Capacity)
	c.u64(&m.Free)
	c.u64(&m.Used)
	c.u64(&m.Replicas)
	c.u64(&m.Corrupt)
	c.u64(&m.Aside)
}

// ReadBytes is what a Read asks for: the length of its reply.
func (m *Read) ReadBytes() int64 {
	var n int64
	for i := range m.Pieces {
		n += int64(m.Pieces[i].Blocks) * blockSize
	}
	return n
}

// blockSize is the unit of ReadPiece.First and Blocks.
const blockSize = 4096
