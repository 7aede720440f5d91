package scsi_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

// TestModeSelect: SPC-4 6.11, 7.5; SBC-3 6.5.5 for the caching page.
func TestModeSelect(t *testing.T) {
	a, b := pair(t)
	page := func(r *rig, control, page, subpage byte) []byte {
		d := data(r.run([]byte{0x5a, 8, control<<6 | page, subpage, 0, 0, 0, 0, 255, 0}, 255, nil))
		return d
	}
	caching := page(a, 0, 8, 0)
	if caching[8+2]&4 == 0 || page(a, 1, 8, 0)[8+2] != 4 {
		t.Fatalf("WCE: %x, changeable %x", caching, page(a, 1, 8, 0))
	}
	caching[8] &^= 0x80
	caching[8+2] &^= 4
	set := func(r *rig, save byte, list []byte) string {
		return sense(r.run([]byte{0x55, 0x10 | save, 0, 0, 0, 0, 0, 0, byte(len(list)), 0}, 0, list))
	}
	if got := set(a, 1, caching); got != good {
		t.Fatal(got)
	}
	if got := sense(b.run(make([]byte, 6), 0, nil)); got != "6/2a01" {
		t.Errorf("the other initiator: %s", got)
	}
	if d := page(b, 0, 8, 0); d[8+2]&4 != 0 || page(b, 3, 8, 0)[8+2]&4 != 0 || page(b, 2, 8, 0)[8+2]&4 == 0 {
		t.Errorf("current, saved or default WCE: %x", d)
	}
	// SPC-4 7.5.9, the control extension page: implicit transitions, and nothing that can be changed.
	extension := page(a, 0, 0x0a, 1)
	if d := extension[8:]; len(d) != 32 || !bytes.Equal(d[:8], []byte{0x80 | 0x40 | 0x0a, 1, 0, 28, 1, 8, 0, 0}) || !bytes.Equal(page(a, 1, 0x0a, 1)[12:], make([]byte, 28)) {
		t.Errorf("control extension page: %x, changeable %x", d, page(a, 1, 0x0a, 1))
	}
	extension[8] &^= 0x80
	if got := set(a, 0, extension); got != good {
		t.Errorf("control extension page as it is: %s", got)
	}
	extension[8+4] |= 4 // TCMOS
	if got := set(a, 0, extension); got != "5/2600 field 12" {
		t.Errorf("control extension page with TCMOS: %s", got)
	}
	control := page(a, 0, 0x0a, 0)
	control[8] &^= 0x80
	control[8+2] |= 4 // D_SENSE
	control[8+4] |= 8 // SWP
	if got := set(a, 0, control); got != good {
		t.Fatal(got)
	}
	c := a.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, make([]byte, 512))
	if len(c.Sense) < 8 || c.Sense[0] != 0x72 || c.Sense[1] != 7 || c.Sense[2] != 0x27 || c.Sense[3] != 0x02 {
		t.Errorf("write to a protected unit: %x", c.Sense)
	}
	// SPC-4 5.9: a reset brings the saved values back.
	a.disk.Change(&reserve.Command{Action: reserve.Reset})
	a.run(make([]byte, 6), 0, nil)
	b.run(make([]byte, 6), 0, nil)
	if d := page(a, 0, 0x0a, 0); d[8+4]&8 != 0 || page(a, 0, 8, 0)[8+2]&4 != 0 {
		t.Errorf("after a reset: %x", d)
	}
	for _, x := range []struct {
		what string
		list []byte
		want string
	}{
		{"cut off header", caching[:5], "5/1a00"}, {"cut off page", caching[:12], "5/1a00"}, {"unknown page", append(make([]byte, 8), 0x19, 0), "5/2600 field 8"},
		{"what can't be changed", append(make([]byte, 8), append([]byte{0x08, 0x12, 4, 1}, make([]byte, 16)...)...), "5/2600 field 11"},
	} {
		if got := set(a, 0, x.list); got != x.want {
			t.Errorf("%s: %s, want %s", x.what, got, x.want)
		}
	}
	// SPC-4 6.11: a field of the header that isn't supported. 6.13.1: page 0 of the current values is the header and the block descriptor.
	if got := set(a, 0, append([]byte{0, 0, 1}, make([]byte, 5)...)); got != "5/2600 field 2" {
		t.Errorf("MEDIUM TYPE 1: %s", got)
	}
	if d := data(a.run([]byte{0x1a, 0, 0, 0, 255, 0}, 255, nil)); len(d) != 12 || d[0] != 11 || d[2] != 0x10 || d[3] != 8 || d[10] != 2 {
		t.Errorf("MODE SENSE of page 0: %x", d)
	}
	if got := sense(a.run([]byte{0x1a, 0, 0x40, 0, 255, 0}, 255, nil)); got != "5/2400 field 2" {
		t.Errorf("MODE SENSE of what can be changed of page 0: %s", got)
	}
	// SPC-4 6.13: of page 3Fh there are the subpages 00h and FFh.
	for subpage, want := range map[byte]string{0: good, 1: "5/2400 field 3", 2: "5/2400 field 3", 0xfe: "5/2400 field 3", 0xff: good} {
		if got := sense(a.run([]byte{0x5a, 8, 0x3f, subpage, 0, 0, 0, 0, 255, 0}, 255, nil)); got != want {
			t.Errorf("MODE SENSE of page 3Fh, subpage %02x: %s, want %s", subpage, got, want)
		}
	}
	thresholds := page(a, 0, 0x1c, 2)
	thresholds[8] &^= 0x80
	thresholds[8+16] |= 0x80
	binary.BigEndian.PutUint32(thresholds[8+20:], 500)
	if got := set(a, 0, thresholds); got != good || a.disk.Unit().State.Current.ThresholdAvailable != 500 {
		t.Errorf("thresholds: %s, %+v", got, a.disk.Unit().State.Current)
	}
	thresholds[8+24] |= 0x80
	if got := set(a, 0, thresholds); got != "5/2600 field 36" {
		t.Errorf("a threshold of nothing: %s", got)
	}
	// SBC-3 table 7: what is available is armed decreasing, what is used increasing.
	if d := page(a, 0, 0x1c, 2); d[8+16] != 0x80 || d[8+17] != 1 || d[8+24] != 0x01 || d[8+25] != 2 {
		t.Errorf("threshold descriptors: %x", d[8:])
	}
	// SBC-3 6.5.8: LBPERE.
	recovery := page(a, 0, 0x01, 0)
	recovery[8] &^= 0x80
	recovery[8+7] |= 0x80
	if got := set(a, 0, recovery); got != good || !a.disk.Unit().State.Current.ReportThresholds {
		t.Errorf("LBPERE: %s, %+v", got, a.disk.Unit().State.Current)
	}
	// SBC-3 4.7.3.7.6: the INFORMATION field says which threshold was reached, by where it stands in the mode page.
	for want, m := range map[uint64]reserve.Modes{16: {ThresholdAvailable: 5}, 24: {ThresholdUsed: 5}} {
		a.disk.Change(&reserve.Command{Action: reserve.SetModes, Nexus: a.nexus.Initiator().Nexus, Modes: m})
		a.nexus.Post(0, reserve.ThresholdReached)
		c := a.run(make([]byte, 6), 0, nil)
		if got := sense(c); got != "6/3807" || c.Sense[0] != 0xf0 || uint64(binary.BigEndian.Uint32(c.Sense[3:])) != want {
			t.Errorf("threshold %d was reached: %s, %x", want, got, c.Sense)
		}
		a.nexus.Post(0, reserve.ThresholdReached)
		if d := data(a.run([]byte{0x03, 0, 0, 0, 18, 0}, 18, nil)); d[0] != 0xf0 || uint64(d[6]) != want {
			t.Errorf("REQUEST SENSE, threshold %d was reached: %x", want, d)
		}
	}
}

