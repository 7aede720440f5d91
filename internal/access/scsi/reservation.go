package scsi

import (
	"encoding/binary"
	"encoding/hex"
	"strings"

	"dozo/internal/access/reserve"
)

// reserveUnit is RESERVE (6) and (10) (SPC-2 7.21, 7.22): the whole unit, no third parties, no extents.
func (u *Unit) reserveUnit(c *Command) { u.change(c, &reserve.Command{Action: reserve.LegacyReserve}) }

// releaseUnit is RELEASE (6) and (10) (SPC-2 7.16, 7.17).
func (u *Unit) releaseUnit(c *Command) { u.change(c, &reserve.Command{Action: reserve.LegacyRelease}) }

// change has a change of the unit decided and finishes with the outcome.
func (u *Unit) change(c *Command, cmd *reserve.Command) {
	cmd.Nexus, cmd.Session = u.nexus.initiator.Nexus, c.Request.SessionID()
	u.disk.ChangeUnit(c.Request, cmd, func(o reserve.Outcome, err error) {
		c.outcome(o, err)
		c.finish()
	})
}

// reserveIn is PERSISTENT RESERVE IN (SPC-4 6.15). It conflicts only with RESERVE.
func (u *Unit) reserveIn(c *Command) {
	u.disk.ShowUnit(c.Request, func(s *reserve.Snapshot, err error) {
		switch {
		case err != nil:
			c.fail(err)
		case !s.State.Allows(u.nexus.initiator.Nexus, reserve.AccessStatus):
			c.conflict()
		default:
			c.answer(appendReserveIn(c.inBuf[:0], c.CDB[1]&0x1f, s.State), uint64(c.u16(7)))
		}
		c.finish()
	})
}

// appendReserveIn encodes the parameter data of a service action.
func appendReserveIn(b []byte, action byte, s *reserve.State) []byte {
	const readKeys, readReservation, reportCapabilities, readFullStatus = 0, 1, 2, 3
	if action == reportCapabilities {
		const (
			replaceLost, compatible    = 0x80, 0x10       // RLR_C, CRH
			specify, allPorts, persist = 0x08, 0x04, 0x01 // SIP_C, ATP_C, PTPL_C
			typesValid, allowed        = 0x80, 0x40       // TMV, ALLOW COMMANDS 100b: as table 65 has it
		)
		b = append(b, 0, 8, replaceLost|compatible|specify|allPorts|persist, typesValid|allowed, 0xea, 0x01, 0, 0)
		if s.Persist {
			b[3] |= 0x01 // PTPL_A
		}
		return b
	}
	b = binary.BigEndian.AppendUint32(b, s.Generation)
	b = append(b, 0, 0, 0, 0)
	switch action {
	case readKeys:
		for _, r := range s.Registrations {
			b = binary.BigEndian.AppendUint64(b, r.Key)
		}
	case readReservation:
		if s.Type != reserve.NoReservation {
			b = binary.BigEndian.AppendUint64(b, s.HolderKey())
			b = append(b, 0, 0, 0, 0, 0, byte(s.Type), 0, 0)
		}
	case readFullStatus:
		for _, r := range s.Registrations {
			b = binary.BigEndian.AppendUint64(b, r.Key)
			b = append(b, 0, 0, 0, 0)
			if s.Holds(r.Nexus) {
				b = append(b, 0x01, byte(s.Type))
			} else {
				b = append(b, 0, 0)
			}
			b = append(b, 0, 0, 0, 0)
			b = binary.BigEndian.AppendUint16(b, r.Nexus.Port)
			at := len(b)
			b = append(b, 0, 0, 0, 0)
			b = appendTransportID(b, r.Nexus)
			binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
		}
	}
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)-8))
	return b
}

const iSCSIProtocol = 0x5

// appendTransportID encodes an iSCSI TransportID of the format with an initiator session identifier (SPC-4
// 7.6.4.6).
func appendTransportID(b []byte, n reserve.NexusID) []byte {
	b = append(b, 0x40|iSCSIProtocol, 0, 0, 0)
	at := len(b)
	b = append(b, n.Initiator...)
	b = append(b, ",i,0x"...)
	b = hex.AppendEncode(b, n.ISID[:])
	for b = append(b, 0); (len(b)-at)%4 != 0 || len(b)-at < 20; {
		b = append(b, 0)
	}
	binary.BigEndian.PutUint16(b[at-2:], uint16(len(b)-at))
	return b
}

