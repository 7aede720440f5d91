package scsi

import (
	"encoding/binary"
	"sync/atomic"

	"dozo/internal/access/reserve"
)

// prepareUnmap asks for UNMAP's parameter list (SBC-3 5.28).
func (u *Unit) prepareUnmap(c *Command) { c.WantOut = uint64(c.u16(7)) }

// unmap checks the whole list, then zeroes the ranges in parallel: either all are well formed or nothing
// happens.
func (u *Unit) unmap(c *Command) {
	const header, descriptor = 8, 16
	list := c.outBuf
	if len(list) == 0 {
		u.unlessReserved(c, reserve.AccessWrite, (*Command).finish)
		return
	}
	if len(list) < header {
		c.illegal(codeParameterListLength)
		c.finish()
		return
	}
	// SBC-3 5.28.2: a descriptor that the list cuts off is ignored, and so is what follows the announced
	// length.
	n := min(int(binary.BigEndian.Uint16(list[2:])), len(list)-header) / descriptor
	if n > unmapDescriptorsMax {
		c.badParameter(2)
		c.finish()
		return
	}
	list = list[header : header+n*descriptor]
	some := false
	for at := 0; at < len(list); at += descriptor {
		lba, blocks := binary.BigEndian.Uint64(list[at:]), uint64(binary.BigEndian.Uint32(list[at+8:]))
		if lba > c.geo.Blocks || blocks > c.geo.Blocks-lba {
			c.outOfRange(lba)
			c.finish()
			return
		}
		some = some || blocks > 0
	}
	if !some {
		u.unlessReserved(c, reserve.AccessWrite, (*Command).finish)
		return
	}
	size := uint64(c.geo.BlockSize)
	c.begin((*Command).finish)
	for at := 0; at < len(list); at += descriptor {
		lba, blocks := binary.BigEndian.Uint64(list[at:]), uint64(binary.BigEndian.Uint32(list[at+8:]))
		if blocks == 0 {
			continue
		}
		c.add()
		u.disk.Zero(c.part(at/descriptor), int64(lba*size), int64(blocks*size), true, c.onStep)
	}
	c.end()
}

// prepareLBAStatus is GET LBA STATUS (SBC-3 5.5).
func (u *Unit) prepareLBAStatus(c *Command) {
	if c.u64(2) >= c.geo.Blocks {
		c.outOfRange(c.u64(2))
	}
}

// lbaStatus is a GET LBA STATUS under way: it asks the disk for one run after the other. The answers may come from far
// away, and nobody waits for them but the command.
type lbaStatus struct {
	c        *Command
	b        []byte
	off, end int64
	count    int  // descriptors
	lookups  int  // calls of the disk
	last     byte // the last descriptor's status
	mapped   bool // the disk's answer, and the rest of it
	n        int64
	err      error
	// turn is 2 when the disk is asked; the call's return and its answer each take one, and who takes the last goes on.
	turn atomic.Int32
}

func (u *Unit) lbaStatus(c *Command) {
	size := int64(c.geo.BlockSize)
	s := &lbaStatus{c: c, b: append(c.inBuf[:0], make([]byte, 8)...), off: int64(c.u64(2)) * size, end: int64(c.geo.Blocks) * size}
	s.walk()
}

// walk asks until an answer is late, whose coming continues it, or until the list is complete.
func (s *lbaStatus) walk() {
	c := s.c
	for s.lookups < statusLookupsMax && s.off < s.end {
		if c.cancelled.Load() {
			c.fail(ErrAborted)
			c.finish()
			return
		}
		s.lookups++
		s.turn.Store(2)
		c.unit.disk.Provisioned(s.off, func(mapped bool, n int64, err error) {
			s.mapped, s.n, s.err = mapped, n, err
			if s.turn.Add(-1) == 0 && s.take() {
				s.walk()
			}
		})
		if s.turn.Add(-1) > 0 || !s.take() {
			return
		}
	}
	s.finish()
}

// take enters what the disk has answered; false says that the command is finished.
func (s *lbaStatus) take() bool {
	const mapped, deallocated = 0, 1
	c, be, size := s.c, binary.BigEndian, int64(s.c.geo.BlockSize)
	if s.err != nil {
		c.fail(s.err)
		c.finish()
		return false
	}
	// Whole blocks, at least one, and what one descriptor's 32 bits hold.
	blocks := min(max(s.n/size, 1), (s.end-s.off)/size, 1<<31)
	status := byte(deallocated)
	if s.mapped {
		status = mapped
	}
	if at := len(s.b) - 16; s.count > 0 && status == s.last && int64(be.Uint32(s.b[at+8:]))+blocks <= 1<<31 {
		be.PutUint32(s.b[at+8:], be.Uint32(s.b[at+8:])+uint32(blocks))
	} else {
		if s.count == statusDescriptorsMax || s.count > 0 && uint64(len(s.b)+16) > uint64(c.u32(10)) {
			s.finish()
			return false
		}
		s.b = be.AppendUint64(s.b, uint64(s.off/size))
		s.b = be.AppendUint32(s.b, uint32(blocks))
		s.b = append(s.b, status, 0, 0, 0)
		s.count, s.last = s.count+1, status
	}
	s.off += blocks * size
	return true
}

func (s *lbaStatus) finish() {
	binary.BigEndian.PutUint32(s.b, uint32(len(s.b)-4))
	s.c.answer(s.b, uint64(s.c.u32(10)))
	s.c.finish()
}
