package reserve

import (
	"cmp"
	"slices"
)

// Type is the type of a persistent reservation (SPC-4 6.15.3).
type Type uint8

// The types. The numbers are SPC's.
const (
	NoReservation              Type = 0x0
	WriteExclusive             Type = 0x1
	ExclusiveAccess            Type = 0x3
	WriteExclusiveRegistrants  Type = 0x5
	ExclusiveAccessRegistrants Type = 0x6
	WriteExclusiveAll          Type = 0x7
	ExclusiveAccessAll         Type = 0x8
)

// Valid reports a type that a reservation can have.
func (t Type) Valid() bool {
	switch t {
	case WriteExclusive, ExclusiveAccess, WriteExclusiveRegistrants, ExclusiveAccessRegistrants, WriteExclusiveAll, ExclusiveAccessAll:
		return true
	}
	return false
}

// all says that every registrant holds the reservation.
func (t Type) all() bool { return t == WriteExclusiveAll || t == ExclusiveAccessAll }

// registrants says that every registrant may do what the holder may.
func (t Type) registrants() bool {
	return t == WriteExclusiveRegistrants || t == ExclusiveAccessRegistrants || t.all()
}

func (t Type) exclusiveAccess() bool {
	return t == ExclusiveAccess || t == ExclusiveAccessRegistrants || t == ExclusiveAccessAll
}

// Registration is one registered I_T nexus and its key.
type Registration struct {
	Nexus  NexusID
	Key    uint64
	Holder bool // of the persistent reservation; of an all registrants type everybody is, and nobody is marked
}

// Legacy is a reservation by RESERVE (SPC-2 5.5.1). It belongs to a session and ends with it.
type Legacy struct {
	Nexus   NexusID
	Session uint64
}

// Modes are the mode parameters that an initiator can change. The zero value is how a unit begins.
type Modes struct {
	DescriptorSense  bool // D_SENSE: sense data in descriptor format
	WriteProtect     bool // SWP
	CacheOff         bool // not WCE: every write is answered once it is on stable storage
	ReportThresholds bool // LBPERE: thresholds raise unit attentions
	// Provisioning thresholds in units of 2^ThresholdExponent blocks; 0 is none. Available arms when fewer are
	// left, Used when more are taken.
	ThresholdAvailable uint32
	ThresholdUsed      uint32
}

// ModeSet names parameters of Modes.
type ModeSet uint64

// The parameters. Numbers are part of the wire format.
const (
	ModeDescriptorSense  ModeSet = 1 << 0
	ModeWriteProtect     ModeSet = 1 << 1
	ModeCacheOff         ModeSet = 1 << 2
	ModeReportThresholds ModeSet = 1 << 3
	ModeThresholds       ModeSet = 1 << 4
	// ModesNamed says that the set means what it names, also if that is nothing. Access servers of before send a set of 0: they
	// mean all.
	ModesNamed ModeSet = 1 << 63
)

// with gives the parameters as they are once those of a set are what others say.
func (m Modes) with(o Modes, set ModeSet) Modes {
	if set == 0 {
		return o
	}
	if set&ModeDescriptorSense != 0 {
		m.DescriptorSense = o.DescriptorSense
	}
	if set&ModeWriteProtect != 0 {
		m.WriteProtect = o.WriteProtect
	}
	if set&ModeCacheOff != 0 {
		m.CacheOff = o.CacheOff
	}
	if set&ModeReportThresholds != 0 {
		m.ReportThresholds = o.ReportThresholds
	}
	if set&ModeThresholds != 0 {
		m.ThresholdAvailable, m.ThresholdUsed = o.ThresholdAvailable, o.ThresholdUsed
	}
	return m
}

// ThresholdExponent makes the unit of thresholds: 2^11 logical blocks, 1 MiB of 512 bytes.
const ThresholdExponent = 11

// SanitizeKind says what a SANITIZE does, or did.
type SanitizeKind uint8

// The kinds. Numbers are part of the format.
const (
	SanitizeNone       SanitizeKind = 0
	SanitizeBlockErase SanitizeKind = 1
	SanitizeOverwrite  SanitizeKind = 2
	SanitizeFailed     SanitizeKind = 3 // the last one failed: only SANITIZE is let in
	sanitizeMax        SanitizeKind = 3
)

// Sanitize is a sanitize operation under way.
type Sanitize struct {
	Kind    SanitizeKind
	Passes  uint8 // of an overwrite, 1 to 31
	Invert  bool  // every second pass writes the complement
	AUSE    bool  // a failure can be left without another SANITIZE
	Pattern []byte
}

