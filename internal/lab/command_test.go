package lab

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dozo/internal/lab/router"
	"dozo/internal/lab/wan"
)

var three = []string{"east", "west", "north"}

func TestCommand(t *testing.T) {
	for line, want := range map[string]string{
		"set east west rtt=100ms loss=0.1%":                 `east>west {"delay":50000000,"loss":0.001}; west>east {"delay":50000000,"loss":0.001}`,
		"set west east one-way delay=3ms jitter=1ms":        `west>east {"delay":3000000,"jitter":1000000}`,
		"set east west rate=1gbit buffer=256KiB":            `east>west {"rate":1000000000,"buffer":262144}; west>east {"rate":1000000000,"buffer":262144}`,
		"set east west buffer=auto reorder=5% reorder-by=0": `east>west {"buffer":0,"reorder":0.05,"reorder_by":0}; west>east {"buffer":0,"reorder":0.05,"reorder_by":0}`,
		"set north up=10mbit down-buffer=64K":               `up north {"rate":10000000}; down north {"buffer":65536}`,
		"set north rate=unlimited":                          `up north {"rate":0}; down north {"rate":0}`,
		"partition north":                                   `east>north {"cut":true}; west>north {"cut":true}; north>east {"cut":true}; north>west {"cut":true}`,
		"partition east west one-way":                       `east>west {"cut":true}`,
		"heal west east":                                    `east>west {"cut":false}; west>east {"cut":false}`,
	} {
		changes, err := Command(three, strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		var got []string
		for _, c := range changes {
			patch, _ := json.Marshal(c.Patch)
			where := c.From + ">" + c.To
			if c.Kind != router.KindPath {
				where = c.Kind + " " + c.Site
			}
			got = append(got, where+" "+string(patch))
		}
		if s := strings.Join(got, "; "); s != want {
			t.Errorf("%s:\n got %s\nwant %s", line, s, want)
		}
	}
	for line, n := range map[string]int{"heal": 6, "set all loss=0": 6, "heal north": 4} {
		if changes, err := Command(three, strings.Fields(line)); err != nil || len(changes) != n {
			t.Errorf("%s: %d changes, %v", line, len(changes), err)
		}
	}
}

func TestCommandRefuses(t *testing.T) {
	for _, line := range []string{
		"", "set", "set east", "set east west", "set rate=1gbit", "set east south rate=1gbit", "set east east rtt=1ms", "set east west north rtt=1ms",
		"set east west one-way rtt=1ms", "set east one-way rate=1mbit", "set east delay=1ms", "set all east rtt=1ms", "set east west speed=1", "set rtt=1ms east west",
		"set east west loss=0.1", "set east west loss=101%", "set east west loss=-1%", "set east west rate=fast", "set east west rate=10", "set east west rate=1e3mbit",
		"set east west rtt=5", "set east west rtt=-5ms", "set east west buffer=0", "set east west buffer=x", "partition", "partition east loss=1%", "heal all west", "break east",
	} {
		if changes, err := Command(three, strings.Fields(line)); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v %v", line, changes, err)
		}
	}
}

func TestRatesAndShares(t *testing.T) {
	for text, want := range map[string]wan.Rate{"1gbit": 1e9, "2.5Gbit/s": 2.5e9, "64 kbit": 64e3, "100Mbps": 100e6, "unlimited": 0, "0": 0, "9600bit": 9600} {
		r, err := ParseRate(text)
		if err != nil || r != want {
			t.Errorf("%s: %d %v", text, r, err)
		}
		if again, err := ParseRate(FormatRate(r)); err != nil || again != r {
			t.Errorf("%s is written %s", text, FormatRate(r))
		}
	}
	for _, f := range []float64{0, 0.001, 0.5, 1, 0.00001} {
		if again, err := ParseShare(FormatShare(f)); err != nil || again != f {
			t.Errorf("%v is written %s", f, FormatShare(f))
		}
	}
}

