package up

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"dozo/internal/config"
)

func TestPlanVotersSurviveOneLoss(t *testing.T) {
	for _, c := range []struct {
		sites, nodes int
		voters       string
	}{
		{1, 2, "s1n1 s1n2 witness"},
		{1, 3, "s1n1 s1n2 s1n3"},
		{1, 5, "s1n1 s1n2 s1n3"},
		{2, 1, "s1n1 s2n1 witness"},
		{2, 3, "s1n1 s2n1 witness"},
		{3, 2, "s1n1 s2n1 s3n1"},
		{4, 1, "s1n1 s2n1 s3n1 s4n1"},
	} {
		plan, err := Plan(Shape{Sites: c.sites, Nodes: c.nodes})
		if err != nil {
			t.Fatal(err)
		}
		var voters []string
		for _, p := range plan {
			if p.Voter {
				voters = append(voters, string(p.Name))
			}
		}
		if got := strings.Join(voters, " "); got != c.voters {
			t.Errorf("%d sites of %d: voters %s; want %s", c.sites, c.nodes, got, c.voters)
		}
	}
}

func TestPlanAddresses(t *testing.T) {
	plan, err := Plan(Shape{Sites: 2, Nodes: 2, Net: 9})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range plan {
		got = append(got, string(p.Name)+"@"+p.Site+"="+p.Addr.String())
	}
	want := "s1n1@site-1=127.9.1.1 s1n2@site-1=127.9.1.2 s2n1@site-2=127.9.2.1 s2n2@site-2=127.9.2.2 witness@=127.9.0.7"
	if strings.Join(got, " ") != want {
		t.Errorf("%s\nwant %s", strings.Join(got, " "), want)
	}
}

func TestImpossibleShapes(t *testing.T) {
	for _, s := range []Shape{{Sites: 1, Nodes: 1}, {Sites: 0, Nodes: 2}, {Sites: 3, Nodes: 0}, {Sites: 17, Nodes: 1}, {Sites: 1, Nodes: 17}, {Sites: 3, Nodes: 2, Net: 255}, {Sites: 3, Nodes: 2, Net: -1}} {
		if _, err := Plan(s); !errors.Is(err, ErrShape) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if err := (Shape{Sites: 1, Nodes: 1}).Check(); !strings.Contains(err.Error(), "two core servers") {
		t.Errorf("the reason is not given: %v", err)
	}
}

func TestNodeConfig(t *testing.T) {
	s := Shape{Sites: 2, Nodes: 2, PlainData: true}
	plan, err := Plan(s)
	if err != nil {
		t.Fatal(err)
	}
	hosts := map[string]bool{}
	for _, p := range plan {
		c := nodeConfig("/d", "00112233445566778899aabbccddeeff", s, plan, p)
		text, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := config.Parse(text, "/elsewhere"); err != nil || back.StateDir != c.StateDir || back.ManagementAddr != c.ManagementAddr || p.Issuer && back.TLS.CAKeyFile != c.TLS.CAKeyFile {
			t.Errorf("%s: read back: %v\n%s", p.Name, err, text)
		}
		if hosts[c.HostID] {
			t.Errorf("%s: host ID %s is another's: no ensemble could have both", p.Name, c.HostID)
		}
		hosts[c.HostID] = true
		if c.Control.Embedded != p.Voter || len(c.Control.Endpoints) != 3 {
			t.Errorf("%s: control %+v", p.Name, c.Control)
		}
		if (len(c.Control.InitialCluster) == 3) != p.Voter {
			t.Errorf("%s: initial cluster %v", p.Name, c.Control.InitialCluster)
		}
		if p.Kind == kindWitness {
			if len(c.Stores) != 0 || len(c.Portals) != 0 || c.Site.Name != "" || c.Roles[0] != config.RoleWitness {
				t.Errorf("witness: %+v", c)
			}
			continue
		}
		if !c.PlainData || len(c.Stores) != 1 || c.Stores[0].Path != "/d/nodes/"+string(p.Name)+"/store" || c.Socket != "/d/nodes/"+string(p.Name)+"/api.sock" {
			t.Errorf("%s: %+v", p.Name, c)
		}
		if !c.Site.CIDRs[0].Contains(p.Addr) || c.Portals[0] != (config.Endpoint{Addr: p.Addr, Port: 3260}) {
			t.Errorf("%s: site %+v, portals %v", p.Name, c.Site, c.Portals)
		}
		if (c.TLS.CAKeyFile != "") != p.Issuer {
			t.Errorf("%s: CA key %q", p.Name, c.TLS.CAKeyFile)
		}
	}
}

func TestParseStat(t *testing.T) {
	// The name of a process may hold whatever misleads a parser.
	line := "12 (a) Z 3) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 100 200"
	start, running, err := parseStat(line)
	if err != nil || start != 98765 || !running {
		t.Errorf("%d, %v, %v", start, running, err)
	}
	if _, running, err = parseStat(strings.Replace(line, ") S ", ") Z ", 1)); err != nil || running {
		t.Errorf("a zombie runs: %v", err)
	}
	for _, bad := range []string{"", "12 (a", "12 (a) S 1"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("12 (a) Z 3) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 100 200")
	f.Add("")
	f.Fuzz(func(_ *testing.T, text string) { _, _, _ = parseStat(text) })
}

func FuzzParseInstance(f *testing.F) {
	f.Add("12 34 5f6e\n")
	f.Fuzz(func(t *testing.T, text string) {
		i, err := parseInstance(text)
		if err != nil {
			return
		}
		if again, err := parseInstance(i.String()); err != nil || again != i {
			t.Fatalf("%q: %+v, then %+v, %v", text, i, again, err)
		}
	})
}

func TestListenInode(t *testing.T) {
	table := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0101007F:0CBC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 00000000:1B9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 100 0 0 10 0
   2: 0101007F:1B9F 0101007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 100 0 0 10 0`
	for addr, want := range map[string]string{"127.0.1.1:3260": "4711", "127.0.1.1:7070": "4712", "127.0.1.1:7071": "", "127.0.1.2:3260": ""} {
		if got := listenInode(table, netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s: inode %q; want %q", addr, got, want)
		}
	}
}