// UnderWay says that an operation goes on: it has neither ended nor failed.
func (z *Sanitize) UnderWay() bool {
	return z.Kind == SanitizeBlockErase || z.Kind == SanitizeOverwrite
}

// State is what all initiators of a logical unit share beside its data: registrations, reservations, mode
// parameters, a sanitize operation. It is a value: Apply makes a new one. The zero State is a new unit's.
type State struct {
	Version       uint64 // counts the changes
	Generation    uint32 // PRGENERATION
	Persist       bool   // APTPL as it was last set
	Type          Type   // of the persistent reservation
	Registrations []Registration
	Legacy        *Legacy
	Current       Modes
	Saved         Modes
	Sanitize      Sanitize
	// Events counts the events of the unit's life; Event.Number is its value after the event.
	Events uint64
}

// Bounds of a State.
const (
	RegistrationsMax = 2048
	PatternMax       = 4096 // one logical block
)

func (s *State) clone() *State {
	c := *s
	c.Registrations = slices.Clone(s.Registrations)
	return &c
}

// Compare orders nexuses.
func (n NexusID) Compare(o NexusID) int {
	return cmp.Or(cmp.Compare(n.Initiator, o.Initiator), slices.Compare(n.ISID[:], o.ISID[:]), cmp.Compare(n.Port, o.Port))
}

func (s *State) find(n NexusID) (int, bool) {
	return slices.BinarySearchFunc(s.Registrations, n, func(r Registration, n NexusID) int { return r.Nexus.Compare(n) })
}

// Registered gives a nexus's registration, nil if it has none.
func (s *State) Registered(n NexusID) *Registration {
	if i, ok := s.find(n); ok {
		return &s.Registrations[i]
	}
	return nil
}

// Holds reports whether a nexus holds the persistent reservation.
func (s *State) Holds(n NexusID) bool {
	r := s.Registered(n)
	return r != nil && s.Type != NoReservation && (r.Holder || s.Type.all())
}

// holder is the one registration that holds the reservation, nil where none or all do.
func (s *State) holder() *Registration {
	for i := range s.Registrations {
		if s.Registrations[i].Holder {
			return &s.Registrations[i]
		}
	}
	return nil
}

// HolderKey is the key that READ RESERVATION shows: the holder's, 0 where all registrants hold it.
func (s *State) HolderKey() uint64 {
	if h := s.holder(); h != nil {
		return h.Key
	}
	return 0
}

// Idle reports that no reservation of any kind can be in anybody's way.
func (s *State) Idle() bool { return s.Type == NoReservation && s.Legacy == nil }

// Access classifies commands by what reservations do to them (SPC-4 table 65, SBC-3 table 13, SPC-2 table 9).
type Access uint8

// The classes.
const (
	AccessAlways Access = iota // never in conflict: INQUIRY, REPORT LUNS, REQUEST SENSE, ...
	AccessStatus               // in conflict with another's RESERVE only: TEST UNIT READY, PERSISTENT RESERVE IN, ...
	AccessRead                 // reads the medium: in conflict with exclusive access as well
	AccessWrite                // changes the medium or the unit: in conflict with every reservation
)

// Allows says whether a nexus's command of a class runs, or ends with RESERVATION CONFLICT.
func (s *State) Allows(n NexusID, a Access) bool {
	if a == AccessAlways {
		return true
	}
	if s.Legacy != nil {
		return s.Legacy.Nexus == n
	}
	if s.Type == NoReservation || a == AccessStatus {
		return true
	}
	if r := s.Registered(n); r != nil && (r.Holder || s.Type.registrants()) {
		return true
	}
	return a == AccessRead && !s.Type.exclusiveAccess()
}

// Scope says whom an event concerns.
type Scope uint8

// The scopes. Numbers are part of the format.
const (
	ToAll    Scope = 1
	ToOthers Scope = 2 // all but Event.Nexus
	ToOne    Scope = 3 // Event.Nexus
	scopeMax Scope = 3
)

// Event is a unit attention condition to be established at nexuses, wherever they are attached.
type Event struct {
	Number uint64
	What   Attention
	Scope  Scope
	Nexus  NexusID // with ToAll: who caused it
	Abort  bool    // the concerned nexuses' commands are aborted
	// IfAborted establishes the condition only where something was aborted (CLEAR TASK SET, SPC-4 table D.2
	// 2F/00).
	IfAborted bool
}

// Concerns reports whether a nexus is meant.
func (e *Event) Concerns(n NexusID) bool {
	switch e.Scope {
	case ToAll:
		return true
	case ToOthers:
		return e.Nexus != n
	}
	return e.Nexus == n
}
