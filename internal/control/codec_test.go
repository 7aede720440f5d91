package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/pki"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew, to be read in the diff")

// golden has one of everything that is stored.
func golden() []struct {
	key  string
	spec any
} {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	id := ident.JournalID{1, 2, 3}
	s1, s2 := ident.StoreID{1}, ident.StoreID{2}
	e := ident.Epoch{Number: 7, Lineage: 0xdeadbeef}
	return []struct {
		key  string
		spec any
	}{
		{keyCluster, Cluster{ID: "00112233445566778899aabbccddeeff", Name: "c", Lineage: 0xdeadbeef, Format: 1, Created: at}},
		{keySite(2), Site{ID: 2, Name: "b", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}}},
		{keyNode("n1"), Node{Name: "n1", Site: 2, HostID: "h", Roles: []Role{RoleCore, RoleAccess}, Version: "v1", TPGT: 3, Voter: true,
			Addrs: Addrs{Portals: []Portal{{netip.MustParseAddrPort("10.2.0.1:3260"), 3}}, Cluster: netip.MustParseAddrPort("10.2.0.1:7071"),
				Wan: netip.MustParseAddrPort("[fd00::1]:7071"), Management: netip.MustParseAddrPort("10.2.0.1:7070"), ControlURL: "https://10.2.0.1:7072"},
			Stores: []StoreSpec{{s1, "nvme0", 1 << 40, false}}}},
		{keyHost("t", "h"), Host{Tenant: "t", Name: "h", InitiatorNames: []string{"iqn.2026-01.com.example:h"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			CHAP: CHAP{"u", NewSecret("abcdefghijkl"), "t", NewSecret("mnopqrstuvwx")}, Created: at}},
		{keyVolume(id), VolumeSpec{ID: id, Tenant: "t", Name: "v", SizeBytes: 1 << 30, BlockSize: 512, Sites: 2, AtSite: 2, Durability: Sync, Partition: PartitionStop,
			Labels: map[string]string{"a": "b"}, Hosts: []string{"h"}, Created: at, Deleted: &at, Confirmed: []ident.StoreID{s1}}},
		{keyJournal(id), JournalState{Owner: "n1", Epoch: e, Ensembles: []Ensemble{{Epoch: e, Number: 1, Stores: []ident.StoreID{s1, s2}}}, Sites: []ident.SiteID{2, 1}}},
		{keyRevoked("0a"), pki.Revocation{Serial: "0a", Subject: "n2", Reason: "stolen", By: "bob", At: at, Expires: at}},
		{keyJoin("ff"), pki.JoinTokenRecord{Hash: "ff", Node: "n3", Role: pki.RoleNode, Created: at, Expires: at, By: "bob"}},
		{keyAPI("bob"), pki.APITokenRecord{Name: "bob", Hash: "ee", Role: pki.RoleAdmin, Created: at, Expires: at}},
		{keyEvent(at, "c0"), Event{Time: at, Actor: "bob", Action: "volume.create", Object: "volume/t/v", After: "{}", Note: "n"}},
		{keySeqTPGT, uint16(3)},
		{keyDiscover, CHAP{"u", NewSecret("abcdefghijkl"), "t", NewSecret("mnopqrstuvwx")}},
	}
}

// What is stored must stay readable: a difference here is a change of format.
func TestGolden(t *testing.T) {
	var b bytes.Buffer
	for _, g := range golden() {
		fmt.Fprintf(&b, "%s %s\n", g.key, encode(g.spec, "change-1"))
	}
	file := filepath.Join("testdata", "golden.txt")
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("the stored form changed:\n%s\nwas\n%s", b.Bytes(), want)
	}
	// The old bytes give what they were made of.
	for i, line := range strings.Split(strings.TrimSpace(string(want)), "\n") {
		g := golden()[i]
		key, value, _ := strings.Cut(line, " ")
		got, err := decodeLike(g.spec, key, []byte(value))
		if err != nil || !reflect.DeepEqual(got, g.spec) {
			t.Errorf("%s came back as %+v, %v", key, got, err)
		}
		if changeOf([]byte(value)) != "change-1" {
			t.Errorf("%s lost its change ID", key)
		}
	}
}

