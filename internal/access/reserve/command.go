package reserve

import "slices"

// Action is what a Command does.
type Action uint8

// The actions. The numbers up to 7 are those of PERSISTENT RESERVE OUT's service actions; all are part of the
// format.
const (
	Register          Action = 0x00
	Reserve           Action = 0x01
	Release           Action = 0x02
	Clear             Action = 0x03
	Preempt           Action = 0x04
	PreemptAndAbort   Action = 0x05
	RegisterAndIgnore Action = 0x06
	RegisterAndMove   Action = 0x07
	LegacyReserve     Action = 0x20 // RESERVE (6), (10)
	LegacyRelease     Action = 0x21 // RELEASE (6), (10)
	NexusLost         Action = 0x22 // a session ended
	Reset             Action = 0x23 // LOGICAL UNIT RESET
	ClearTasks        Action = 0x24 // CLEAR TASK SET
	SetModes          Action = 0x25 // MODE SELECT
	SanitizeBegin     Action = 0x26
	SanitizeEnd       Action = 0x27 // by the owner
	SanitizeExit      Action = 0x28 // EXIT FAILURE MODE
	ThresholdCrossed  Action = 0x29 // by the owner
	Evict             Action = 0x2a // by an operator
	actionMax         Action = 0x2a
)

// Command asks for a change of a unit's State. Which fields count depends on the action.
type Command struct {
	Action  Action
	Nexus   NexusID
	Session uint64 // LegacyReserve, NexusLost

	Type       Type
	Scope      uint8  // of the CDB: 0 is LU_SCOPE, the only one there is
	Key        uint64 // RESERVATION KEY; SetModes: a ModeSet
	ServiceKey uint64 // SERVICE ACTION RESERVATION KEY
	Persist    bool   // APTPL
	Unregister bool   // RegisterAndMove: UNREG
	// Others are registered together with Nexus (Register: SPEC_I_PT, ALL_TG_PT), or, for RegisterAndMove, the
	// one that gets the reservation.
	Others []NexusID

	Modes    Modes // SetModes: those that Key names as they will be, the others as the sender has last heard of them
	Save     bool  // SetModes: also saved
	Sanitize Sanitize
	Failed   bool // SanitizeEnd
}

// Outcome is how a Command ends.
type Outcome uint8

// The outcomes. Numbers are part of the format.
const (
	Good                      Outcome = 0
	Conflict                  Outcome = 1 // RESERVATION CONFLICT
	InvalidCDB                Outcome = 2 // INVALID FIELD IN CDB
	InvalidParameter          Outcome = 3 // INVALID FIELD IN PARAMETER LIST
	InvalidRelease            Outcome = 4 // INVALID RELEASE OF PERSISTENT RESERVATION
	InsufficientRegistrations Outcome = 5 // INSUFFICIENT REGISTRATION RESOURCES
	Sanitizing                Outcome = 6 // a sanitize operation is under way
	outcomeMax                Outcome = 6
)

// Result is what Apply decided.
type Result struct {
	Outcome Outcome
	Events  []Event
	// Aborts are the nexuses whose commands, sent before, must not run any more (PREEMPT AND ABORT).
	Aborts []NexusID
}

// change is a State being changed.
type change struct {
	*State
	Result
}

func (c *change) tell(e Event) {
	c.State.Events++
	e.Number = c.State.Events
	c.Result.Events = append(c.Result.Events, e)
}

// tellRegistered establishes a condition at every registered nexus but one.
func (c *change) tellRegistered(a Attention, but NexusID) {
	for _, r := range c.Registrations {
		if r.Nexus != but {
			c.tell(Event{What: a, Scope: ToOne, Nexus: r.Nexus})
		}
	}
}

// Apply decides upon a command. The new state is nil where nothing changes; s itself is never modified.
func (s *State) Apply(cmd *Command) (*State, Result) {
	c := change{State: s.clone()}
	if !c.run(s, cmd) {
		c.Result.Events, c.Aborts = nil, nil
		return nil, c.Result
	}
	c.Version++
	return c.State, c.Result
}

