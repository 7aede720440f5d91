package scsi

import (
	"encoding/binary"
	"errors"
)

// The service actions of RECEIVE COPY (SPC-4 6.20 to 6.26).
const (
	receiveStatusLID1 = 0x00
	receiveParameters = 0x03
	receiveFailure    = 0x04
	receiveStatusLID4 = 0x05
	receiveToken      = 0x07
)

// extendedCopyLID1 is the service action of EXTENDED COPY (LID1).
const extendedCopyLID1 = 0x00

// receiveCopy tells of a copy, or of what the copy manager can do.
func (u *Unit) receiveCopy(c *Command) {
	be := binary.BigEndian
	action := c.CDB[1] & 0x1f
	allocation := uint64(c.u32(10))
	b := c.inBuf[:0]
	if action == receiveParameters {
		c.answer(appendCopyParameters(b), allocation)
		return
	}
	list := uint32(c.CDB[2])
	if action == receiveStatusLID4 || action == receiveToken {
		list = c.u32(2)
	}
	o := u.copies.find(list)
	if o == nil || action == receiveFailure && o.action != extendedCopyLID1 {
		c.badField(2, 7)
		return
	}
	o.mu.Lock()
	done, failed, count, moved, updates, sense := o.mu.done, o.mu.err != nil, o.processedLocked(), o.mu.bytes, o.mu.updates, o.mu.sense
	aborted := errors.Is(o.mu.err, ErrAborted)
	o.mu.Unlock()
	const inProgress, completed, withErrors = 0, 1, 2
	state := byte(inProgress)
	if done {
		state = completed
		if failed {
			state = withErrors
		}
	}
	switch action {
	case receiveStatusLID1:
		b = append(b, 0, 0, 0, 8, state)
		b = be.AppendUint16(b, count)
		const kibibytes = 1
		b = append(b, kibibytes)
		b = be.AppendUint32(b, uint32(min(moved>>10, 0xffffffff)))
		if done {
			u.copies.drop(list)
		}
	case receiveFailure:
		if !done {
			c.badField(2, 7)
			return
		}
		if !failed {
			b = be.AppendUint32(b, 0) // there are no details
			break
		}
		b = append(b, make([]byte, 60)...)
		b[56] = byte(StatusCheckCondition)
		b = sense.appendFixed(b)
		be.PutUint16(b[58:], uint16(len(b)-60))
		be.PutUint32(b, uint32(len(b)-4))
		u.copies.drop(list)
	default:
		// COPY OPERATION STATUS (SPC-4 6.24) has other codes for what is not over, and one for what was ended.
		const partial, foreground, background, terminated = 0x03, 0x11, 0x12, 0x60
		const statusDelay, noDelay = 100, 0xfffffffe // ESTIMATED STATUS UPDATE DELAY, in ms; there will be no other status
		delay := uint32(noDelay)
		switch {
		case !done && o.immediate:
			state, delay = background, statusDelay
		case !done:
			state, delay = foreground, statusDelay
		case aborted:
			state = terminated
		case !failed && o.short:
			state = partial
			failed = true // as much as that it has sense data
		}
		b = append(b, make([]byte, 32)...)
		b[4], b[5] = o.action, state
		be.PutUint16(b[6:], updates)
		be.PutUint32(b[8:], delay)
		switch {
		case state == terminated:
			b[12] = byte(StatusTaskAborted)
		case done && failed:
			const padded = (fixedSense + 3) / 4 * 4
			b[12], b[13], b[14] = byte(StatusCheckCondition), padded, fixedSense
			b = append(sense.appendFixed(b), make([]byte, padded-fixedSense)...)
		}
		if o.action >= 0x10 {
			const blocks = 0xf1 // transfer count in logical blocks
			b[15] = blocks
			be.PutUint64(b[16:], moved/uint64(max(c.geo.BlockSize, 1)))
		} else {
			be.PutUint64(b[16:], moved)
		}
		be.PutUint16(b[24:], count)
		if action == receiveToken {
			// SPC-4 6.26 has the token forgotten once it was transferred, too; but this answer may get lost.
			if done && allocation == 0 {
				u.copies.drop(list)
			}
			if n := len(o.tokenData); n > 0 {
				b = be.AppendUint32(b, uint32(2+n))
				b = append(b, 0, 0)
				b = append(b, o.tokenData...)
			} else {
				b = be.AppendUint32(b, 0)
			}
		}
		be.PutUint32(b, uint32(len(b)-4))
	}
	c.answer(b, allocation)
}

