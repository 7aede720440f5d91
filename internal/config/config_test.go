package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

const example = "../../docs/reference/dozo.example.yaml"

func TestExampleLoads(t *testing.T) {
	c, err := Load(example)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "tokyo-1" || c.Site.CIDRs[1] != netip.MustParsePrefix("fd00:1::/32") || len(c.Stores) != 2 || c.Stores[0].Capacity != 3<<40 {
		t.Errorf("loaded %+v", c)
	}
	if got := c.Portals; len(got) != 3 || got[0].AddrPort() != netip.MustParseAddrPort("10.1.20.11:3260") || got[2].String() != "[fd00:1:20::11]:3260" {
		t.Errorf("portals %v", got)
	}
	if c.Control.Endpoints[1].Port != PortControlClient || c.Control.InitialCluster[1].Peer.Port != PortControlPeer {
		t.Errorf("control %+v", c.Control)
	}
	if c.Stores[1].Reserve != 256<<20 || time.Duration(c.Timeouts.RepairGrace) != 10*time.Minute {
		t.Errorf("reserve %s, repair grace %s", c.Stores[1].Reserve, c.Timeouts.RepairGrace)
	}
}

// The example says what the defaults are; it and the reference must know every key.
func TestExampleAndReferenceAreComplete(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	reference, err := os.ReadFile("../../docs/reference/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var walk func(typ reflect.Type, prefix string)
	walk = func(typ reflect.Type, prefix string) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if key == "" {
				t.Errorf("%s.%s has no YAML key", typ, f.Name)
			}
			if !regexp.MustCompile(`(?m)[\s{#]` + key + `: ?`).Match(text) {
				t.Errorf("the example does not show %s%s", prefix, key)
			}
			if !strings.Contains(string(reference), "`"+prefix+key+"`") {
				t.Errorf("the reference does not explain %s%s", prefix, key)
			}
			ft := f.Type
			for ft.Kind() == reflect.Slice {
				ft = ft.Elem()
				key += "[]"
			}
			if ft.Kind() == reflect.Struct && ft.PkgPath() == typ.PkgPath() && ft != reflect.TypeFor[Endpoint]() && ft != reflect.TypeFor[IP]() {
				walk(ft, prefix+key+".")
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
}

const small = `
cluster: {name: c}
node: n1
site: {name: a}
address: 127.0.1.1
stores: [{path: disk1}]
control: {embedded: true}
`

func TestOneAddressIsEnough(t *testing.T) {
	c, err := Parse([]byte(small), "/etc/dozo")
	if err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string]Endpoint{
		"127.0.1.1:3260": c.Portals[0], "127.0.1.1:7071": c.ClusterAddr, "127.0.1.1:7070": c.ManagementAddr,
		"127.0.1.1:7072": c.Control.Endpoints[0], "127.0.1.1:7073": c.Control.InitialCluster[0].Peer,
	} {
		if got.String() != what {
			t.Errorf("got %s, want %s", got, what)
		}
	}
	if c.WanAddr != c.ClusterAddr {
		t.Errorf("wan_address %s", c.WanAddr)
	}
	if c.Stores[0].Path != "/etc/dozo/disk1" || c.TLS.NodeFile != "/var/lib/dozo/node.pem" || c.Socket != "/var/lib/dozo/api.sock" {
		t.Errorf("paths %s, %s, %s", c.Stores[0].Path, c.TLS.NodeFile, c.Socket)
	}
}

func TestMarshalRoundTrip(t *testing.T) {
	for name, text := range map[string]string{
		"small": small,
		"witness": `
cluster: {name: c, id: 00112233445566778899aabbccddeeff}
node: w
roles: [witness]
address: fd00::1
control: {embedded: true, join: true, endpoints: ["[fd00::2]:7072"]}
`,
		"external": strings.Replace(small, "{embedded: true}", "{external: true, endpoints: [10.0.0.1], prefix: /x/}", 1),
	} {
		c, err := Parse([]byte(text), "/d")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "dozo.yaml")
		if err := os.WriteFile(file, out, 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := Load(file)
		if err != nil {
			t.Fatalf("%s: %v in\n%s", name, err, out)
		}
		if !reflect.DeepEqual(c, again) {
			t.Errorf("%s: came back as %+v, want %+v", name, again, c)
		}
	}
}

func TestRefusals(t *testing.T) {
	replace := func(old, new string) string {
		if !strings.Contains(small, old) {
			t.Fatalf("%q is not in the small configuration", old)
		}
		return strings.Replace(small, old, new, 1)
	}
	for _, c := range []struct{ text, want string }{
		{"", "empty"},
		{small + "---\nnode: x\n", "second YAML document"},
		{small + "colour: blue\n", `line 8: unknown key "colour"`},
		{replace("{path: disk1}", "{path: disk1, pth: x}"), `line 6: unknown key "pth"`},
		{replace("127.0.1.1", "localhost"), "line 5: address \"localhost\": want an IP address"},
		{small + "limits: {unsynced: 64 parsecs}\n", "line 8: size"},
		{small + "timeouts: {lease: 1}\n", "line 8: duration \"1\": want a number with a unit"},
		{small + "timeouts: {lease: 1m}\n", "timeouts.lease: 1m: want"},
		{small + "timeouts: {append: 0s}\n", "timeouts.append"},
		{small + "timeouts: {follow: 100ms}\n", "timeouts.follow"},
		{small + "limits: {segment_size: 1}\n", "limits.segment_size"},
		{small + "limits: {segment_size: 65MiB}\n", "limits.segment_size"},
		{small + "limits: {memory: 1GiB}\n", "limits.memory"},
		{small + "limits: {connections: -1}\n", "limits.connections"},
		{small + "portals: {a: b}\n", "line 8"},
		{small + "portals: [[1]]\n", "line 8: want one value"},
		{replace("{name: c}", "{}"), "cluster.name is missing"},
		{replace("{name: c}", "{name: c, id: x}"), "cluster.id"},
		{replace("node: n1", "node: 'n 1'"), "node: \"n 1\": want"},
		{replace("site: {name: a}", ""), "site.name is missing"},
		{replace("{name: a}", "{name: a, cidrs: [10.0.0.1/8]}"), "want 10.0.0.0/8"},
		{replace("address: 127.0.1.1", ""), "management_address is missing (or give address)"},
		{replace("127.0.1.1", "0.0.0.0"), "others can not dial"},
		{replace("stores: [{path: disk1}]", ""), "stores: a core server needs"},
		{replace("[{path: disk1}]", "[{}]"), "stores[0].path is missing"},
		{replace("[{path: disk1}]", "[{path: d}, {path: d/e}]"), "one directory or within each other"},
		{replace("[{path: disk1}]", "[{path: d, label: x}, {path: e, label: x}]"), "label of two stores"},
		{replace("[{path: disk1}]", "[{path: d, capacity: 1M}]"), "leaves nothing above reserve"},
		{small + "roles: [access]\n", "the node hasn't the role core"},
		{small + "roles: [core]\nportals: [127.0.1.1]\n", "the node hasn't the role access"},
		{small + "roles: [core, core, chief]\n", "listed twice"},
		{small + "roles: []\n", "roles: want at least one"},
		{small + "roles: [core, witness]\n", "a witness has no other role"},
		{small + "portals: [127.0.1.1, 127.0.1.1:7070]\n", "already the address of management_address"},
		{small + "portals: [\"127.0.1.1:0\"]\n", "port 0"},
		{small + "log: {level: loud}\n", "log.level"},
		{small + "log: {format: xml}\n", "log.format"},
		{small + "socket: /" + strings.Repeat("x", 120) + "\n", "a unix socket's path"},
		{replace("{embedded: true}", "{}"), "control.endpoints is missing"},
		{replace("{embedded: true}", "{embedded: true, external: true}"), "exclude each other"},
		{replace("{embedded: true}", "{embedded: true, prefix: /x/}"), "are for an external"},
		{replace("{embedded: true}", "{endpoints: [10.0.0.1], join: true}"), "are for a voter"},
		{replace("{embedded: true}", "{external: true, endpoints: [10.0.0.1], prefix: x}"), "begin and end with /"},
		{replace("{embedded: true}", "{external: true, endpoints: [10.0.0.1], cert_file: x}"), "given together"},
		{replace("{embedded: true}", "{embedded: true, initial_cluster: [{node: n2, peer: 127.0.2.1}]}"), "n1 itself is missing"},
		{replace("{embedded: true}", "{embedded: true, initial_cluster: [{node: n1, peer: 127.0.2.1}]}"), "is not control.peer_address"},
		{replace("{embedded: true}", "{embedded: true, join: true, initial_cluster: [{node: n1, peer: 127.0.1.1}]}"), "is not for a voter that joins"},
	} {
		_, err := Parse([]byte(c.text), "/d")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n=> %v\nwant: %s", c.text, err, c.want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "4096": 4096, "64KiB": 64 << 10, "20G": 20 << 30, "1TiB": 1 << 40, "1.5g": 3 << 29, "10 MB": 10e6, "64kB": 64000, "10 MiB": 10 << 20, "512B": 512, "2P": 2 << 50,
	} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
		if back, err := ParseSize(got.String()); err != nil || back != got {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", got.String(), back, err, got)
		}
	}
	for _, bad := range []string{"", "x", "-1", "1X", "1KK", "G", "8192P", "1e3", "1iB", "NaN", "0x10", "Inf"} {
		if got, err := ParseSize(bad); err == nil {
			t.Errorf("ParseSize(%q) = %d", bad, got)
		}
	}
	for d, want := range map[time.Duration]string{10 * time.Minute: "10m", time.Hour: "1h", 90 * time.Second: "1m30s", 0: "0s", 500 * time.Millisecond: "500ms"} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%v prints as %s, want %s", d, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	text, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(small))
	f.Add([]byte("portals: ['::1', '[::1]', '1.2.3.4:5']\nlimits: {memory: 1.5G}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text, "/d")
		if err != nil {
			return
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(out, "/d"); err != nil {
			t.Fatalf("what Marshal wrote is refused: %v\n%s", err, out)
		}
	})
}
