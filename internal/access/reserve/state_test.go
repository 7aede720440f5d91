package reserve

import (
	"fmt"
	"strings"
	"testing"
)

// Nexuses of the tests: three initiators at port 1, and the first at port 2 as well.
var nexuses = map[string]NexusID{
	"a": {Initiator: "iqn.a", ISID: [6]byte{1}, Port: 1}, "b": {Initiator: "iqn.b", ISID: [6]byte{1}, Port: 1},
	"c": {Initiator: "iqn.c", ISID: [6]byte{1}, Port: 1}, "a2": {Initiator: "iqn.a", ISID: [6]byte{1}, Port: 2},
}

func nameOf(n NexusID) string {
	for k, v := range nexuses {
		if v == n {
			return k
		}
	}
	return n.String()
}

// describe writes a state in a line: who is registered with which key (holder in brackets), the type, RESERVE.
func describe(s *State) string {
	var parts []string
	for _, r := range s.Registrations {
		x := fmt.Sprintf("%s:%d", nameOf(r.Nexus), r.Key)
		if r.Holder {
			x = "[" + x + "]"
		}
		parts = append(parts, x)
	}
	if s.Type != NoReservation {
		parts = append(parts, fmt.Sprintf("type%d", s.Type))
	}
	if s.Legacy != nil {
		parts = append(parts, "reserved-by-"+nameOf(s.Legacy.Nexus))
	}
	return strings.Join(parts, " ")
}

func describeEvents(events []Event) string {
	var parts []string
	for _, e := range events {
		x := fmt.Sprintf("%02x%02x>", e.What.ASC, e.What.ASCQ)
		switch e.Scope {
		case ToAll:
			x += "all"
		case ToOthers:
			x += "others"
		default:
			x += nameOf(e.Nexus)
		}
		if e.Abort {
			x += "!"
		}
		parts = append(parts, x)
	}
	return strings.Join(parts, " ")
}

// step is a command and what must come of it.
type step struct {
	who     string
	cmd     Command
	outcome Outcome
	state   string // "=": as before
	events  string
}

func register(key, service uint64) Command {
	return Command{Action: Register, Key: key, ServiceKey: service}
}

func reserveAs(key uint64, t Type) Command { return Command{Action: Reserve, Key: key, Type: t} }

