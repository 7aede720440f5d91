package reserve

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata")

// full are values with every field set.
func full() (*State, *Command, *Snapshot) {
	z := Sanitize{Kind: SanitizeOverwrite, Passes: 3, Invert: true, AUSE: true, Pattern: []byte{0xde, 0xad}}
	m := Modes{DescriptorSense: true, CacheOff: true, ThresholdAvailable: 77, ThresholdUsed: 78}
	s := &State{Version: 12, Generation: 5, Persist: true, Type: WriteExclusiveRegistrants, Current: m, Saved: Modes{WriteProtect: true, ReportThresholds: true},
		Registrations: []Registration{{nexuses["a"], 1, true}, {nexuses["a2"], 1, false}, {nexuses["b"], 0xfedcba9876543210, false}},
		Legacy:        &Legacy{nexuses["c"], 99}, Sanitize: z, Events: 9}
	c := &Command{Action: RegisterAndMove, Nexus: nexuses["a"], Session: 4, Type: ExclusiveAccess, Scope: 1, Key: 2, ServiceKey: 3, Persist: true,
		Unregister: true, Others: []NexusID{nexuses["b"]}, Modes: m, Save: true, Sanitize: z, Failed: true}
	snap := &Snapshot{State: s, Progress: 1000, UsedBlocks: 5, AvailableBlocks: 6, Events: []Event{
		{Number: 8, What: DeviceReset, Scope: ToAll, Abort: true}, {Number: 9, What: CommandsCleared, Scope: ToOthers, Nexus: nexuses["b"], IfAborted: true}}}
	return s, c, snap
}

// TestGolden holds the bytes of docs/format.md and docs/wire.md.
func TestGolden(t *testing.T) {
	s, c, snap := full()
	list := []struct {
		name  string
		bytes []byte
	}{{"state", s.Append(nil)}, {"command", c.Append(nil)}, {"snapshot", snap.Append(nil)}, {"empty-state", new(State).Append(nil)}}
	var text strings.Builder
	for _, x := range list {
		text.WriteString(x.name + " " + hex.EncodeToString(x.bytes) + "\n")
	}
	const file = "testdata/version1.txt"
	if *update {
		if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != text.String() {
		t.Errorf("bytes differ from %s (%v):\n%s", file, err, text.String())
	}
	if got, err := DecodeState(list[0].bytes); err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("state: %v\n%+v\n%+v", err, got, s)
	}
	if got, err := DecodeCommand(list[1].bytes); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("command: %v\n%+v\n%+v", err, got, c)
	}
	if got, err := DecodeSnapshot(list[2].bytes); err != nil || !reflect.DeepEqual(got, snap) {
		t.Errorf("snapshot: %v\n%+v\n%+v", err, got, snap)
	}
}

func FuzzDecodeState(f *testing.F) {
	s, _, _ := full()
	f.Add(s.Append(nil))
	f.Add(new(State).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(b)
		if err != nil {
			return
		}
		if again := s.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x came back as %x", b, again)
		}
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	_, _, snap := full()
	f.Add(snap.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeSnapshot(b)
		if err != nil {
			return
		}
		if again := s.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x came back as %x", b, again)
		}
	})
}

// FuzzApply decodes commands and applies them to a state: whatever comes, the state stays one that decodes, and
// an untouched one stays what it was.
func FuzzApply(f *testing.F) {
	s, c, _ := full()
	f.Add(s.Append(nil), c.Append(nil))
	s.Legacy = nil
	for a := range actionMax + 1 {
		c.Action = a
		f.Add(s.Append(nil), c.Append(nil))
	}
	f.Fuzz(func(t *testing.T, state, command []byte) {
		s, err := DecodeState(state)
		if err != nil {
			return
		}
		c, err := DecodeCommand(command)
		if err != nil {
			return
		}
		next, r := s.Apply(c)
		if !bytes.Equal(s.Append(nil), state) {
			t.Fatal("Apply changed the state that it was given")
		}
		if next == nil {
			return
		}
		if r.Outcome != Good || next.Version != s.Version+1 {
			t.Fatalf("outcome %d, version %d after %d", r.Outcome, next.Version, s.Version)
		}
		if _, err := DecodeState(next.Append(nil)); err != nil && len(next.Registrations) <= RegistrationsMax {
			t.Fatalf("%+v: %v", c, err)
		}
	})
}

func TestDescribe(t *testing.T) {
	s, _, _ := full()
	got, err := Describe(s.Append(nil))
	for _, want := range []string{"version 12", "type 5", "APTPL", "iqn.a,i,0x010000000000,t,1 with key 0000000000000001, holds", "reserved by iqn.c", "CacheOff:true", "sanitize of kind 2"} {
		if err != nil || !strings.Contains(got, want) {
			t.Errorf("%v, no %q in:\n%s", err, want, got)
		}
	}
	if _, err := Describe([]byte{9}); err == nil {
		t.Error("a malformed state was described")
	}
}