func TestSpec(t *testing.T) {
	sites, err := ParseSites("3")
	if err != nil || strings.Join(sites, " ") != "east west north" {
		t.Fatal(sites, err)
	}
	s, err := NewSpec("lab", sites, 2)
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.77.2.1"), netip.MustParseAddr("10.77.2.2"), netip.MustParseAddr("fd77:0:0:2::1"), netip.MustParseAddr("fd77:0:0:2::2")}
	west, _ := s.Site("west")
	for i, a := range west.Addresses {
		if a != want[i] {
			t.Errorf("%s, want %s", a, want[i])
		}
	}
	if p := west.prefixes(); len(p) != 2 || p[0].String() != "10.77.2.0/24" || p[1].String() != "fd77:0:0:2::/64" || west.NetNS != "dozolab-lab-west" {
		t.Errorf("%v %s", p, west.NetNS)
	}
	if r := AddressRange(west.Addresses); r != "10.77.2.1 (2), fd77:0:0:2::1 (2)" {
		t.Error(r)
	}
	for _, bad := range [][]string{{"a", "a"}, {"all"}, {"a-b"}, {""}, {"A"}, make([]string, 17), {}} {
		if _, err := NewSpec("lab", bad, 1); !errors.Is(err, ErrUsage) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	for _, bad := range []string{"0", "17", "-1"} {
		sites, err := ParseSites(bad)
		if err == nil {
			_, err = NewSpec("lab", sites, 1)
		}
		if !errors.Is(err, ErrUsage) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := NewSpec("a-b", sites, 1); !errors.Is(err, ErrUsage) {
		t.Error(err)
	}
}

func TestScenario(t *testing.T) {
	s, err := ParseScenario([]byte("steps:\n  - {at: 5s, do: [partition east west, set north up=100mbit]}\n  - {at: 0s, do: set all rtt=18ms}\n  - {at: 9s, do: heal}\nrepeat: 3\nlength: 12s\n"), three)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Steps) != 3 || s.Steps[0].At != 0 || s.Steps[1].At != 5*time.Second || len(s.Steps[1].changes) != 4 || s.Rounds != 3 || s.Length != 12*time.Second {
		t.Fatalf("%+v", s)
	}
	for _, bad := range []string{
		"", "steps: []", "steps: [{at: 1s}]", "steps: [{at: soon, do: heal}]", "steps: [{at: 1s, do: explode}]", "steps: [{at: 1s, do: heal, x: 1}]",
		"steps: [{at: 1s, do: heal}]\nlength: 500ms", "steps: [{at: 0s, do: heal}]\nrepeat: 2", "steps: [{at: 1s, do: heal}]\nrepeat: -1", "steps: 5", "steps: [{at: 1s, do: {a: b}}]",
	} {
		if s, err := ParseScenario([]byte(bad), three); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %+v %v", bad, s, err)
		}
	}
	_, err = ParseScenario([]byte("stps: []"), three)
	if err == nil || !strings.Contains(err.Error(), `unknown key "stps"`) || strings.Contains(err.Error(), "struct") {
		t.Errorf("an unknown key: %v", err)
	}
}

func FuzzScenario(f *testing.F) {
	f.Add([]byte("steps:\n  - {at: 5s, do: [partition east west]}\n"))
	f.Add([]byte("steps: [{at: 1s, do: heal}]\nrepeat: 0\nlength: 2s"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseScenario(text, three)
		if err == nil && (len(s.Steps) == 0 || s.Rounds < 0) {
			t.Fatalf("%+v", s)
		}
	})
}

func FuzzCommand(f *testing.F) {
	f.Add("set east west rtt=100ms loss=0.1%")
	f.Add("set north up=2.5gbit buffer=auto")
	f.Fuzz(func(t *testing.T, line string) {
		changes, err := Command(three, strings.Fields(line))
		if err == nil && len(changes) == 0 {
			t.Fatal("nothing to do")
		}
		for _, c := range changes {
			if p := c.Patch; p.Rate != nil && *p.Rate < 0 || p.Delay != nil && *p.Delay < 0 || p.Loss != nil && !(*p.Loss >= 0 && *p.Loss <= 1) {
				t.Fatalf("%+v", p)
			}
		}
	})
}