// TestPersistentReserveOut follows SPC-4 5.13.7 to 5.13.11; each case begins with a new unit.
func TestPersistentReserveOut(t *testing.T) {
	// registered brings a, b and c to keys 1, 2 and 3.
	registered := []step{{"a", register(0, 1), Good, "a:1", ""}, {"b", register(0, 2), Good, "a:1 b:2", ""},
		{"c", register(0, 3), Good, "a:1 b:2 c:3", ""}}
	for _, x := range []struct {
		section string
		steps   []step
	}{
		{"5.13.7 registering", []step{
			{"a", register(7, 1), Conflict, "=", ""}, // not registered: RESERVATION KEY has to be 0
			{"a", register(0, 0), Good, "=", ""},
			{"a", register(0, 1), Good, "a:1", ""},
			{"a", register(2, 5), Conflict, "=", ""},
			{"a", register(1, 5), Good, "a:5", ""},
			{"a", Command{Action: RegisterAndIgnore, Key: 99, ServiceKey: 6}, Good, "a:6", ""},
			{"b", Command{Action: RegisterAndIgnore, ServiceKey: 6}, Good, "a:6 b:6", ""}, // keys need not differ
			{"a", register(6, 0), Good, "b:6", ""},
			{"b", Command{Action: RegisterAndIgnore}, Good, "", ""},
		}},
		{"5.13.7 SPEC_I_PT and ALL_TG_PT", []step{
			{"a", Command{Action: Register, ServiceKey: 1, Others: []NexusID{nexuses["b"], nexuses["a2"]}}, Good, "a:1 a2:1 b:1", ""},
			{"a", Command{Action: Register, Key: 1, ServiceKey: 2, Others: []NexusID{nexuses["b"]}}, InvalidParameter, "=", ""},
			{"a", Command{Action: Register, Key: 1, Others: []NexusID{nexuses["a2"]}}, Good, "b:1", ""},
			// Table 67, note b: one of the list is registered already. Nothing is done, for the others neither.
			{"a", Command{Action: Register, ServiceKey: 9, Others: []NexusID{nexuses["b"], nexuses["c"]}}, InvalidParameter, "=", ""},
		}},
		{"5.13.9 reserving", append(registered[:2:2],
			step{"c", reserveAs(0, WriteExclusive), Conflict, "=", ""},
			step{"a", reserveAs(2, WriteExclusive), Conflict, "=", ""},
			step{"a", reserveAs(1, 2), InvalidCDB, "=", ""},
			step{"a", Command{Action: Reserve, Key: 1, Type: WriteExclusive, Scope: 1}, InvalidCDB, "=", ""},
			step{"a", reserveAs(1, WriteExclusive), Good, "[a:1] b:2 type1", ""},
			step{"a", reserveAs(1, WriteExclusive), Good, "=", ""},
			step{"a", reserveAs(1, ExclusiveAccess), Conflict, "=", ""},
			step{"b", reserveAs(2, WriteExclusive), Conflict, "=", ""})},
		{"5.13.9 all registrants", append(registered[:2:2],
			step{"a", reserveAs(1, ExclusiveAccessAll), Good, "a:1 b:2 type8", ""},
			step{"b", reserveAs(2, ExclusiveAccessAll), Good, "=", ""}, // everybody holds it
			step{"b", reserveAs(2, WriteExclusiveAll), Conflict, "=", ""},
			step{"a", register(1, 0), Good, "b:2 type8", ""}, // 5.13.11.2.3: not released while somebody is left
			step{"b", register(2, 0), Good, "", ""})},
		{"5.13.11.2.2 releasing", append(registered[:2:2],
			step{"a", Command{Action: Release, Key: 1, Type: WriteExclusive}, Good, "=", ""},
			step{"a", reserveAs(1, WriteExclusive), Good, "[a:1] b:2 type1", ""},
			step{"b", Command{Action: Release, Key: 2, Type: WriteExclusive}, Good, "=", ""},
			step{"a", Command{Action: Release, Key: 1, Type: ExclusiveAccess}, InvalidRelease, "=", ""},
			step{"c", Command{Action: Release, Type: WriteExclusive}, Conflict, "=", ""},
			step{"a", Command{Action: Release, Key: 1, Type: WriteExclusive}, Good, "a:1 b:2", ""},
			step{"a", reserveAs(1, WriteExclusiveRegistrants), Good, "[a:1] b:2 type5", ""},
			step{"a", Command{Action: Release, Key: 1, Type: WriteExclusiveRegistrants}, Good, "a:1 b:2", "2a04>b"})},
		{"5.13.11.2.3 unregistering the holder", append(registered[:3:3],
			step{"a", reserveAs(1, ExclusiveAccessRegistrants), Good, "[a:1] b:2 c:3 type6", ""},
			step{"b", register(2, 0), Good, "[a:1] c:3 type6", ""},
			step{"a", register(1, 0), Good, "c:3", "2a04>c"},
			step{"c", reserveAs(3, ExclusiveAccess), Good, "[c:3] type3", ""},
			step{"c", register(3, 0), Good, "", ""})},
		{"5.13.11.2.7 clearing", append(registered[:3:3],
			step{"a", reserveAs(1, ExclusiveAccess), Good, "[a:1] b:2 c:3 type3", ""},
			step{"b", Command{Action: Clear, Key: 1}, Conflict, "=", ""},
			step{"b", Command{Action: Clear, Key: 2}, Good, "", "2a03>a 2a03>c"})},
		{"5.13.11.2.5 removing registrations", append(registered[:3:3],
			step{"a", Command{Action: Preempt, Key: 1, ServiceKey: 9}, Conflict, "=", ""},
			step{"a", Command{Action: Preempt, Key: 1}, InvalidParameter, "=", ""},
			step{"a", Command{Action: Preempt, Key: 1, ServiceKey: 2}, Good, "a:1 c:3", "2a05>b"},
			step{"c", reserveAs(3, WriteExclusive), Good, "a:1 [c:3] type1", ""},
			step{"c", Command{Action: PreemptAndAbort, Key: 3, ServiceKey: 1}, Good, "[c:3] type1", "2a05>a!"})},
		{"5.13.11.2.4.3 preempting the holder", append(registered[:3:3],
			step{"a", reserveAs(1, WriteExclusiveRegistrants), Good, "[a:1] b:2 c:3 type5", ""},
			step{"b", Command{Action: Preempt, Key: 2, ServiceKey: 1, Type: 2}, InvalidCDB, "=", ""},
			step{"b", Command{Action: Preempt, Key: 2, ServiceKey: 1, Type: WriteExclusiveRegistrants}, Good, "[b:2] c:3 type5", "2a05>a"},
			step{"c", Command{Action: PreemptAndAbort, Key: 3, ServiceKey: 2, Type: ExclusiveAccess}, Good, "[c:3] type3", "2a05>b!"})},
		{"5.13.11.2.4.3 another type is news to those who stay", append(registered[:3:3],
			step{"a", reserveAs(1, WriteExclusiveRegistrants), Good, "[a:1] b:2 c:3 type5", ""},
			step{"b", Command{Action: Preempt, Key: 2, ServiceKey: 1, Type: ExclusiveAccess}, Good, "[b:2] c:3 type3", "2a05>a 2a04>c"})},
		{"5.13.11.2.4.3, 5.13.11.2.6 preempting all registrants", append(registered[:3:3],
			step{"a", reserveAs(1, WriteExclusiveAll), Good, "a:1 b:2 c:3 type7", ""},
			step{"b", Command{Action: Preempt, Key: 2, ServiceKey: 1, Type: WriteExclusive}, Good, "b:2 c:3 type7", "2a05>a"},
			step{"b", Command{Action: PreemptAndAbort, Key: 2, Type: WriteExclusive}, Good, "[b:2] type1", "2a05>c!"})},
		{"5.13.11.2.4.3 preempting oneself changes the type", append(registered[:2:2],
			step{"a", reserveAs(1, WriteExclusive), Good, "[a:1] b:2 type1", ""},
			step{"a", Command{Action: Preempt, Key: 1, ServiceKey: 1, Type: ExclusiveAccess}, Good, "[a:1] b:2 type3", "2a04>b"})},
		{"5.13.8 moving", append(registered[:2:2],
			step{"a", Command{Action: RegisterAndMove, Key: 1, ServiceKey: 5, Others: []NexusID{nexuses["c"]}}, InvalidCDB, "=", ""},
			step{"a", reserveAs(1, WriteExclusive), Good, "[a:1] b:2 type1", ""},
			step{"b", Command{Action: RegisterAndMove, Key: 2, ServiceKey: 5, Others: []NexusID{nexuses["c"]}}, Conflict, "=", ""},
			step{"a", Command{Action: RegisterAndMove, Key: 1, ServiceKey: 5, Others: []NexusID{nexuses["a"]}}, InvalidParameter, "=", ""},
			step{"a", Command{Action: RegisterAndMove, Key: 1, ServiceKey: 5, Others: []NexusID{nexuses["a2"]}}, InvalidParameter, "=", ""}, // the same initiator port
			step{"a", Command{Action: RegisterAndMove, Key: 1, Others: []NexusID{nexuses["c"]}}, InvalidParameter, "=", ""},
			step{"a", Command{Action: RegisterAndMove, Key: 1, ServiceKey: 5, Others: []NexusID{nexuses["c"]}}, Good, "a:1 b:2 [c:5] type1", ""},
			step{"c", Command{Action: RegisterAndMove, Key: 5, ServiceKey: 6, Unregister: true, Others: []NexusID{nexuses["b"]}}, Good, "a:1 [b:6] type1", ""})},
		{"5.13.3 RESERVE and registrations (CRH)", append(registered[:2:2],
			step{"a", Command{Action: LegacyReserve}, Conflict, "=", ""},
			step{"c", Command{Action: LegacyReserve}, Conflict, "=", ""},
			step{"a", reserveAs(1, WriteExclusiveRegistrants), Good, "[a:1] b:2 type5", ""},
			step{"a", Command{Action: LegacyReserve}, Good, "=", ""},
			step{"b", Command{Action: LegacyReserve}, Good, "=", ""},
			step{"b", Command{Action: LegacyRelease}, Good, "=", ""},
			step{"c", Command{Action: LegacyReserve}, Conflict, "=", ""},
			step{"c", Command{Action: LegacyRelease}, Conflict, "=", ""})},
		{"SPC-2 5.5.1 RESERVE", []step{
			{"a", Command{Action: LegacyReserve, Session: 7}, Good, "reserved-by-a", ""},
			{"a", Command{Action: LegacyReserve, Session: 7}, Good, "=", ""},
			{"b", Command{Action: LegacyReserve}, Conflict, "=", ""},
			{"b", Command{Action: LegacyRelease}, Good, "=", ""},
			{"a", register(0, 1), Conflict, "=", ""},
			{"a", Command{Action: NexusLost, Session: 6}, Good, "=", ""}, // an older session's end
			{"a", Command{Action: NexusLost, Session: 7}, Good, "", ""},
			{"b", Command{Action: LegacyReserve}, Good, "reserved-by-b", ""},
			{"a", Command{Action: Reset}, Good, "", "2903>all!"},
		}},
		{"5.13.1 a reset leaves persistent reservations", append(registered[:1:1],
			step{"a", reserveAs(1, ExclusiveAccess), Good, "[a:1] type3", ""},
			step{"b", Command{Action: Reset}, Good, "[a:1] type3", "2903>all!"},
			step{"b", Command{Action: ClearTasks}, Good, "[a:1] type3", "2f00>others!"})},
		{"(an operator's eviction of one)", append(registered[:3:3],
			step{"a2", Command{Action: RegisterAndIgnore, ServiceKey: 4}, Good, "a:1 a2:4 b:2 c:3", ""},
			step{"a", reserveAs(1, WriteExclusiveRegistrants), Good, "[a:1] a2:4 b:2 c:3 type5", ""},
			step{"b", Command{Action: Evict}, Good, "[a:1] a2:4 c:3 type5", "2a05>b"},
			step{"b", Command{Action: Evict}, Good, "=", ""}, // nothing of it is there
			step{"a", Command{Action: Evict}, Good, "c:3", "2a05>a 2a05>a2 2a04>c"},
			step{"c", reserveAs(3, ExclusiveAccess), Good, "[c:3] type3", ""},
			step{"c", Command{Action: Evict}, Good, "", "2a05>c"})},
		{"(an operator's eviction, all registrants)", append(registered[:2:2],
			step{"a", reserveAs(1, WriteExclusiveAll), Good, "a:1 b:2 type7", ""},
			step{"a", Command{Action: Evict}, Good, "b:2 type7", "2a05>a"},
			step{"b", Command{Action: Evict}, Good, "", "2a05>b"})},
		{"(an operator's eviction of everybody)", append(registered[:3:3],
			step{"b", reserveAs(2, ExclusiveAccessRegistrants), Good, "a:1 [b:2] c:3 type6", ""},
			step{"", Command{Action: Evict}, Good, "", "2a03>a 2a03>b 2a03>c"},
			step{"", Command{Action: Evict}, Good, "=", ""})},
		{"(an operator's eviction, SPC-2)", []step{
			{"a", Command{Action: LegacyReserve}, Good, "reserved-by-a", ""},
			{"b", Command{Action: Evict}, Good, "=", ""},
			{"a2", Command{Action: Evict}, Good, "", ""},
			{"a", Command{Action: LegacyReserve}, Good, "reserved-by-a", ""},
			{"", Command{Action: Evict}, Good, "", ""}}},
	} {
		s := new(State)
		for i, st := range x.steps {
			before := describe(s)
			want := st.state
			if want == "=" {
				want = before
			}
			cmd := st.cmd
			cmd.Nexus = nexuses[st.who]
			next, r := s.Apply(&cmd)
			if next != nil {
				s = next
			}
			if r.Outcome != st.outcome || describe(s) != want || describeEvents(r.Events) != st.events {
				t.Errorf("SPC-4 %s, step %d (%s %+v):\n outcome %d, want %d\n state %q, want %q\n events %q, want %q",
					x.section, i, st.who, st.cmd, r.Outcome, st.outcome, describe(s), want, describeEvents(r.Events), st.events)
			}
			if back, err := DecodeState(s.Append(nil)); err != nil || describe(back) != describe(s) || back.Version != s.Version {
				t.Errorf("SPC-4 %s, step %d: %v", x.section, i, err)
			}
		}
	}
}

