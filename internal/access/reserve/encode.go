package reserve

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Bytes: docs/format.md, "State of a unit"; docs/wire.md, "Unit". Little endian.

const formatVersion = 1

// ErrFormat says that bytes are not what they should be.
var ErrFormat = errors.New("malformed state of a unit")

// nameMax is the longest initiator name (RFC 7143 4.2.7.1).
const nameMax = 223

func bit(b bool, n uint) byte {
	if b {
		return 1 << n
	}
	return 0
}

func appendNexus(b []byte, n NexusID) []byte {
	b = append(b, n.ISID[:]...)
	b = binary.LittleEndian.AppendUint16(b, n.Port)
	name := n.Initiator[:min(len(n.Initiator), nameMax)]
	b = append(b, byte(len(name)))
	return append(b, name...)
}

const nexusLeast = 6 + 2 + 1

func appendModes(b []byte, m Modes) []byte {
	b = append(b, bit(m.DescriptorSense, 0)|bit(m.WriteProtect, 1)|bit(m.CacheOff, 2)|bit(m.ReportThresholds, 3))
	b = binary.LittleEndian.AppendUint32(b, m.ThresholdAvailable)
	return binary.LittleEndian.AppendUint32(b, m.ThresholdUsed)
}

func appendSanitize(b []byte, z Sanitize) []byte {
	b = append(b, byte(z.Kind), z.Passes, bit(z.Invert, 0)|bit(z.AUSE, 1))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(z.Pattern)))
	return append(b, z.Pattern...)
}

// Append encodes the state.
func (s *State) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, formatVersion, bit(s.Persist, 0)|bit(s.Legacy != nil, 1), byte(s.Type), 0)
	b = le.AppendUint32(b, s.Generation)
	b = le.AppendUint64(b, s.Version)
	b = le.AppendUint64(b, s.Events)
	b = appendModes(b, s.Current)
	b = appendModes(b, s.Saved)
	b = appendSanitize(b, s.Sanitize)
	if s.Legacy != nil {
		b = le.AppendUint64(b, s.Legacy.Session)
		b = appendNexus(b, s.Legacy.Nexus)
	}
	b = le.AppendUint32(b, uint32(len(s.Registrations)))
	for _, r := range s.Registrations {
		b = le.AppendUint64(b, r.Key)
		b = append(b, bit(r.Holder, 0))
		b = appendNexus(b, r.Nexus)
	}
	return b
}

// reader takes fields from bytes; the first that doesn't fit fails all that follow.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
	}
	r.b = nil
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.fail("%d bytes where %d should be", len(r.b), n)
		return make([]byte, min(n, 64))[:n:n]
	}
	x := r.b[:n]
	r.b = r.b[n:]
	return x
}

func (r *reader) u8() byte    { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }
func (r *reader) end() error {
	if r.err == nil && len(r.b) != 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	return r.err
}

func (r *reader) flags(most byte) byte {
	f := r.u8()
	if f > most {
		r.fail("flags %02x", f)
	}
	return f
}

func (r *reader) version() {
	if v := r.u8(); r.err == nil && v != formatVersion {
		r.fail("version %d", v)
	}
}

// bytes takes n bytes that were announced, bounds first.
func (r *reader) bytes(n, most int) []byte {
	if n > most || n > len(r.b) {
		r.fail("%d bytes announced, %d there, at most %d allowed", n, len(r.b), most)
		return nil
	}
	if n == 0 {
		return nil
	}
	return slices.Clone(r.take(n))
}

func (r *reader) nexus() (n NexusID) {
	copy(n.ISID[:], r.take(6))
	n.Port = r.u16()
	n.Initiator = string(r.bytes(int(r.u8()), nameMax))
	return n
}

func (r *reader) modes() (m Modes) {
	f := r.flags(0x0f)
	m.DescriptorSense, m.WriteProtect, m.CacheOff, m.ReportThresholds = f&1 != 0, f&2 != 0, f&4 != 0, f&8 != 0
	m.ThresholdAvailable, m.ThresholdUsed = r.u32(), r.u32()
	return m
}

func (r *reader) sanitize() (z Sanitize) {
	z.Kind = SanitizeKind(r.flags(byte(sanitizeMax)))
	z.Passes = r.u8()
	f := r.flags(3)
	z.Invert, z.AUSE = f&1 != 0, f&2 != 0
	z.Pattern = r.bytes(int(r.u16()), PatternMax)
	return z
}

func (r *reader) state() *State {
	s := new(State)
	r.version()
	f := r.flags(3)
	s.Persist = f&1 != 0
	s.Type = Type(r.u8())
	if s.Type != NoReservation && !s.Type.Valid() {
		r.fail("reservation type %d", s.Type)
	}
	r.flags(0)
	s.Generation, s.Version, s.Events = r.u32(), r.u64(), r.u64()
	s.Current, s.Saved = r.modes(), r.modes()
	s.Sanitize = r.sanitize()
	if f&2 != 0 {
		s.Legacy = &Legacy{Session: r.u64()}
		s.Legacy.Nexus = r.nexus()
	}
	n := int(r.u32())
	if n > RegistrationsMax || n*(8+1+nexusLeast) > len(r.b) {
		r.fail("%d registrations in %d bytes", n, len(r.b))
		return s
	}
	holders := 0
	for i := range n {
		g := Registration{Key: r.u64(), Holder: r.flags(1) == 1}
		g.Nexus = r.nexus()
		if r.err != nil {
			return s
		}
		if g.Holder {
			holders++
		}
		if i > 0 && s.Registrations[i-1].Nexus.Compare(g.Nexus) >= 0 || g.Key == 0 {
			r.fail("registration %d", i)
		}
		s.Registrations = append(s.Registrations, g)
	}
	// One holder of a reservation that one holds, none of the others, somebody at least.
	want := 0
	if s.Type != NoReservation && !s.Type.all() {
		want = 1
	}
	if holders != want || s.Type.all() && n == 0 {
		r.fail("%d holders of a reservation of type %d", holders, s.Type)
	}
	return s
}

