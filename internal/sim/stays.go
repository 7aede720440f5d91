package sim

// Most of what is missing when a rule is broken comes back when its node does, before anybody has looked for it: somebody waits
// until then, and nothing is wrong. So some faults stay until the clients are done.

// stays are the faults that stay. It is the driver's.
type stays struct {
	nodes map[*Node]bool    // that do not run
	ways  map[[2]*Node]bool // that are blocked
	ends  []func()
}

// until has g called when the clients are done.
func (s *stays) until(g func()) { s.ends = append(s.ends, g) }

// keep has a node stay away, if the fault says so.
func (s *stays) keep(f *Fault, n *Node) {
	if !f.Stays {
		return
	}
	if s.nodes == nil {
		s.nodes = map[*Node]bool{}
	}
	s.nodes[n] = true
}

// keepCut has ways stay blocked, if the fault says so.
func (s *stays) keepCut(f *Fault, cut [][2]*Node) {
	if !f.Stays {
		return
	}
	if s.ways == nil {
		s.ways = map[[2]*Node]bool{}
	}
	for _, x := range cut {
		s.ways[x] = true
	}
}

// end ends them all.
func (s *stays) end() {
	clear(s.nodes)
	clear(s.ways)
	for _, g := range s.ends {
		g()
	}
	s.ends = nil
}