// TestGeneration is SPC-4 6.16.2: which service actions count.
func TestGeneration(t *testing.T) {
	s := new(State)
	do := func(who string, c Command) uint32 {
		c.Nexus = nexuses[who]
		if next, _ := s.Apply(&c); next != nil {
			s = next
		}
		return s.Generation
	}
	for i, x := range []struct {
		who  string
		cmd  Command
		want uint32
	}{
		{"a", register(0, 1), 1}, {"b", register(0, 2), 2}, {"b", register(9, 2), 2}, {"a", reserveAs(1, WriteExclusive), 2},
		{"a", Command{Action: Release, Key: 1, Type: WriteExclusive}, 2}, {"a", Command{Action: Preempt, Key: 1, ServiceKey: 2}, 3},
		{"a", Command{Action: Clear, Key: 1}, 4},
	} {
		if got := do(x.who, x.cmd); got != x.want {
			t.Errorf("step %d: PRGENERATION %d, want %d", i, got, x.want)
		}
	}
}

// TestAllows is SPC-4 table 65 and SBC-3 table 13, a row for each class, a column for each type.
func TestAllows(t *testing.T) {
	for _, x := range []struct {
		t                            Type
		class                        Access
		holder, registrant, stranger bool
	}{
		{WriteExclusive, AccessWrite, true, false, false}, {WriteExclusive, AccessRead, true, true, true},
		{WriteExclusive, AccessStatus, true, true, true},
		{ExclusiveAccess, AccessWrite, true, false, false}, {ExclusiveAccess, AccessRead, true, false, false},
		{ExclusiveAccess, AccessStatus, true, true, true}, {ExclusiveAccess, AccessAlways, true, true, true},
		{WriteExclusiveRegistrants, AccessWrite, true, true, false}, {WriteExclusiveRegistrants, AccessRead, true, true, true},
		{ExclusiveAccessRegistrants, AccessWrite, true, true, false}, {ExclusiveAccessRegistrants, AccessRead, true, true, false},
		{WriteExclusiveAll, AccessWrite, true, true, false}, {WriteExclusiveAll, AccessRead, true, true, true},
		{ExclusiveAccessAll, AccessWrite, true, true, false}, {ExclusiveAccessAll, AccessRead, true, true, false},
		{NoReservation, AccessWrite, true, true, true},
	} {
		s := &State{Type: x.t, Registrations: []Registration{{Nexus: nexuses["a"], Key: 1, Holder: x.t != NoReservation && !x.t.all()}, {Nexus: nexuses["b"], Key: 2}}}
		got := [3]bool{s.Allows(nexuses["a"], x.class), s.Allows(nexuses["b"], x.class), s.Allows(nexuses["c"], x.class)}
		if want := [3]bool{x.holder, x.registrant, x.stranger}; got != want {
			t.Errorf("type %d, class %d: %v, want %v", x.t, x.class, got, want)
		}
	}
	// SPC-2 table 9.
	s := &State{Legacy: &Legacy{Nexus: nexuses["a"]}}
	for class, want := range map[Access]bool{AccessAlways: true, AccessStatus: false, AccessRead: false, AccessWrite: false} {
		if s.Allows(nexuses["b"], class) != want || !s.Allows(nexuses["a"], class) {
			t.Errorf("RESERVE, class %d", class)
		}
	}
}

