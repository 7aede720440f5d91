package reserve

import "slices"

// persistent does PERSISTENT RESERVE OUT (SPC-4 5.13.5 to 5.13.11, 6.16). It says whether anything changed; a
// refusal is in c.Outcome.
func (c *change) persistent(cmd *Command) bool {
	own := c.Registered(cmd.Nexus)
	// SPC-4 6.16.3: every action but the two that register needs the right key.
	switch cmd.Action {
	case Register:
		if own == nil && cmd.Key != 0 || own != nil && own.Key != cmd.Key {
			c.Outcome = Conflict
			return false
		}
		return c.register(cmd, own)
	case RegisterAndIgnore:
		return c.register(cmd, own)
	}
	if own == nil || own.Key != cmd.Key {
		c.Outcome = Conflict
		return false
	}
	switch cmd.Action {
	case Reserve:
		return c.reserve(cmd)
	case Release:
		return c.release(cmd)
	case Clear:
		c.tellRegistered(ReservationsPreempted, cmd.Nexus)
		c.Registrations, c.Type = nil, NoReservation
		return true
	case Preempt, PreemptAndAbort:
		return c.preempt(cmd)
	case RegisterAndMove:
		return c.move(cmd)
	}
	c.Outcome = InvalidCDB
	return false
}

// register is SPC-4 5.13.7: a new registration, another key, or, with a key of 0, the end of one.
func (c *change) register(cmd *Command, own *Registration) bool {
	switch {
	case own != nil && cmd.ServiceKey == 0:
		if len(cmd.Others) > 0 && cmd.Action == Register {
			// SPEC_I_PT is for those that are not registered; ALL_TG_PT unregisters the port everywhere.
			if slices.ContainsFunc(cmd.Others, func(n NexusID) bool { return n.initiatorPort() != cmd.Nexus.initiatorPort() }) {
				c.Outcome = InvalidParameter
				return false
			}
		}
		for _, n := range append([]NexusID{cmd.Nexus}, cmd.Others...) {
			c.unregister(n)
		}
		return true
	case cmd.ServiceKey == 0:
		return false // nothing is registered, and nothing is to be
	case slices.ContainsFunc(cmd.Others, func(n NexusID) bool {
		return n.initiatorPort() != cmd.Nexus.initiatorPort() && (own != nil || c.Registered(n) != nil)
	}):
		// SPEC_I_PT is for who is not registered (table 67 and its note b).
		c.Outcome = InvalidParameter
		return false
	}
	for _, n := range append([]NexusID{cmd.Nexus}, cmd.Others...) {
		if !c.enter(n, cmd.ServiceKey) {
			return false
		}
	}
	return true
}

// initiatorPort is the nexus without the target's side.
func (n NexusID) initiatorPort() NexusID { n.Port = 0; return n }

func (c *change) enter(n NexusID, key uint64) bool {
	i, ok := c.find(n)
	if ok {
		c.Registrations[i].Key = key
		return true
	}
	if len(c.Registrations) >= RegistrationsMax {
		c.Outcome = InsufficientRegistrations
		return false
	}
	c.Registrations = slices.Insert(c.Registrations, i, Registration{Nexus: n, Key: key})
	return true
}

// unregister ends a registration, and the reservation if it went with it (SPC-4 5.13.11.2.3).
func (c *change) unregister(n NexusID) {
	i, ok := c.find(n)
	if !ok {
		return
	}
	held := c.Registrations[i].Holder
	c.Registrations = slices.Delete(c.Registrations, i, i+1)
	switch {
	case c.Type.all():
		if len(c.Registrations) == 0 {
			c.Type = NoReservation
		}
	case held:
		if c.Type.registrants() {
			c.tellRegistered(ReservationsReleased, n)
		}
		c.Type = NoReservation
	}
}

// reserve is SPC-4 5.13.9.
func (c *change) reserve(cmd *Command) bool {
	switch {
	case cmd.Scope != 0 || !cmd.Type.Valid():
		c.Outcome = InvalidCDB
		return false
	case c.Type == NoReservation:
		c.hold(cmd.Nexus, cmd.Type)
		return true
	case !c.Holds(cmd.Nexus) || c.Type != cmd.Type:
		c.Outcome = Conflict
	}
	return false
}

// hold makes a registered nexus the holder.
func (c *change) hold(n NexusID, t Type) {
	c.Type = t
	for i := range c.Registrations {
		r := &c.Registrations[i]
		r.Holder = r.Nexus == n && !t.all()
	}
}