func decodeLike(spec any, key string, value []byte) (any, error) {
	switch spec.(type) {
	case Cluster:
		return first(decode[Cluster](key, value))
	case Site:
		return first(decode[Site](key, value))
	case Node:
		return first(decode[Node](key, value))
	case Host:
		return decodeHost(key, value)
	case CHAP:
		s, _, err := decode[storedCHAP](key, value)
		return s.chap(), err
	case VolumeSpec:
		return first(decode[VolumeSpec](key, value))
	case JournalState:
		return first(decode[JournalState](key, value))
	case pki.Revocation:
		return first(decode[pki.Revocation](key, value))
	case pki.JoinTokenRecord:
		return first(decode[pki.JoinTokenRecord](key, value))
	case pki.APITokenRecord:
		return first(decode[pki.APITokenRecord](key, value))
	case Event:
		return first(decode[Event](key, value))
	}
	return first(decode[uint16](key, value))
}

func first[T any](v T, _ string, err error) (any, error) { return v, err }

func TestDecodeRefuses(t *testing.T) {
	for value, want := range map[string]string{
		``:                                       "unexpected end",
		`{}`:                                     "no format version",
		`{"v":-1,"spec":{}}`:                     "no format version",
		`{"v":2,"spec":{}}`:                      "upgrade this node",
		`{"v":1,"spec":{"id":1,"colour":"red"}}`: "unknown field",
		`{"v":1}`:                                "EOF",
		`{"v":1,"spec":[]}`:                      "cannot unmarshal",
	} {
		if _, _, err := decode[Site]("k", []byte(value)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", value, err, want)
		}
	}
	_, _, err := decode[Site]("k", []byte(`{"v":2}`))
	if !errors.Is(err, ErrNewerFormat) {
		t.Errorf("a newer format: %v", err)
	}
}

func TestSecretsDoNotShow(t *testing.T) {
	const secret = "open sesame 123"
	h := Host{Name: "h", CHAP: CHAP{InUser: "u", InSecret: NewSecret(secret)}}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "host", h, "secret", h.CHAP.InSecret, "chap", &h.CHAP)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "host", h, "secret", h.CHAP.InSecret, "chap", &h.CHAP)
	js, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{log.String(), string(js), summary(h), fmt.Sprint(h), fmt.Sprintf("%+v %#v %v %s %q", h, h, &h, h.CHAP.InSecret, h.CHAP.InSecret)} {
		if strings.Contains(text, "sesame") {
			t.Errorf("the secret shows: %s", text)
		}
		if !strings.Contains(text, redacted) {
			t.Errorf("that there is a secret does not show: %s", text)
		}
	}
	if h.CHAP.InSecret.Reveal() != secret {
		t.Error("the secret is gone")
	}
	var back Host
	if err := json.Unmarshal(js, &back); err == nil && !back.CHAP.InSecret.IsZero() {
		t.Error("a redacted secret was read back as one")
	}
}

func FuzzDecode(f *testing.F) {
	for _, g := range golden() {
		f.Add(g.key, encode(g.spec, "c"))
	}
	f.Add(keyCluster, []byte(`{"v":2}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		c := newCache()
		for range 2 {
			_ = c.apply([]change{{pair: pair{key, value, 1}}}, 1)
		}
		_ = c.replace([]pair{{key, value, 2}}, 2)
		_ = c.apply([]change{{pair: pair{key: key, mod: 3}, deleted: true}}, 3)
		_ = changeOf(value)
		for _, g := range golden() {
			if v, err := decodeLike(g.spec, key, value); err == nil {
				text := encode(v, "")
				again, err := decodeLike(g.spec, key, text)
				if err != nil || !bytes.Equal(encode(again, ""), text) {
					t.Fatalf("%s %s came back as %+v (%v), was %+v", key, value, again, err, v)
				}
			}
		}
	})
}
