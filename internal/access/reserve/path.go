package reserve

import "slices"

// AccessState is an asymmetric access state (SPC-4 table 175).
type AccessState uint8

// The states.
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
}

// PathInfo says how the paths to a logical unit are. Generation changes whenever anything else in it does, so
// that a device server notices with one comparison.
type PathInfo struct {
	Generation uint64
	Groups     []PortGroup // ascending by ID; shared, never modified
}

// SinglePath is what a logical unit with one path reports: one group of one port, active/optimized.
func SinglePath(port uint16) PathInfo {
	return PathInfo{Groups: []PortGroup{{ID: port, State: ActiveOptimized, Ports: []uint16{port}}}}
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