// parseTransportID reads one and says how long it is.
func parseTransportID(b []byte) (n reserve.NexusID, size int, ok bool) {
	if len(b) < 4 {
		return n, 0, false
	}
	size = 4 + int(binary.BigEndian.Uint16(b[2:]))
	if b[0]&0x0f != iSCSIProtocol || b[0]>>6 != 1 || size > len(b) || size < 24 || size%4 != 0 {
		return n, 0, false
	}
	text, _, ended := strings.Cut(string(b[4:size]), "\x00")
	name, isid, has := strings.Cut(text, ",i,0x")
	if !ended || !has || name == "" || len(name) > 223 || len(isid) != 12 {
		return n, 0, false
	}
	if _, err := hex.Decode(n.ISID[:], []byte(isid)); err != nil {
		return n, 0, false
	}
	n.Initiator = strings.ToLower(name)
	return n, size, true
}

// reserveListMax bounds the parameter list of PERSISTENT RESERVE OUT: a few hundred TransportIDs.
const reserveListMax = 64 << 10

// prepareReserveOut is PERSISTENT RESERVE OUT (SPC-4 6.16).
func (u *Unit) prepareReserveOut(c *Command) {
	c.WantOut = uint64(c.u32(5))
	if c.WantOut < 24 || c.WantOut > reserveListMax {
		c.illegal(codeParameterListLength)
	}
}

// replaceLost is REPLACE LOST RESERVATION (SPC-4 5.13.11.3). Reservations are part of the volume's history: the device
// server never finds that it has lost them while it has the rest, and then the standard has this refused.
func (u *Unit) replaceLost(c *Command) {
	if len(c.outBuf) != 24 { // SPC-4 6.16.3: the basic parameter list, and nothing behind it
		c.illegal(codeParameterListLength)
		c.finish()
		return
	}
	u.disk.ShowUnit(c.Request, func(s *reserve.Snapshot, err error) {
		switch {
		case err != nil:
			c.fail(err)
		case s.State.Legacy != nil: // SPC-4 5.13.3: whoever has it
			c.conflict()
		default:
			c.illegal(codeInvalidRelease)
		}
		c.finish()
	})
}

func (u *Unit) reserveOut(c *Command) {
	cmd := u.reserveCommand(c, c.outBuf)
	if cmd == nil {
		c.finish()
		return
	}
	u.change(c, cmd)
}

// reserveCommand reads the parameter list; nil says that it is no good, and c how.
func (u *Unit) reserveCommand(c *Command, list []byte) *reserve.Command {
	cmd := &reserve.Command{Action: reserve.Action(c.CDB[1] & 0x1f), Scope: c.CDB[2] >> 4, Type: reserve.Type(c.CDB[2] & 0x0f),
		Key: binary.BigEndian.Uint64(list), ServiceKey: binary.BigEndian.Uint64(list[8:])}
	if cmd.Action == reserve.RegisterAndMove {
		cmd.Unregister, cmd.Persist = list[17]&0x02 != 0, list[17]&0x01 != 0
		ids := list[24:]
		if n := binary.BigEndian.Uint32(list[20:]); uint64(n) != uint64(len(ids)) {
			c.illegal(codeParameterListLength)
			return nil
		}
		to, size, ok := parseTransportID(ids)
		to.Port = binary.BigEndian.Uint16(list[18:])
		if !ok || size != len(ids) {
			c.badParameter(24)
			return nil
		}
		if _, known := u.disk.Paths().GroupOf(to.Port); !known {
			c.badParameter(18)
			return nil
		}
		cmd.Others = []reserve.NexusID{to}
		return cmd
	}
	const specify, allPorts, persist = 0x08, 0x04, 0x01
	cmd.Persist = list[20]&persist != 0
	own := u.nexus.initiator.Nexus
	if list[20]&specify != 0 && cmd.Action != reserve.Register {
		// SPC-4 6.16.3: only REGISTER has the field; elsewhere it is an error with REGISTER AND IGNORE.
		if cmd.Action == reserve.RegisterAndIgnore {
			c.badParameter(20)
			return nil
		}
	}
	var ports []reserve.NexusID
	switch {
	case list[20]&specify != 0 && cmd.Action == reserve.Register:
		if len(list) < 28 || uint64(binary.BigEndian.Uint32(list[24:])) != uint64(len(list)-28) {
			c.illegal(codeParameterListLength)
			return nil
		}
		for at := 28; at < len(list); {
			n, size, ok := parseTransportID(list[at:])
			if !ok {
				c.badParameter(at)
				return nil
			}
			n.Port = own.Port
			ports = append(ports, n)
			at += size
		}
	case len(list) != 24:
		c.illegal(codeParameterListLength)
		return nil
	}
	cmd.Others = ports
	if list[20]&allPorts != 0 && (cmd.Action == reserve.Register || cmd.Action == reserve.RegisterAndIgnore) {
		// Every target port that there is, for everybody who is to be registered.
		for _, n := range append([]reserve.NexusID{own}, ports...) {
			for _, g := range u.disk.Paths().Groups {
				for _, p := range g.Ports {
					if n.Port = p; n != own {
						cmd.Others = append(cmd.Others, n)
					}
				}
			}
		}
	}
	return cmd
}