// appendCopyParameters is RECEIVE COPY (OPERATING PARAMETERS) (SPC-4 6.22).
func appendCopyParameters(b []byte) []byte {
	be := binary.BigEndian
	p := make([]byte, 44)
	p[4] = 0x01 // SNLID: a list identifier of none is supported
	be.PutUint16(p[8:], copyTargetsMax)
	be.PutUint16(p[10:], copySegmentsMax)
	be.PutUint32(p[12:], copyListMax)
	be.PutUint32(p[16:], copyLengthMax)
	be.PutUint16(p[34:], copiesMax)
	p[36] = copiesMax
	p[37] = 9 // DATA SEGMENT GRANULARITY: 512 bytes
	codes := []byte{segmentBlocks, segmentBlockOffsets, cscdIdentification}
	p[43] = byte(len(codes))
	p = append(p, codes...)
	be.PutUint32(p, uint32(len(p)-4))
	return append(b, p...)
}

// vpdThirdPartyCopy is page 8Fh (SPC-4 7.8.17).
func (u *Unit) vpdThirdPartyCopy(_ *Command, b []byte) []byte {
	be := binary.BigEndian
	descriptor := func(kind uint16, body []byte) {
		for len(body)%4 != 0 {
			body = append(body, 0)
		}
		b = be.AppendUint16(b, kind)
		b = be.AppendUint16(b, uint16(len(body)))
		b = append(b, body...)
	}
	size := max(1, u.disk.Geometry().BlockSize)
	limits := make([]byte, 32) // block device ROD token limits (SBC-3 6.6.6.3)
	be.PutUint16(limits[6:], copyRangesMax)
	be.PutUint32(limits[8:], tokenSecondsMax)
	be.PutUint32(limits[12:], tokenDefaultSeconds)
	be.PutUint64(limits[16:], copyTokenMax/uint64(size))
	be.PutUint64(limits[24:], copyTokenBest/uint64(size))
	descriptor(0x0000, limits)
	var commands []byte
	for _, code := range []byte{0x83, 0x84} {
		at := len(commands)
		commands = append(commands, code, 0)
		for _, o := range u.table.byCode[code] {
			commands = append(commands, byte(o.action))
			commands[at+1]++
		}
	}
	descriptor(0x0001, append([]byte{byte(len(commands))}, commands...))
	parameters := make([]byte, 28)
	be.PutUint16(parameters[4:], copyTargetsMax)
	be.PutUint16(parameters[6:], copySegmentsMax)
	be.PutUint32(parameters[8:], copyListMax)
	descriptor(0x0004, parameters)
	descriptor(0x0008, []byte{3, segmentBlocks, segmentBlockOffsets, cscdIdentification})
	descriptor(0x000c, []byte{0, 2, 0xff, 0xff})
	features := make([]byte, 44+48) // ROD token features, with those of block devices
	const anyTarget = 0x04
	features[0] = anyTarget
	be.PutUint32(features[12:], tokenLifeSeconds) // MINIMUM and MAXIMUM TOKEN LIFETIME
	be.PutUint32(features[16:], tokenLifeSeconds)
	be.PutUint32(features[20:], tokenSecondsMax)
	be.PutUint16(features[42:], 48)
	block := features[44:]
	be.PutUint16(block[2:], 44)
	be.PutUint16(block[6:], uint16(u.disk.Geometry().granularity()))
	be.PutUint64(block[8:], copyTokenMax)
	be.PutUint64(block[16:], copyTokenBest)
	be.PutUint64(block[24:], ^uint64(0)) // no limit on what is optimal for one range, to the token or from it
	be.PutUint64(block[32:], ^uint64(0))
	descriptor(0x0106, features)
	const tokenIn, tokenOut = 0x02, 0x01
	var types []byte // ROD types, 64 bytes each
	for _, t := range []struct {
		kind uint32
		flag byte
	}{{rodPointInTime, tokenIn | tokenOut}, {rodVulnerable, tokenIn | tokenOut}, {rodAny, tokenOut}, {rodZero, tokenIn}} {
		types = append(be.AppendUint32(types, t.kind), t.flag)
		types = append(types, make([]byte, 59)...)
	}
	descriptor(0x0108, append([]byte{0, 0, byte(len(types) >> 8), byte(len(types))}, types...))
	general := make([]byte, 32)
	be.PutUint32(general, copiesMax)
	be.PutUint32(general[4:], copiesMax)
	be.PutUint32(general[8:], copyLengthMax)
	general[12] = 9
	descriptor(0x8001, general)
	return b
}
