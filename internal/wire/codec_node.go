package wire

// Fields of the messages between access servers and of connections, in the order of docs/wire.md.

func (*Forward) Type() Type          { return TypeForward }
func (*ForwardReply) Type() Type     { return TypeForward }
func (*Bar) Type() Type              { return TypeBar }
func (*BarReply) Type() Type         { return TypeBar }
func (*Tick) Type() Type             { return TypeTick }
func (*TickReply) Type() Type        { return TypeTick }
func (*OwnerStatus) Type() Type      { return TypeOwnerStatus }
func (*OwnerStatusReply) Type() Type { return TypeOwnerStatus }
func (*Unit) Type() Type             { return TypeUnit }
func (*UnitReply) Type() Type        { return TypeUnit }
func (*Ping) Type() Type             { return TypePing }
func (*Pong) Type() Type             { return TypePing }
func (*Ticket) Type() Type           { return TypeTicket }
func (*TicketReply) Type() Type      { return TypeTicket }

const (
	initiatorMax = 223 // RFC 7143 4.2.7.1: an iSCSI name's limit
	stateMax     = 255
)

func (c *coder) nexus(n *Nexus) {
	c.raw(n.Digest[:])
	c.raw(n.ISID[:])
	c.u16(&n.TPGT)
	c.text(&n.Initiator, initiatorMax)
}

func (m *Forward) walk(c *coder) {
	c.journal(&m.Journal)
	c.u64(&m.Request.Forwarder)
	c.u64(&m.Request.Number)
	c.u64(&m.Session)
	c.epoch(&m.Stamp.Epoch)
	c.u64(&m.Stamp.Tick)
	c.u64(&m.Since)
	c.enum((*uint8)(&m.Op), uint8(opMax), "operation")
	c.boolean(&m.FUA)
	c.u64(&m.Offset)
	c.u64(&m.Length)
	c.nexus(&m.Nexus)
	if c.since(version4) {
		c.boolean(&m.Copier)
	} else if !c.enc {
		m.Copier = false
	}
}

func (m *ForwardReply) walk(c *coder) {
	c.epoch(&m.Epoch)
	c.u64(&m.Tick)
	status := uint16(m.Status)
	c.u16(&status)
	m.Status = Code(status)
	c.boolean(&m.Mapped)
	c.u64(&m.Miscompare)
	c.u64(&m.Extent)
}

func (m *Bar) walk(c *coder) {
	c.journal(&m.Journal)
	c.enum((*uint8)(&m.Kind), uint8(barMax), "kind of bar")
	c.nexus(&m.Nexus)
	c.u64(&m.Forwarder)
	c.u64(&m.Session)
	c.u64(&m.First)
	c.u64(&m.Last)
}

func (m *BarReply) walk(c *coder) {
	c.epoch(&m.Epoch)
	c.u64(&m.Tick)
}

func (m *Tick) walk(c *coder) { list(c, &m.Journals, 16, (*coder).journal) }

func (m *TickReply) walk(c *coder) {
	list(c, &m.Ticks, 16+epochSize+8+8+2, func(c *coder, t *JournalTick) {
		c.journal(&t.Journal)
		c.epoch(&t.Epoch)
		c.u64(&t.Tick)
		c.u64(&t.Unit)
		c.node(&t.Owner)
	})
}

func (m *OwnerStatus) walk(c *coder) { list(c, &m.Journals, 16, (*coder).journal) }

func (m *OwnerStatusReply) walk(c *coder) {
	list(c, &m.Journals, 16+2+epochSize+3*positionSize+8+8+4+4+8+8+4+2+1+8+4+8+4+4+4, (*coder).journalStatus)
}

func (c *coder) journalStatus(s *JournalStatus) {
	c.journal(&s.Journal)
	c.node(&s.Owner)
	c.epoch(&s.Epoch)
	c.position(&s.Commit)
	c.position(&s.Stable)
	c.position(&s.Checkpoint)
	c.u64(&s.Written)
	c.u64(&s.Mapped)
	c.u32(&s.Segments)
	c.u32(&s.Degraded)
	c.u64(&s.DegradedBytes)
	c.u64(&s.Recovering)
	c.text(&s.State, stateMax)
	c.boolean(&s.Unproven)
	c.u64(&s.Lost)
	if c.since(version2) {
		c.u64(&s.LostBytes)
		c.u64(&s.LostNanos)
	} else if !c.enc {
		s.LostBytes, s.LostNanos, s.Cuts, s.Kept = 0, 0, nil, false
	}
	c.u32(&s.Forks)
	c.u64(&s.ForkBytes)
	c.u32(&s.Attached)
	c.u32(&s.Barred)
	list(c, &s.Ports, 6+2, func(c *coder, p *PortName) {
		c.raw(p.ISID[:])
		c.text(&p.Initiator, initiatorMax)
	})
	if c.since(version2) {
		list(c, &s.Cuts, 2*positionSize+1, func(c *coder, x *Cut) {
			c.position(&x.At)
			c.position(&x.Before)
			c.boolean(&x.Forgotten)
		})
		c.boolean(&s.Kept)
	}
	list(c, &s.Sites, 2+positionSize+8+8+8+8, func(c *coder, t *SiteStatus) {
		c.site(&t.Site)
		c.position(&t.Watermark)
		c.seq(&t.StableWatermark)
		c.u64(&t.LagBytes)
		c.u64(&t.LagNanos)
		c.u64(&t.Confirmed)
	})
}

func (m *Unit) walk(c *coder) {
	c.journal(&m.Journal)
	c.epoch(&m.Epoch)
	c.u64(&m.Tick)
}

func (m *UnitReply) walk(*coder) {}

func (m *Ping) walk(*coder) {}
func (m *Pong) walk(*coder) {}

func (m *Ticket) walk(c *coder) { c.enum((*uint8)(&m.Class), uint8(ClassMax), "class") }

func (m *TicketReply) walk(c *coder) {
	c.raw(m.ID[:])
	c.raw(m.Secret[:])
}
