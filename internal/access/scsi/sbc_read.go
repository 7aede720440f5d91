package scsi

import "bytes"

// prepareRead is READ (6), (10), (12) and (16). DPO is advice, and FUA asks for nothing more: what was
// acknowledged is on two servers, and a read never shows less.
func (u *Unit) prepareRead(c *Command) {
	lba, blocks := c.extent()
	if !u.setRange(c, lba, blocks, transferMax) {
		return
	}
	c.WantIn = uint64(c.n)
	// An initiator that expects less than the CDB asks for gets no more: read just the blocks it will see.
	size := int64(c.geo.BlockSize)
	if e := int64(c.ExpectIn); e < c.n {
		c.n = (e + size - 1) / size * size
	}
	c.ReadCost = int(c.n)
}

func (u *Unit) read(c *Command) {
	if c.n == 0 {
		c.finish()
		return
	}
	u.fetch(c, (*Command).answerReads)
}

// fetch reads the command's range in parallel records into c.reads.
func (u *Unit) fetch(c *Command, after func(*Command)) {
	c.begin(after)
	if c.n <= RecordMax {
		c.reads = append(c.reads[:0], nil)
		c.add()
		u.disk.Read(c.Request, c.off, int(c.n), c.onRead)
		c.end()
		return
	}
	parts := int((c.n + RecordMax - 1) / RecordMax)
	c.reads = c.reads[:0]
	for range parts {
		c.reads = append(c.reads, nil)
	}
	for i := range parts {
		at := int64(i) * RecordMax
		c.add()
		u.disk.Read(c.part(i), c.off+at, int(min(RecordMax, c.n-at)), func(r ReadResult, err error) { c.readPart(i, r, err) })
	}
	c.end()
}

// answerReads sends what was fetched.
func (c *Command) answerReads() {
	for _, r := range c.reads {
		c.In = append(c.In, r.Buffers()...)
	}
	c.finish()
}

// The BYTCHK field of VERIFY and WRITE AND VERIFY.
func (c *Command) byteCheck() byte { return c.CDB[1] >> 1 & 3 }

// prepareVerify is VERIFY (10), (12) and (16) (SBC-3 5.29).
func (u *Unit) prepareVerify(c *Command) {
	lba, blocks := c.extent()
	if c.byteCheck() == 2 {
		c.badField(1, 2)
		return
	}
	if !u.setRange(c, lba, blocks, transferMax) {
		return
	}
	switch c.byteCheck() {
	case 1:
		c.WantOut = uint64(c.n)
	case 3:
		if c.n > 0 {
			c.WantOut = uint64(c.geo.BlockSize)
		}
	}
	c.ReadCost = int(c.n)
}

func (u *Unit) verify(c *Command) {
	if c.n == 0 {
		c.finish()
		return
	}
	u.fetch(c, (*Command).compareReads)
}

// compareReads compares what was fetched with the data-out: byte for byte, or each block with the one block
// sent. Without data-out, having been read is all: every layer below checks its sums.
func (c *Command) compareReads() {
	if len(c.outBuf) > 0 {
		if at := c.mismatch(); at >= 0 {
			c.miscompare(at)
		}
	}
	c.finish()
}

// mismatch gives the offset of the first byte that differs, or -1.
func (c *Command) mismatch() int {
	at := 0
	for _, r := range c.reads {
		for _, b := range r.Buffers() {
			for len(b) > 0 {
				want := c.outBuf[at%len(c.outBuf):]
				n := min(len(b), len(want))
				if !bytes.Equal(b[:n], want[:n]) {
					for i := range n {
						if b[i] != want[i] {
							return at + i
						}
					}
				}
				b, at = b[n:], at+n
			}
		}
	}
	return -1
}

// miscompare ends the command with MISCOMPARE, the offset in the INFORMATION field.
func (c *Command) miscompare(at int) {
	c.check(senseData{key: Miscompare, code: codeMiscompareDuringVerify, info: uint64(at), infoValid: true})
}

// preFetch checks the range; there is no cache of this unit's own to fill (SBC-3 5.11).
func (u *Unit) preFetch(c *Command) {
	lba, blocks := c.extent()
	u.setRange(c, lba, blocks, ^uint64(0))
}
