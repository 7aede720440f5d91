package scsi

import (
	"bytes"
	"time"
)

// prepareWrite is WRITE and WRITE AND VERIFY (6), (10), (12) and (16).
func (u *Unit) prepareWrite(c *Command) {
	lba, blocks := c.extent()
	verifying := c.CDB[0] == 0x2e || c.CDB[0] == 0xae || c.CDB[0] == 0x8e
	if verifying && c.byteCheck() > 1 {
		c.badField(1, 2)
		return
	}
	if !u.setRange(c, lba, blocks, transferMax) {
		return
	}
	c.WantOut = uint64(c.n)
	c.FetchOut = int(c.n)
	if e := int64(c.ExpectOut); e < c.n {
		// The initiator sends less than the CDB says: what it sends is written, to the byte, and the transport
		// reports the difference.
		size := int64(c.geo.BlockSize)
		c.n, c.partial = e/size*size, int(e%size)
		c.FetchOut = int(e)
	}
	if verifying {
		c.fua = true
		c.ReadCost = int(c.n)
		if c.byteCheck() == 1 {
			c.ReadCost *= 2 // the copy that writeVerify compares with
		}
	} else if c.CDB[0] != 0x0a {
		c.fua = c.CDB[1]&0x08 != 0
	}
}

// allocateWrite gets the disk's buffers for the command's range, in records.
func (u *Unit) allocateWrite(c *Command) {
	for at := int64(0); at < c.n; at += RecordMax {
		w, err := u.disk.NewWrite(c.off+at, int(min(RecordMax, c.n-at)))
		if err != nil {
			c.fail(err)
			return
		}
		c.writes = append(c.writes, w)
		c.Out = append(c.Out, w.Bytes())
	}
	if c.partial > 0 {
		c.allocateOut(c.partial)
	}
}

// submit passes the command's buffers to the disk as one stage.
func (u *Unit) submit(c *Command, after func(*Command)) {
	c.begin(after)
	for i, w := range c.writes {
		c.writes[i] = nil // the disk's from now on
		c.add()
		u.disk.Write(c.part(i), w, c.fua, c.onStep)
	}
	c.end()
}

func (u *Unit) write(c *Command) {
	if c.partial > 0 {
		u.submit(c, u.writePartial)
		return
	}
	u.submit(c, (*Command).finish)
}

// writePartial writes the beginning of a block: it reads the block, and replaces it if nobody else has
// changed it meanwhile, or begins again.
func (u *Unit) writePartial(c *Command) {
	off, size := c.off+c.n, int(c.geo.BlockSize)
	end := func(err error) {
		if err != nil {
			c.fail(err)
		}
		c.finish()
	}
	u.disk.Read(c.part(len(c.writes)), off, size, func(r ReadResult, err error) {
		if err != nil {
			end(err)
			return
		}
		old := bytes.Join(r.Buffers(), nil)
		r.Release()
		w, err := u.disk.NewWrite(off, size)
		if err != nil {
			end(err)
			return
		}
		copy(w.Bytes(), old)
		copy(w.Bytes(), c.outBuf[:c.partial])
		u.disk.CompareAndWrite(c.part(len(c.writes)), old, w, c.fua, func(mismatch int, err error) {
			if err == nil && mismatch >= 0 {
				u.writePartial(c)
				return
			}
			end(err)
		})
	})
}

// prepareWriteAtomic is WRITE ATOMIC (16) (SBC-4 5.43): one record, so it is there as a whole or not at all, to
// every reader and after every failure.
func (u *Unit) prepareWriteAtomic(c *Command) {
	lba, blocks := c.extent()
	if c.u16(10) != 0 { // ATOMIC BOUNDARY: page B0h offers none
		c.badField(10, 7)
		return
	}
	if !u.setRange(c, lba, blocks, atomicMax) {
		return
	}
	switch granularity := uint64(c.geo.granularity()); {
	case lba%granularity != 0:
		c.badField(2, 7)
		return
	case blocks%granularity != 0:
		c.badField(12, 7)
		return
	}
	c.fua = c.CDB[1]&0x08 != 0
	c.WantOut = uint64(c.n)
}

// prepareOrWrite is ORWRITE (16) (SBC-3 5.9).
func (u *Unit) prepareOrWrite(c *Command) {
	lba, blocks := c.extent()
	if !u.setRange(c, lba, blocks, transferMax) {
		return
	}
	c.fua = c.CDB[1]&0x08 != 0
	c.WantOut = uint64(c.n)
	c.ReadCost = int(c.n)
}

func (u *Unit) orWrite(c *Command) {
	c.begin((*Command).finish)
	for i, w := range c.writes {
		c.writes[i] = nil
		c.add()
		u.disk.OrWrite(c.part(i), w, c.fua, c.onStep)
	}
	c.end()
}

