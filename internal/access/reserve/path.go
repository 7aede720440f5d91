package reserve

import "slices"

// AccessState is an asymmetric access state (SPC-4 table 307).
type AccessState uint8

// The states. A group of ours is active or, by the volume's policy, standby or unavailable; it is transitioning while
// the volume changes hands.
const (
	ActiveOptimized    AccessState = 0x0
	ActiveNonOptimized AccessState = 0x1
	Standby            AccessState = 0x2
	Unavailable        AccessState = 0x3
	LBADependent       AccessState = 0x4
	Offline            AccessState = 0xe
	Transitioning      AccessState = 0xf
)

// PortGroup is a target port group: the portals of one access server, which always share one state.
type PortGroup struct {
	ID        uint16 // = target portal group tag
	State     AccessState
	Preferred bool
	Ports     []uint16 // relative target port identifiers, ascending; never empty
	Place     uint16   // groups with one number are near each other: at one site
	// MayBe lists what the state can be beside active and transitioning, by the policy of the logical unit.
	MayBe []AccessState
}

// Supports reports that the state of the group can be s.
func (g *PortGroup) Supports(s AccessState) bool {
	return s == ActiveOptimized || s == ActiveNonOptimized || s == Transitioning || slices.Contains(g.MayBe, s)
}

// PathInfo says how the paths to a logical unit are. Generation changes whenever anything else in it does, so
// that a device server notices with one comparison.
type PathInfo struct {
	Generation uint64
	Groups     []PortGroup // ascending by ID; shared, never modified
	// Limited: some group is standby or unavailable, so the state of a command's own one has to be looked at.
	Limited bool
	// Remote is the state that a group has at another place than the one that is active/optimized.
	Remote AccessState
}

// After says in which state a group would be if another, or the same, were made active/optimized.
func (p PathInfo) After(optimized, group PortGroup) AccessState {
	switch {
	case group.ID == optimized.ID:
		return ActiveOptimized
	case group.Place == optimized.Place:
		return ActiveNonOptimized
	}
	return p.Remote
}

// Group finds a group by its number.
func (p PathInfo) Group(id uint16) (PortGroup, bool) {
	for _, g := range p.Groups {
		if g.ID == id {
			return g, true
		}
	}
	return PortGroup{}, false
}

// SinglePath is what a logical unit with one path reports: one group of one port, active/optimized.
func SinglePath(port uint16) PathInfo {
	return PathInfo{Groups: []PortGroup{{ID: port, State: ActiveOptimized, Ports: []uint16{port}}}, Remote: ActiveNonOptimized}
}

// GroupOf finds the group that a target port is in.
func (p PathInfo) GroupOf(port uint16) (PortGroup, bool) {
	for _, g := range p.Groups {
		if slices.Contains(g.Ports, port) {
			return g, true
		}
	}
	return PortGroup{}, false
}