// TestLogSense: SPC-4 6.8, 7.3; SBC-3 6.4.4.
func TestLogSense(t *testing.T) {
	a, _ := pair(t)
	a.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0x20, 0, 0}, 0, bytes.Repeat([]byte{1}, 4<<20)) // 8192 blocks: four threshold sets
	used := []byte{0, 2, 3, 8, 0, 0, 0, 4, 1, 0, 0, 0}
	available := []byte{0, 1, 3, 8, 0, 0, 0, 0, 2, 0, 0, 0}
	for _, x := range []struct {
		what              string
		page, subpage     byte
		pointer, allocate byte
		want              []byte
	}{
		{"provisioning", 0x4c, 0, 0, 255, slices.Concat([]byte{0x8c, 0, 0, 24}, available, used)},
		{"provisioning, threshold values", 0x0c, 0, 0, 255, slices.Concat([]byte{0x8c, 0, 0, 24}, available, used)},
		{"from what is used on", 0x4c, 0, 2, 255, slices.Concat([]byte{0x8c, 0, 0, 12}, used)},
		{"a little of it", 0x4c, 0, 0, 6, []byte{0x8c, 0, 0, 24, 0, 1}},
		{"nothing of it", 0x4c, 0, 0, 0, nil},
		{"pages", 0x40, 0, 0, 255, []byte{0, 0, 0, 2, 0, 0x0c}},
		{"pages and subpages, ascending", 0x40, 0xff, 0, 255, []byte{0x40, 0xff, 0, 6, 0, 0, 0, 0xff, 0x0c, 0}},
	} {
		if d := data(a.run([]byte{0x4d, 0, x.page, x.subpage, 0, 0, x.pointer, 0, x.allocate, 0}, 255, nil)); !bytes.Equal(d, x.want) {
			t.Errorf("%s: %x, want %x", x.what, d, x.want)
		}
	}
	for _, x := range []struct {
		what string
		cdb  []byte
		want string
	}{
		{"SP", []byte{0x4d, 1, 0x4c, 0, 0, 0, 0, 0, 255, 0}, "5/2400 field 1"},
		{"unknown page", []byte{0x4d, 0, 0x4d, 0, 0, 0, 0, 0, 255, 0}, "5/2400 field 2"},
		{"unknown subpage", []byte{0x4d, 0, 0x4c, 1, 0, 0, 0, 0, 255, 0}, "5/2400 field 3"},
		{"behind the last parameter", []byte{0x4d, 0, 0x4c, 0, 0, 0, 3, 0, 255, 0}, "5/2400 field 5"},
	} {
		if got := sense(a.run(x.cdb, 255, nil)); got != x.want {
			t.Errorf("%s: %s, want %s", x.what, got, x.want)
		}
	}
}