// run changes c.State, or says by false that nothing is to be changed.
func (c *change) run(old *State, cmd *Command) bool {
	switch cmd.Action {
	case LegacyReserve, LegacyRelease, NexusLost:
		return c.legacy(cmd)
	case Reset:
		// SAM-5 6.3.3: commands are aborted, modes go back to the saved ones, an SPC-2 reservation ends.
		// Persistent reservations stay (SPC-4 5.13.1).
		c.Legacy = nil
		c.Current = c.Saved
		c.tell(Event{What: DeviceReset, Scope: ToAll, Nexus: cmd.Nexus, Abort: true})
		return true
	case ClearTasks:
		c.tell(Event{What: CommandsCleared, Scope: ToOthers, Nexus: cmd.Nexus, Abort: true, IfAborted: true})
		return true
	case ThresholdCrossed:
		c.tell(Event{What: ThresholdReached, Scope: ToAll})
		return true
	case Evict:
		return c.evict(cmd)
	case SetModes:
		return c.setModes(old, cmd)
	case SanitizeBegin, SanitizeEnd, SanitizeExit:
		return c.sanitize(cmd)
	}
	// SPC-4 5.13.3: with an SPC-2 reservation there, PERSISTENT RESERVE OUT conflicts, whoever sends it.
	if c.Legacy != nil {
		c.Outcome = Conflict
		return false
	}
	changed := c.persistent(cmd)
	if c.Outcome != Good || !changed {
		return false
	}
	switch cmd.Action {
	case Register, RegisterAndIgnore, RegisterAndMove:
		c.Persist = cmd.Persist
		c.Generation++
	case Clear, Preempt, PreemptAndAbort:
		c.Generation++
	}
	return true
}

func (c *change) legacy(cmd *Command) bool {
	switch cmd.Action {
	case NexusLost:
		if c.Legacy == nil || c.Legacy.Nexus != cmd.Nexus || c.Legacy.Session != cmd.Session {
			return false
		}
		c.Legacy = nil
		return true
	case LegacyRelease:
		if c.Legacy != nil && c.Legacy.Nexus == cmd.Nexus {
			c.Legacy = nil
			return true
		}
		// SPC-4 5.13.3 (CRH): who may use the unit is told GOOD, and nothing changes; so is, by SPC-2 5.5.6,
		// who does not hold the reservation.
		if c.Legacy == nil && len(c.Registrations) > 0 && !c.compatible(cmd.Nexus) {
			c.Outcome = Conflict
		}
		return false
	}
	switch {
	case c.Legacy != nil && c.Legacy.Nexus != cmd.Nexus:
		c.Outcome = Conflict
		return false
	case c.Legacy != nil:
		return false
	case len(c.Registrations) > 0:
		if !c.compatible(cmd.Nexus) {
			c.Outcome = Conflict
		}
		return false
	}
	c.Legacy = &Legacy{Nexus: cmd.Nexus, Session: cmd.Session}
	return true
}

// compatible is SPC-4 5.13.3: RESERVE and RELEASE of a nexus that holds the persistent reservation, or is
// registered under a reservation for registrants, succeed and do nothing.
func (s *State) compatible(n NexusID) bool {
	return s.Holds(n) || s.Registered(n) != nil && s.Type.registrants()
}

func (c *change) setModes(old *State, cmd *Command) bool {
	if !old.Allows(cmd.Nexus, AccessWrite) {
		c.Outcome = Conflict
		return false
	}
	// What is not named stays as it is here, not as the sender had heard of it (protocol rule R7).
	modes := c.Current.with(cmd.Modes, ModeSet(cmd.Key))
	if c.Current == modes && (!cmd.Save || c.Saved == modes) {
		return false
	}
	if c.Current != modes {
		c.tell(Event{What: ModeParametersChanged, Scope: ToOthers, Nexus: cmd.Nexus})
	}
	c.Current = modes
	if cmd.Save {
		c.Saved = modes
	}
	return true
}

func (c *change) sanitize(cmd *Command) bool {
	switch cmd.Action {
	case SanitizeEnd:
		if !c.Sanitize.UnderWay() {
			return false
		}
		if cmd.Failed {
			c.Sanitize = Sanitize{Kind: SanitizeFailed, AUSE: c.Sanitize.AUSE}
		} else {
			c.Sanitize = Sanitize{}
		}
		return true
	case SanitizeExit:
		switch {
		case !c.Allows(cmd.Nexus, AccessWrite):
			c.Outcome = Conflict
			return false
		case c.Sanitize.Kind == SanitizeFailed && !c.Sanitize.AUSE:
			c.Outcome = InvalidCDB // SBC-3 5.24.2.5: the last one was to complete restricted
			return false
		case c.Sanitize.Kind != SanitizeFailed:
			return false
		}
		c.Sanitize = Sanitize{}
		return true
	}
	switch {
	case !c.Allows(cmd.Nexus, AccessWrite):
		c.Outcome = Conflict
		return false
	case c.Sanitize.UnderWay():
		c.Outcome = Sanitizing
		return false
	case c.Sanitize.Kind == SanitizeFailed && !c.Sanitize.AUSE && cmd.Sanitize.AUSE:
		c.Outcome = InvalidCDB // SBC-3 5.24.1: after a restricted one that failed, only another restricted one leads out
		return false
	}
	c.Sanitize = cmd.Sanitize
	c.Sanitize.Pattern = slices.Clone(cmd.Sanitize.Pattern)
	return true
}
