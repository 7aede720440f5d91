package control

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"dozo/internal/ident"
)

// clusterOf reads a cluster that is written as its nodes: name@site, name@site/host, name! for a voter, w@0 for a witness, - at
// the end for one that is leaving.
func clusterOf(t *testing.T, text string) (sites []Site, nodes []Node) {
	t.Helper()
	for _, f := range strings.Fields(text) {
		var n Node
		f, n.Leaving = strings.CutSuffix(f, "-")
		f, n.Voter = strings.CutSuffix(f, "!")
		f, host, _ := strings.Cut(f, "/")
		var name string
		if _, err := fmt.Sscanf(strings.Replace(f, "@", " ", 1), "%s %d", &name, &n.Site); err != nil {
			t.Fatal(err)
		}
		n.Name, n.HostID, n.Roles = ident.NodeName(name), host, []Role{RoleCore}
		if host == "" {
			n.HostID = name
		}
		if n.Site == 0 {
			n.Roles = []Role{RoleWitness}
		}
		nodes = append(nodes, n)
		if n.Site != 0 && !slices.ContainsFunc(sites, func(s Site) bool { return s.ID == n.Site }) {
			sites = append(sites, Site{ID: n.Site})
		}
	}
	return sites, nodes
}

func TestReplaceVoter(t *testing.T) {
	for _, c := range []struct{ nodes, goes, want string }{
		{"a@1! b@1 c@2! d@2 w@0!", "a", "b"},
		{"a@1! b@1 c@2! d@2 w@0!", "c", "d"},
		{"a@1! b@1 c@2! d@2 w@0!", "b", ""}, // has no vote
		{"a@1! b@1 c@2! d@2 w@0!", "w", "b"},
		{"a@1! b@1 c@2! d@2 w@0! x@0", "w", "x"},
		{"a@1! b@1! c@1! d@1", "b", "d"},
		{"a@1/x! b@1! c@1! d@1/x e@1", "b", "e"}, // another host
		{"a@1! b@1! c@1!", "b", ""},              // nobody left
		{"a@1! b@1 c@2! d@3! e@3", "d", "e"},
		{"a@1! b@2! c@2 d@3!", "d", "c"}, // the site is gone, and two sites are left
		{"a@1! b@1 c@1- d@1!", "d", "b"}, // one that is leaving gets none
		{"a@1!- b@1 c@2! w@0!", "a", "b"},
		{"a@1! b@1", "a", "b"},                   // the only voter
		{"a@1! b@1 c@2! d@2 e@2! w@0!", "e", ""}, // there are voters enough
		{"a@1! b@1", "nobody", ""},
	} {
		sites, nodes := clusterOf(t, c.nodes)
		if n, ok := ReplaceVoter(sites, nodes, ident.NodeName(c.goes)); ok != (c.want != "") || ok && string(n.Name) != c.want {
			t.Errorf("%s without %s: %s, %v; want %q", c.nodes, c.goes, n.Name, ok, c.want)
		}
	}
}

func TestChooseVoters(t *testing.T) {
	for _, c := range []struct{ nodes, want string }{
		{"", ""},
		{"a@1", "a"},
		{"a@1 w@0", "a"},
		{"a@1 b@1", "a b"},
		{"a@1 b@1 w@0", "a b w"},
		{"a@1 b@1 c@1", "a b c"},
		{"a@1 b@1 c@1 w@0", "a b c"},
		{"a@1 b@1 c@1 d@1", "a b c"},
		{"a@1/x b@1/x c@1/y d@1/z", "a c d"},
		{"a@1/x b@1/x c@1/x", "a b c"},
		{"a@1 b@1 c@1 d@1! e@1!", "a d e"},
		{"a@1 b@2 w@0", "a b w"},
		{"a@1 b@1 c@2 d@2 w2@0 w1@0", "a c w1"},
		{"a@1 b@1 c@2 d@2 w1@0 w2@0!", "a c w2"},
		{"a@1 b@2", "a b"},
		{"a@1 b@1 c@2 d@2", "a b c"},
		{"a@1 b@2 c@2", "a b c"},
		{"a@1 b@1 c@2 d@2 e@3 f@3", "a c e"},
		{"a@1 b@1! c@2 d@2 e@3 f@3 w@0", "b c e"},
		{"a@1 b@2 c@3 d@4", "a b c d"},
		{"a@1 b@2 c@3 d@4 e@5 f@6 g@7 h@8 i@9", "a b c d e f g"},
	} {
		sites, nodes := clusterOf(t, c.nodes)
		for range 3 { // the order of what is given does not matter
			if got := strings.Trim(fmt.Sprint(ChooseVoters(sites, nodes)), "[]"); got != c.want {
				t.Errorf("%s: chose %s, want %s", c.nodes, got, c.want)
			}
			rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
			rand.Shuffle(len(sites), func(i, j int) { sites[i], sites[j] = sites[j], sites[i] })
		}
	}
	for _, c := range []struct {
		sites []int
		want  bool
	}{{[]int{1}, false}, {[]int{2}, true}, {[]int{3}, false}, {[]int{1, 1}, true}, {[]int{3, 2}, true}, {[]int{2, 0}, true}, {[]int{2, 2, 2}, false}} {
		if got := NeedsWitness(c.sites...); got != c.want {
			t.Errorf("NeedsWitness(%v) = %v", c.sites, got)
		}
	}
}