// TestModeSelectsAtATime: rule R7. What one initiator sets and another one, who has not heard of it yet, has no page for stays set.
func TestModeSelectsAtATime(t *testing.T) {
	a, b := pair(t)
	page := func(r *rig, code byte) []byte {
		d := data(r.run([]byte{0x5a, 8, code, 0, 0, 0, 0, 0, 255, 0}, 255, nil))
		d[8] &^= 0x80
		return d
	}
	protect, caching := page(a, 0x0a), page(b, 8)
	protect[8+4] |= 8  // SWP
	caching[8+2] &^= 4 // WCE
	release := a.disk.Hold()
	var ended []chan string
	begin := func(r *rig, list []byte) {
		done := make(chan string, 1)
		ended = append(ended, done)
		c := new(scsi.Command)
		c.Finish = func(c *scsi.Command) { done <- sense(c) }
		copy(c.CDB[:], []byte{0x55, 0x10, 0, 0, 0, 0, 0, 0, byte(len(list)), 0})
		c.ExpectOut, c.Request.Initiator = uint32(len(list)), r.nexus.Initiator()
		r.nexus.Prepare(c)
		r.nexus.Allocate(c)
		for _, p := range c.Out {
			list = list[copy(p, list):]
		}
		r.nexus.Execute(c)
	}
	begin(a, protect)
	begin(b, caching)
	begin(b, nil)
	release()
	a.disk.Wait()
	for i, done := range ended {
		if got := <-done; got != good {
			t.Errorf("MODE SELECT %d: %s", i, got)
		}
	}
	if m := a.disk.Unit().State.Current; !m.WriteProtect || !m.CacheOff {
		t.Errorf("mode parameters: %+v, want both that were set", m)
	}
}
