package lab

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dozo/internal/config"
)

func TestNodesOfALab(t *testing.T) {
	for _, c := range []struct {
		sites, want string
		nodes       int
	}{
		{"east,west,north", "east-1* east-2 west-1* west-2 north-1* north-2", 2},
		{"east,west", "east-1* west-1* witness*", 1},
		{"east", "east-1* east-2* witness*", 2},
		{"east", "east-1* east-2* east-3*", 3},
	} {
		spec, err := NewSpec("lab", NodeSites(strings.Split(c.sites, ","), c.nodes), 4)
		if err != nil {
			t.Fatal(err)
		}
		spec.Nodes, spec.Dir = c.nodes, t.TempDir()
		plan, err := nodePlan(spec)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, n := range plan {
			name := string(n.Name)
			if n.Voter {
				name += "*"
			}
			got = append(got, name)
			if n.Addr.As4()[2] != byte(n.site+1) {
				t.Errorf("%s at %s", n.Name, n.Addr)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, want %s", c.sites, s, c.want)
		}
		if err := prepareNodes(spec, plan, time.Now()); err != nil {
			t.Fatal(err)
		}
		for _, n := range plan {
			conf, err := config.Load(filepath.Join(n.dir(spec), nodeConfig))
			if err != nil {
				t.Fatal(err)
			}
			if conf.Node != n.Name || conf.Control.Embedded != n.Voter || n.Voter != (len(conf.Control.InitialCluster) > 0) {
				t.Errorf("%+v", conf)
			}
		}
		// A second time nothing changes; another shape is refused.
		if err := prepareNodes(spec, plan, time.Now()); err != nil {
			t.Error(err)
		}
		spec.Nodes++
		if err := prepareNodes(spec, plan, time.Now()); err == nil {
			t.Error("another shape")
		}
	}
	if _, err := nodePlan(&Spec{Sites: make([]SiteSpec, 1), Nodes: 1}); err == nil {
		t.Error("one node")
	}
}