// writeVerify writes through to stable storage and reads back; with BYTCHK it compares.
func (u *Unit) writeVerify(c *Command) {
	if c.n == 0 || c.partial > 0 {
		u.write(c) // nothing to compare with a block of which only a part is known
		return
	}
	if c.byteCheck() == 1 {
		// The disk owns the buffers once they are written, so what to compare with is copied first.
		c.outBuf = c.outBuf[:0]
		for _, w := range c.writes {
			c.outBuf = append(c.outBuf, w.Bytes()...)
		}
	}
	u.submit(c, func(c *Command) { u.fetch(c, (*Command).compareReads) })
}

// prepareCompareAndWrite (SBC-3 5.2): the data-out is what to compare with, then what to write.
func (u *Unit) prepareCompareAndWrite(c *Command) {
	lba, blocks := c.extent()
	if !u.setRange(c, lba, blocks, transferMax) {
		return
	}
	c.fua = c.CDB[1]&0x08 != 0
	c.WantOut = 2 * uint64(c.n)
}

func (u *Unit) compareAndWrite(c *Command) {
	if c.n == 0 {
		c.finish()
		return
	}
	c.begin((*Command).finish)
	w := c.writes[0]
	c.writes[0] = nil
	u.disk.CompareAndWrite(c.Request, c.outBuf, w, c.fua, c.onCAW)
}

// cawDone completes the one call of a COMPARE AND WRITE.
func (c *Command) cawDone(mismatch int, err error) {
	if err == nil && mismatch >= 0 {
		c.miscompare(mismatch)
		c.finish()
		return
	}
	c.stepDone(err)
}

// prepareSynchronize is SYNCHRONIZE CACHE (10) and (16); a length of 0 means up to the end.
func (u *Unit) prepareSynchronize(c *Command) {
	lba, blocks := c.extent()
	u.setRange(c, lba, blocks, ^uint64(0))
}

// synchronize flushes the whole disk whatever the range: a flush covers the prefix of the history (protocol
// rule R8). With IMMED set the answer may come at once, but one that comes late is as right, and the
// initiator learns of a failure.
func (u *Unit) synchronize(c *Command) {
	c.begin((*Command).finish)
	u.disk.Flush(c.Request, c.onStep)
}

// prepareWriteSame is WRITE SAME (10) and (16) (SBC-3 5.43).
func (u *Unit) prepareWriteSame(c *Command) {
	const unmap, anchor, noData = 0x08, 0x10, 0x01
	lba, blocks := c.extent()
	if blocks == 0 { // WSNZ
		if lba > c.geo.Blocks {
			c.outOfRange(lba)
			return
		}
		c.badField(c.lengthAt(), 7)
		return
	}
	if !u.setRange(c, lba, blocks, sameMax) {
		return
	}
	if c.CDB[0] == 0x93 && c.CDB[1]&noData != 0 {
		return
	}
	c.WantOut = uint64(c.geo.BlockSize)
	c.ReadCost = int(min(RecordMax, c.n)) // a pattern is written out by the record
}

func (u *Unit) writeSame(c *Command) {
	unmap := c.CDB[1]&0x08 != 0
	if allZero(c.outBuf) {
		c.begin((*Command).finish)
		u.disk.Zero(c.Request, c.off, c.n, unmap, c.onStep)
		return
	}
	u.writeSameRecord(c, 0)
}

// writeSameRecord writes the pattern record after record, one at a time: a long range must not take memory
// for all of it.
func (u *Unit) writeSameRecord(c *Command, at int64) {
	if c.cancelled.Load() {
		c.fail(ErrAborted)
		c.finish()
		return
	}
	if at >= c.n {
		c.finish()
		return
	}
	n := int(min(RecordMax, c.n-at))
	w, err := u.disk.NewWrite(c.off+at, n)
	if err != nil {
		c.fail(err)
		c.finish()
		return
	}
	for b := w.Bytes(); len(b) > 0; b = b[len(c.outBuf):] {
		copy(b, c.outBuf)
	}
	req := c.part(int(at / RecordMax))
	if at > 0 {
		req.Began, req.Stamp = req.began(), c.Request.fresh(u.disk)
		if time.Since(c.stepped) > longGap {
			w.Release()
			c.fail(ErrBusy)
			c.finish()
			return
		}
	}
	c.begin(func(c *Command) {
		c.stepped = time.Now()
		u.writeSameRecord(c, at+int64(n))
	})
	u.disk.Write(req, w, false, c.onStep)
}

// zeros is what allZero compares with, a piece at a time.
var zeros [4096]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
