package scsi

import (
	"encoding/binary"

	"dozo/internal/access/reserve"
)

// Asymmetric logical unit access (SPC-4 5.16): which target port groups there are, and in which states, is the Disk's
// word. A unit that changes hands goes on taking commands, so "transitioning" is only reported, never a reason to end a
// command (5.16.2.5); standby and unavailable are, except for the commands that the opcode table marks.

// reportTargetPortGroups lists the paths (SPC-4 6.37).
func (u *Unit) reportTargetPortGroups(c *Command) {
	b := append(c.inBuf[:0], make([]byte, 4)...)
	switch c.CDB[1] >> 5 {
	case 0:
	case 1: // extended header: FORMAT TYPE 001b and the implicit transition time, in seconds
		b = append(b, 0x10, transitionSeconds, 0, 0)
	default:
		c.badField(1, 7)
		return
	}
	for _, g := range u.disk.Paths().Groups {
		state := byte(g.State)
		if g.Preferred {
			state |= 0x80
		}
		supported := byte(0x83) // T_SUP, AN_SUP, AO_SUP
		if g.Supports(reserve.Standby) {
			supported |= 0x04
		}
		if g.Supports(reserve.Unavailable) {
			supported |= 0x08
		}
		b = append(b, state, supported)
		b = binary.BigEndian.AppendUint16(b, g.ID)
		// STATUS CODE 0: whether a host, an operator or nobody asked for the last change is not kept.
		b = append(b, 0, 0, 0, byte(len(g.Ports)))
		for _, p := range g.Ports {
			b = append(b, 0, 0)
			b = binary.BigEndian.AppendUint16(b, p)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	c.answer(b, uint64(c.u32(6)))
}

// transitionSeconds is how long an initiator should wait out a transition: a takeover takes seconds, and an
// initiator that waits too long only loses time.
const transitionSeconds = 15

// setGroupsMax bounds a parameter list: more groups than there are nodes in any cluster.
const setGroupsMax = 4 + 4*1024

func (u *Unit) prepareSetGroups(c *Command) {
	c.WantOut = uint64(c.u32(6))
	if c.WantOut > setGroupsMax || c.WantOut != 0 && (c.WantOut < 8 || c.WantOut%4 != 0) {
		c.badField(6, 7)
	}
}

// setGroups is SET TARGET PORT GROUPS (SPC-4 6.45): the group that is to be active/optimized gets the unit. One group is
// that at a time, and the states of the others follow, so what is asked for them has to be what they will be.
func (u *Unit) setGroups(c *Command) {
	list := c.outBuf
	if len(list) < 8 {
		c.finish() // a parameter list length of zero changes nothing
		return
	}
	paths := u.disk.Paths()
	to, wanted := uint16(0), false
	for at := 4; at < len(list); at += 4 {
		g, ok := paths.Group(binary.BigEndian.Uint16(list[at+2:]))
		state := reserve.AccessState(list[at] & 0x0f)
		switch {
		case !ok:
			c.badParameter(at + 2)
		case state == reserve.Transitioning || !g.Supports(state):
			c.badParameter(at)
		case state == reserve.ActiveOptimized && wanted && g.ID != to:
			c.badParameter(at)
		case state == reserve.ActiveOptimized:
			to, wanted = g.ID, true
		}
		if c.failed {
			c.finish()
			return
		}
	}
	next, _ := paths.Group(to)
	for at := 4; at < len(list); at += 4 {
		g, _ := paths.Group(binary.BigEndian.Uint16(list[at+2:]))
		will := g.State
		if wanted {
			will = paths.After(next, g)
		}
		if reserve.AccessState(list[at]&0x0f) != will {
			c.badParameter(at)
			c.finish()
			return
		}
	}
	if !wanted {
		c.finish()
		return
	}
	u.setting.Add(1)
	u.disk.SetOptimized(c.Request, to, func(err error) {
		if err != nil {
			c.fail(err)
		} else {
			// 5.16.2.5: the attention is for every other I_T nexus.
			u.seenPaths.Store(u.disk.Paths().Generation)
		}
		u.setting.Add(-1)
		c.finish()
	})
}
