package scsi

import (
	"encoding/binary"
	"time"

	"dozo/internal/access/reserve"
)

// The service actions of SANITIZE.
const (
	sanitizeOverwrite  = 0x01
	sanitizeBlockErase = 0x02
	sanitizeExit       = 0x1f
)

// prepareSanitize is SANITIZE (SBC-3 5.24): only an overwrite has a parameter list.
func (u *Unit) prepareSanitize(c *Command) {
	n := uint64(c.u16(7))
	if c.CDB[1]&0x1f == sanitizeOverwrite {
		// Four bytes, and a pattern of at least one and at most a block.
		if n < 5 || n > 4+uint64(c.geo.BlockSize) {
			c.badField(7, 7)
			return
		}
		c.WantOut = n
		return
	}
	if n != 0 {
		c.badField(7, 7)
	}
}

// sanitize has the operation recorded; the owner of the volume does it, over every change of owner, and until it
// is over the unit answers little else. Without IMMED the answer waits for the end.
func (u *Unit) sanitize(c *Command) {
	const immediate, ause = 0x80, 0x20
	cmd := &reserve.Command{Action: reserve.SanitizeBegin, Nexus: u.nexus.initiator.Nexus}
	cmd.Sanitize.AUSE = c.CDB[1]&ause != 0
	switch c.CDB[1] & 0x1f {
	case sanitizeOverwrite:
		list := c.outBuf
		pattern := int(binary.BigEndian.Uint16(list[2:]))
		switch {
		case list[0]&0x60 != 0 || list[0]&0x1f == 0: // TEST; OVERWRITE COUNT 0
			c.badParameter(0)
		case list[1] != 0:
			c.badParameter(1)
		case pattern == 0 || pattern != len(list)-4:
			c.badParameter(2)
		}
		if c.failed {
			c.finish()
			return
		}
		cmd.Sanitize.Kind, cmd.Sanitize.Passes, cmd.Sanitize.Invert = reserve.SanitizeOverwrite, list[0]&0x1f, list[0]&0x80 != 0
		cmd.Sanitize.Pattern = list[4:]
	case sanitizeBlockErase:
		cmd.Sanitize.Kind = reserve.SanitizeBlockErase
	case sanitizeExit:
		cmd.Action = reserve.SanitizeExit
	}
	wait := c.CDB[1]&immediate == 0 && cmd.Action == reserve.SanitizeBegin
	u.disk.ChangeUnit(c.Request, cmd, func(o reserve.Outcome, err error) {
		if !c.outcome(o, err) || !wait {
			c.finish()
			return
		}
		u.awaitSanitized(c)
	})
}

// sanitizePoll is how often the end of a sanitize operation is asked for.
const sanitizePoll = 100 * time.Millisecond

func (u *Unit) awaitSanitized(c *Command) {
	u.disk.ShowUnit(c.Request, func(s *reserve.Snapshot, err error) {
		switch {
		case c.cancelled.Load():
			c.fail(ErrAborted) // the operation goes on: SBC-3 4.11.1
		case err != nil:
			if outcomeOf(err).status == StatusBusy {
				time.AfterFunc(sanitizePoll, func() { u.awaitSanitized(c) }) // the owner is changing
				return
			}
			c.fail(err)
		case s.State.Sanitize.Kind == reserve.SanitizeFailed:
			c.check(senseData{key: MediumErrorKey, code: codeSanitizeFailed})
		case s.State.Sanitize.Kind != reserve.SanitizeNone:
			time.AfterFunc(sanitizePoll, func() { u.awaitSanitized(c) })
			return
		}
		c.finish()
	})
}

// outcome ends the command with what a change of the unit came to; true is success.
func (c *Command) outcome(o reserve.Outcome, err error) bool {
	switch {
	case err != nil:
		c.fail(err)
	case o == reserve.Good:
		return true
	case o == reserve.Conflict:
		c.conflict()
	case o == reserve.InvalidCDB && c.CDB[0] == 0x48: // EXIT FAILURE MODE, or AUSE, after a failure that has to be made up for
		c.badField(1, 5)
	case o == reserve.InvalidCDB:
		c.badField(2, 7)
	case o == reserve.InvalidParameter:
		c.illegal(codeInvalidFieldInParameter)
	case o == reserve.InvalidRelease:
		c.illegal(codeInvalidRelease)
	case o == reserve.InsufficientRegistrations:
		c.illegal(codeInsufficientRegistrants)
	case o == reserve.Sanitizing:
		s := c.unit.disk.Unit()
		c.check(senseData{key: NotReady, code: codeSanitizeInProgress, progress: s.Progress, progressValid: true})
	default:
		c.fail(ErrInternal)
	}
	return false
}