func TestModes(t *testing.T) {
	s := new(State)
	change := Command{Action: SetModes, Nexus: nexuses["a"], Modes: Modes{CacheOff: true, WriteProtect: true}}
	s, r := s.Apply(&change)
	if describeEvents(r.Events) != "2a01>others" || !s.Current.CacheOff || s.Saved.CacheOff {
		t.Errorf("%+v %s", s, describeEvents(r.Events))
	}
	if next, r := s.Apply(&change); next != nil || len(r.Events) != 0 {
		t.Error("the same parameters are no change")
	}
	change.Save = true
	s, r = s.Apply(&change)
	if !s.Saved.CacheOff || len(r.Events) != 0 {
		t.Errorf("saved: %+v %s", s.Saved, describeEvents(r.Events))
	}
	s, _ = s.Apply(&Command{Action: SetModes, Nexus: nexuses["b"]})
	s, _ = s.Apply(&Command{Action: Reset, Nexus: nexuses["b"]}) // SPC-4 5.9: back to the saved values
	if s.Current != change.Modes {
		t.Errorf("after a reset: %+v", s.Current)
	}
}

func TestSanitizeStates(t *testing.T) {
	s := new(State)
	begin := &Command{Action: SanitizeBegin, Nexus: nexuses["a"], Sanitize: Sanitize{Kind: SanitizeOverwrite, Passes: 2, Pattern: []byte{1}}}
	s, _ = s.Apply(begin)
	if next, r := s.Apply(begin); next != nil || r.Outcome != Sanitizing {
		t.Error("a second one while the first is under way")
	}
	s, _ = s.Apply(&Command{Action: SanitizeEnd, Failed: true})
	if _, r := s.Apply(&Command{Action: SanitizeExit, Nexus: nexuses["a"]}); s.Sanitize.Kind != SanitizeFailed || r.Outcome != InvalidCDB {
		t.Errorf("failed without AUSE: %+v, exit %d", s.Sanitize, r.Outcome)
	}
	begin.Sanitize.AUSE = true
	if next, r := s.Apply(begin); next != nil || r.Outcome != InvalidCDB {
		t.Errorf("failed without AUSE, and then one with it: %v, %d", next, r.Outcome)
	}
	begin.Sanitize.AUSE = false
	s, _ = s.Apply(begin)
	s, _ = s.Apply(&Command{Action: SanitizeEnd})
	begin.Sanitize.AUSE = true
	s, _ = s.Apply(begin)
	s, _ = s.Apply(&Command{Action: SanitizeEnd, Failed: true})
	if s, _ = s.Apply(&Command{Action: SanitizeExit, Nexus: nexuses["a"]}); s.Sanitize.Kind != SanitizeNone {
		t.Errorf("after EXIT FAILURE MODE: %+v", s.Sanitize)
	}
}