// DecodeState reads what Append wrote.
func DecodeState(b []byte) (*State, error) {
	r := reader{b: b}
	s := r.state()
	if err := r.end(); err != nil {
		return nil, err
	}
	return s, nil
}

// Append encodes the command.
func (c *Command) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, formatVersion, byte(c.Action), byte(c.Type), c.Scope,
		bit(c.Persist, 0)|bit(c.Unregister, 1)|bit(c.Save, 2)|bit(c.Failed, 3))
	b = le.AppendUint64(b, c.Session)
	b = le.AppendUint64(b, c.Key)
	b = le.AppendUint64(b, c.ServiceKey)
	b = appendNexus(b, c.Nexus)
	b = appendModes(b, c.Modes)
	b = appendSanitize(b, c.Sanitize)
	b = le.AppendUint16(b, uint16(len(c.Others)))
	for _, n := range c.Others {
		b = appendNexus(b, n)
	}
	return b
}

// DecodeCommand reads what Append wrote.
func DecodeCommand(b []byte) (*Command, error) {
	r := reader{b: b}
	c := new(Command)
	r.version()
	c.Action = Action(r.flags(byte(actionMax)))
	if c.Action > RegisterAndMove && c.Action < LegacyReserve {
		r.fail("action %d", c.Action)
	}
	c.Type, c.Scope = Type(r.u8()), r.u8()
	f := r.flags(0x0f)
	c.Persist, c.Unregister, c.Save, c.Failed = f&1 != 0, f&2 != 0, f&4 != 0, f&8 != 0
	c.Session, c.Key, c.ServiceKey = r.u64(), r.u64(), r.u64()
	c.Nexus = r.nexus()
	c.Modes = r.modes()
	c.Sanitize = r.sanitize()
	n := int(r.u16())
	if n > RegistrationsMax || n*nexusLeast > len(r.b) {
		r.fail("%d nexuses in %d bytes", n, len(r.b))
	} else {
		for range n {
			c.Others = append(c.Others, r.nexus())
		}
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return c, nil
}

// Snapshot is a unit's state as its owner tells it to access servers, with the last events, so that each
// establishes those that it has not seen.
type Snapshot struct {
	State *State
	// Progress of a sanitize operation, 0 to 65535 (SPC-4 4.5.2.4.4).
	Progress uint16
	// Resources: logical blocks that have space of their own, and for how many there is still room.
	UsedBlocks, AvailableBlocks uint64
	Events                      []Event // ascending, up to State.Events
}

// EventsMax is how many events an owner keeps for access servers that were away; one that has missed more
// tells its initiators the most general condition.
const EventsMax = 256

const eventLeast = 8 + 2 + 1 + 1 + nexusLeast

// Append encodes the snapshot.
func (s *Snapshot) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, formatVersion)
	b = le.AppendUint16(b, s.Progress)
	b = le.AppendUint64(b, s.UsedBlocks)
	b = le.AppendUint64(b, s.AvailableBlocks)
	b = le.AppendUint32(b, uint32(len(s.Events)))
	for i := range s.Events {
		e := &s.Events[i]
		b = le.AppendUint64(b, e.Number)
		b = append(b, e.What.ASC, e.What.ASCQ, byte(e.Scope), bit(e.Abort, 0)|bit(e.IfAborted, 1))
		b = appendNexus(b, e.Nexus)
	}
	return s.State.Append(b)
}

// DecodeSnapshot reads what Append wrote.
func DecodeSnapshot(b []byte) (*Snapshot, error) {
	r := reader{b: b}
	s := new(Snapshot)
	r.version()
	s.Progress, s.UsedBlocks, s.AvailableBlocks = r.u16(), r.u64(), r.u64()
	n := int(r.u32())
	if n > EventsMax || n*eventLeast > len(r.b) {
		r.fail("%d events in %d bytes", n, len(r.b))
		return nil, r.err
	}
	for i := range n {
		e := Event{Number: r.u64()}
		e.What = Attention{r.u8(), r.u8()}
		e.Scope = Scope(r.flags(byte(scopeMax)))
		f := r.flags(3)
		e.Abort, e.IfAborted = f&1 != 0, f&2 != 0
		e.Nexus = r.nexus()
		if e.Scope == 0 || i > 0 && e.Number <= s.Events[i-1].Number {
			r.fail("event %d", i)
		}
		if r.err != nil {
			return nil, r.err
		}
		s.Events = append(s.Events, e)
	}
	s.State = r.state()
	if err := r.end(); err != nil {
		return nil, err
	}
	return s, nil
}

// Missed says which events came after number seen, and whether all of them are there.
func (s *Snapshot) Missed(seen uint64) (events []Event, all bool) {
	i, _ := slices.BinarySearchFunc(s.Events, seen+1, func(e Event, n uint64) int {
		switch {
		case e.Number < n:
			return -1
		case e.Number > n:
			return 1
		}
		return 0
	})
	events = s.Events[i:]
	return events, seen >= s.State.Events || uint64(len(events)) == s.State.Events-seen
}
