package control

import (
	"cmp"
	"slices"

	"dozo/internal/ident"
)

// votersMax bounds the voters of a cluster of many sites: etcd's own advice, since every change waits for more
// than half of them.
const votersMax = 7

// ChooseVoters says which nodes should be voters of the embedded control store, by name:
//
//   - three or more sites: one node a site (the first votersMax sites);
//   - two sites: a node of each, and a witness; without a witness, two nodes of the first site that has two,
//     so that the loss of the other leaves a majority;
//   - one site: three nodes, or two and a witness, or as many as there are.
//
// Within a site it prefers nodes that are voters already (moving one costs a change of membership), then
// nodes on hosts of which none was chosen, then the first by name. It is a pure function: every node comes to
// the same answer from the same specification.
func ChooseVoters(sites []Site, nodes []Node) []ident.NodeName {
	bySite, witnesses := candidates(sites, nodes)
	var chosen []Node
	switch n := len(bySite); {
	case n >= 3:
		for _, site := range bySite[:min(n, votersMax)] {
			chosen = pick(chosen, site, 1)
		}
	case n == 2 && len(witnesses) > 0:
		chosen = pick(pick(pick(nil, bySite[0], 1), bySite[1], 1), witnesses, 1)
	case n == 2:
		two, one := bySite[0], bySite[1]
		if len(two) < 2 && len(one) >= 2 {
			two, one = one, two
		}
		chosen = pick(pick(nil, two, 2), one, 1)
	case n == 1 && len(bySite[0]) == 2:
		chosen = pick(pick(nil, bySite[0], 2), witnesses, 1)
	case n == 1:
		// One node alone gets no witness: two voters of which both are needed are worse than one.
		chosen = pick(nil, bySite[0], 3)
	}
	out := make([]ident.NodeName, len(chosen))
	for i, c := range chosen {
		out[i] = c.Name
	}
	slices.Sort(out)
	return out
}

// ReplaceVoter names the node that should become a voter when a node with a voter goes: one that ChooseVoters takes without
// it and that has none, at the site of the one that goes if there is such a one. False if there is nobody, or if there are
// voters enough.
func ReplaceVoter(sites []Site, nodes []Node, goes ident.NodeName) (Node, bool) {
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == goes })
	if i < 0 || !nodes[i].Voter {
		return Node{}, false
	}
	site := nodes[i].Site
	var stay []Node
	voters := 0
	for _, n := range nodes {
		if n.Name == goes || n.Leaving && !n.Voter {
			continue
		}
		stay = append(stay, n)
		if n.Voter {
			voters++
		}
	}
	names := ChooseVoters(sites, stay)
	var best Node
	for _, n := range stay {
		if !n.Voter && slices.Contains(names, n.Name) && (best.Name == "" || n.Site == site && best.Site != site) {
			best = n
		}
	}
	return best, best.Name != "" && voters < len(names)
}

// NeedsWitness reports whether a cluster of that many nodes at each of its sites should have a witness.
func NeedsWitness(nodesAtSite ...int) bool {
	nodesAtSite = slices.DeleteFunc(slices.Clone(nodesAtSite), func(n int) bool { return n == 0 })
	return len(nodesAtSite) == 2 || len(nodesAtSite) == 1 && nodesAtSite[0] == 2
}

// candidates groups the nodes by site, in order of site ID, each group by preference.
func candidates(sites []Site, nodes []Node) (bySite [][]Node, witnesses []Node) {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b Node) int {
		return cmp.Or(-compareBool(a.Voter, b.Voter), cmp.Compare(a.Name, b.Name))
	})
	sites = slices.Clone(sites)
	slices.SortFunc(sites, func(a, b Site) int { return cmp.Compare(a.ID, b.ID) })
	for _, s := range sites {
		var group []Node
		for _, n := range nodes {
			if n.Site == s.ID && !n.Has(RoleWitness) {
				group = append(group, n)
			}
		}
		if len(group) > 0 {
			bySite = append(bySite, group)
		}
	}
	for _, n := range nodes {
		if n.Has(RoleWitness) {
			witnesses = append(witnesses, n)
		}
	}
	return bySite, witnesses
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// pick adds up to n of from to chosen, first those on hosts that have none yet.
func pick(chosen, from []Node, n int) []Node {
	for _, sameHost := range []bool{false, true} {
		for _, c := range from {
			taken := slices.ContainsFunc(chosen, func(x Node) bool { return x.Name == c.Name })
			shares := slices.ContainsFunc(chosen, func(x Node) bool { return x.HostID == c.HostID })
			if n > 0 && !taken && shares == sameHost {
				chosen = append(chosen, c)
				n--
			}
		}
	}
	return chosen
}