func TestMissed(t *testing.T) {
	s := &Snapshot{State: &State{Events: 9}, Events: []Event{{Number: 7}, {Number: 8}, {Number: 9}}}
	for seen, want := range map[uint64]string{9: "0 true", 7: "2 true", 6: "3 true", 5: "3 false", 12: "0 true"} {
		events, all := s.Missed(seen)
		if got := fmt.Sprint(len(events), all); got != want {
			t.Errorf("seen %d: %s, want %s", seen, got, want)
		}
	}
}

// TestModesThatAreMeant: rule R7. What a MODE SELECT names is set; the rest is as it is, not as its sender had heard. An access server
// of before names nothing and means all.
func TestModesThatAreMeant(t *testing.T) {
	was := Modes{DescriptorSense: true, WriteProtect: true, CacheOff: true, ReportThresholds: true, ThresholdAvailable: 3, ThresholdUsed: 4}
	for _, x := range []struct {
		set  ModeSet
		want Modes
	}{
		{0, Modes{}},
		{ModesNamed, was},
		{ModesNamed | ModeDescriptorSense, Modes{false, true, true, true, 3, 4}},
		{ModesNamed | ModeWriteProtect, Modes{true, false, true, true, 3, 4}},
		{ModesNamed | ModeCacheOff, Modes{true, true, false, true, 3, 4}},
		{ModesNamed | ModeReportThresholds, Modes{true, true, true, false, 3, 4}},
		{ModesNamed | ModeThresholds, Modes{true, true, true, true, 0, 0}},
	} {
		s := &State{Current: was}
		cmd, err := DecodeCommand((&Command{Action: SetModes, Key: uint64(x.set), Save: true}).Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		next, _ := s.Apply(cmd)
		if next == nil || next.Current != x.want || next.Saved != x.want {
			t.Errorf("set %x: %+v, want %+v", uint64(x.set), next, x.want)
		}
	}
}