// release is SPC-4 5.13.11.2.2.
func (c *change) release(cmd *Command) bool {
	switch {
	case c.Type == NoReservation || !c.Holds(cmd.Nexus):
		return false
	case cmd.Scope != 0 || cmd.Type != c.Type:
		c.Outcome = InvalidRelease
		return false
	}
	if c.Type.registrants() {
		c.tellRegistered(ReservationsReleased, cmd.Nexus)
	}
	c.hold(NexusID{}, NoReservation)
	return true
}

// preempt is SPC-4 5.13.11.2.4 to .6.
func (c *change) preempt(cmd *Command) bool {
	holder := c.holder()
	takes := c.Type.all() && cmd.ServiceKey == 0 || holder != nil && holder.Key == cmd.ServiceKey && !c.Type.all()
	switch {
	case cmd.ServiceKey == 0 && !c.Type.all():
		c.Outcome = InvalidParameter
		return false
	case takes && (cmd.Scope != 0 || !cmd.Type.Valid()):
		c.Outcome = InvalidCDB
		return false
	}
	// Who goes: all but the sender where all registrants are preempted, else those with the key.
	goes := func(r Registration) bool {
		if cmd.ServiceKey == 0 {
			return r.Nexus != cmd.Nexus
		}
		return r.Key == cmd.ServiceKey && !(takes && r.Nexus == cmd.Nexus)
	}
	var gone []NexusID
	found := takes
	for _, r := range c.Registrations {
		if goes(r) {
			found = true
			gone = append(gone, r.Nexus)
		} else if cmd.ServiceKey != 0 && r.Key == cmd.ServiceKey {
			found = true
		}
	}
	if !found {
		c.Outcome = Conflict // SPC-4 5.13.11.2.5: no registration has that key
		return false
	}
	c.Registrations = slices.DeleteFunc(c.Registrations, goes)
	for _, n := range gone {
		if n != cmd.Nexus {
			c.tell(Event{What: RegistrationsPreempted, Scope: ToOne, Nexus: n, Abort: cmd.Action == PreemptAndAbort})
		}
	}
	if cmd.Action == PreemptAndAbort {
		for _, n := range gone {
			if n != cmd.Nexus {
				c.Aborts = append(c.Aborts, n)
			}
		}
	}
	switch {
	case takes:
		if c.Type != cmd.Type {
			c.tellRegistered(ReservationsReleased, cmd.Nexus)
		}
		c.hold(cmd.Nexus, cmd.Type)
	case c.Type.all() && len(c.Registrations) == 0:
		c.Type = NoReservation
	}
	return true
}

// evict does what SPC leaves to "means outside this standard": registrations and reservations of an initiator that will not come
// back end, or everybody's where none is named. Who is still there is told as by PREEMPT or by CLEAR of somebody else.
func (c *change) evict(cmd *Command) bool {
	goes := func(n NexusID) bool { return cmd.Nexus.Initiator == "" || n.Initiator == cmd.Nexus.Initiator }
	changed := c.Legacy != nil && goes(c.Legacy.Nexus)
	if changed {
		c.Legacy = nil
	}
	told := RegistrationsPreempted
	if cmd.Nexus.Initiator == "" {
		told = ReservationsPreempted
	}
	held := false
	var gone []NexusID
	for _, r := range c.Registrations {
		if goes(r.Nexus) {
			gone, held = append(gone, r.Nexus), held || r.Holder
		}
	}
	if len(gone) == 0 {
		return changed
	}
	c.Registrations = slices.DeleteFunc(c.Registrations, func(r Registration) bool { return goes(r.Nexus) })
	for _, n := range gone {
		c.tell(Event{What: told, Scope: ToOne, Nexus: n})
	}
	switch {
	case c.Type.all() && len(c.Registrations) == 0:
		c.Type = NoReservation
	case held:
		if c.Type.registrants() {
			c.tellRegistered(ReservationsReleased, NexusID{})
		}
		c.Type = NoReservation
	}
	c.Generation++
	return true
}

// move is REGISTER AND MOVE, SPC-4 5.13.8.
func (c *change) move(cmd *Command) bool {
	switch {
	case c.Type == NoReservation:
		c.Outcome = InvalidCDB
		return false
	case !c.Holds(cmd.Nexus) || c.Type.all():
		c.Outcome = Conflict
		return false
	case cmd.ServiceKey == 0 || len(cmd.Others) != 1 || cmd.Others[0].initiatorPort() == cmd.Nexus.initiatorPort():
		c.Outcome = InvalidParameter
		return false
	}
	to := cmd.Others[0]
	if !c.enter(to, cmd.ServiceKey) {
		return false
	}
	c.hold(to, c.Type)
	if cmd.Unregister {
		c.unregister(cmd.Nexus)
	}
	return true
}
