package scsi_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

// pair is one disk and two initiators; what one does, the other learns as unit attentions.
func pair(t testing.TB) (a, b *rig) {
	a = newRig(t, 512).ready()
	a.disk.SetPaths(reserve.PathInfo{Groups: []reserve.PortGroup{{ID: 1, Ports: []uint16{1}}, {ID: 2, Ports: []uint16{2}}}})
	who := &scsi.Initiator{Nexus: reserve.NexusID{Initiator: "iqn.b", Port: 1}}
	b = &rig{t: t, disk: a.disk, nexus: scsi.NewNexus(who, "iqn.target", scsi.UnitConfig{LUN: 0, Disk: a.disk})}
	b.ready()
	a.disk.Observe(func(_ *reserve.Snapshot, events []reserve.Event) {
		for _, n := range []*scsi.Nexus{a.nexus, b.nexus} {
			for _, e := range events {
				if e.Concerns(n.Initiator().Nexus) {
					n.Post(0, e.What)
				}
			}
		}
	})
	return a, b
}

// prout makes a PERSISTENT RESERVE OUT with the short parameter list.
func (r *rig) prout(action byte, kind reserve.Type, key, service uint64, flags byte) string {
	list := binary.BigEndian.AppendUint64(nil, key)
	list = binary.BigEndian.AppendUint64(list, service)
	list = append(list, 0, 0, 0, 0, flags, 0, 0, 0)
	return sense(r.run([]byte{0x5f, action, byte(kind), 0, 0, 0, 0, 0, 24, 0}, 0, list))
}

func (r *rig) prin(action byte) []byte {
	return data(r.run([]byte{0x5e, action, 0, 0, 0, 0, 0, 1, 0, 0}, 256, nil))
}

const good, conflict = "status 0x0", "status 0x18"

// TestOrWriteAndAtomic: SBC-3 5.9, SBC-4 5.43.
func TestOrWriteAndAtomic(t *testing.T) {
	a, _ := pair(t)
	a.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, bytes.Repeat([]byte{0x0f}, 512))
	or := []byte{0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}
	if got := sense(a.run(or, 0, bytes.Repeat([]byte{0xf0}, 512))); got != good {
		t.Fatal(got)
	}
	if d := data(a.run([]byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 512, nil)); !bytes.Equal(d, bytes.Repeat([]byte{0xff}, 512)) {
		t.Errorf("ORWRITE: %x", d[:8])
	}
	atomic := func(lba, boundary, blocks byte, n int) string {
		return sense(a.run([]byte{0x9c, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, boundary, 0, blocks, 0, 0}, 0, make([]byte, n)))
	}
	for _, x := range []struct{ got, want string }{
		{atomic(0, 0, 8, 4096), good}, {atomic(1, 0, 8, 4096), "5/2400 field 2"}, {atomic(0, 0, 7, 7*512), "5/2400 field 12"}, {atomic(0, 1, 8, 4096), "5/2400 field 10"},
	} {
		if x.got != x.want {
			t.Errorf("WRITE ATOMIC: %s, want %s", x.got, x.want)
		}
	}
}

// TestSanitize is SBC-3 4.11 and 5.24.
func TestSanitize(t *testing.T) {
	a, b := pair(t)
	list := append([]byte{1, 0, 2, 0}, bytes.Repeat([]byte{0xa5}, 512)...)
	cdb := []byte{0x48, 0x01, 0, 0, 0, 0, 0, byte(len(list) >> 8), byte(len(list) & 255), 0}
	for _, x := range []struct {
		at   int
		to   byte
		want string
	}{{0, 0, "5/2600 field 0"}, {0, 0x21, "5/2600 field 0"}, {2, 1, "5/2600 field 2"}} {
		bad := bytes.Clone(list)
		bad[x.at] = x.to
		if got := sense(a.run(cdb, 0, bad)); got != x.want {
			t.Errorf("byte %d = %02x: %s, want %s", x.at, x.to, got, x.want)
		}
	}
	if got := sense(a.run([]byte{0x48, 0x02, 0, 0, 0, 0, 0, 0, 4, 0}, 0, make([]byte, 4))); got != "5/2400 field 7" {
		t.Errorf("block erase with a list: %s", got)
	}
	if got := sense(a.run([]byte{0x48, 0x03}, 0, nil)); got != "5/2400 field 1" {
		t.Errorf("cryptographic erase: %s", got)
	}
	a.prout(0, 0, 0, 1, 0)
	a.prout(1, reserve.ExclusiveAccess, 1, 0, 0)
	if got := sense(b.run(cdb, 0, list)); got != conflict {
		t.Errorf("under a reservation: %s", got)
	}
	if got := sense(a.run(cdb, 0, list)); got != good {
		t.Fatal(got)
	}
	if d := data(a.run([]byte{0x28, 0, 0, 0, 0x10, 0, 0, 0, 1, 0}, 512, nil)); !bytes.Equal(d, bytes.Repeat([]byte{0xa5}, 512)) {
		t.Errorf("overwritten: %x", d[:8])
	}
	// While one is under way: table 9 says what is let in.
	a.disk.Change(&reserve.Command{Action: reserve.SanitizeBegin, Nexus: a.nexus.Initiator().Nexus, Sanitize: reserve.Sanitize{Kind: reserve.SanitizeBlockErase}})
	for _, x := range []struct {
		cdb  []byte
		want string
	}{{make([]byte, 6), "2/041b field 0"}, {[]byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, "2/041b field 0"}, {[]byte{0x12, 0, 0, 0, 96, 0}, good}, {[]byte{0x03, 0, 0, 0, 18, 0}, good},
		{[]byte{0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, good}, {[]byte{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, good},
		{[]byte{0x1a, 0, 0x08, 0, 255, 0}, good}, {[]byte{0x5a, 0, 0x0a, 0, 0, 0, 0, 0, 255, 0}, good}, {[]byte{0x1a, 0, 0x1c, 0, 255, 0}, good},
		{[]byte{0x1a, 0, 0x01, 0, 255, 0}, "2/041b field 0"}, {[]byte{0x1a, 0, 0x1c, 2, 255, 0}, "2/041b field 0"}, {[]byte{0x1a, 0, 0x3f, 0, 255, 0}, "2/041b field 0"},
	} {
		if got := sense(a.run(x.cdb, 512, nil)); got != x.want {
			t.Errorf("%x: %s, want %s", x.cdb, got, x.want)
		}
	}
	// SBC-3 4.11.2: how far it is, REQUEST SENSE tells.
	if d := data(a.run([]byte{0x03, 0, 0, 0, 18, 0}, 18, nil)); d[2] != 2 || d[12] != 0x04 || d[13] != 0x1b || d[15]&0x80 == 0 {
		t.Errorf("REQUEST SENSE meanwhile: %x", d)
	}
	a.disk.Change(&reserve.Command{Action: reserve.SanitizeEnd, Failed: true})
	if got := sense(a.run(make([]byte, 6), 0, nil)); got != "3/3103" {
		t.Errorf("after a failed one: %s", got)
	}
	if d := data(a.run([]byte{0x03, 0, 0, 0, 18, 0}, 18, nil)); d[2] != 3 || d[12] != 0x31 || d[13] != 0x03 {
		t.Errorf("REQUEST SENSE after it: %x", d)
	}
	// SBC-3 5.24.1: it was to complete restricted, so the next one has to.
	for _, cdb := range [][]byte{{0x48, 0x1f}, {0x48, 0x20 | 0x02}} {
		if got := sense(a.run(cdb, 0, nil)); got != "5/2400 field 1" {
			t.Errorf("%x after a failed one: %s", cdb, got)
		}
	}
	if got := sense(a.run([]byte{0x48, 0x02}, 0, nil)); got != good {
		t.Errorf("another one after a failed one: %s", got)
	}
}

// TestFixedDisk: commands that are about media which a volume doesn't have: SPC-4 and SBC-3 have a disk answer them.
func TestFixedDisk(t *testing.T) {
	a, _ := pair(t)
	for _, x := range []struct {
		what string
		cdb  []byte
		in   uint32
		want string
		data []byte
	}{
		{"SBC-3 5.12 PREVENT ALLOW MEDIUM REMOVAL, prevent", []byte{0x1e, 0, 0, 0, 1, 0}, 0, good, nil},
		{"SBC-3 5.12 PREVENT ALLOW MEDIUM REMOVAL, allow", []byte{0x1e, 0, 0, 0, 0, 0}, 0, good, nil},
		{"SBC-3 5.12 PREVENT ALLOW MEDIUM REMOVAL, a reserved bit", []byte{0x1e, 0, 0, 0, 4, 0}, 0, "5/2400 field 4", nil},
		{"SBC-3 5.25 START STOP UNIT, start", []byte{0x1b, 0, 0, 0, 1, 0}, 0, good, nil},
		{"SBC-3 5.25 START STOP UNIT, stop", []byte{0x1b, 0, 0, 0, 0, 0}, 0, good, nil},
		{"SBC-3 5.25 START STOP UNIT, eject", []byte{0x1b, 0, 0, 0, 2, 0}, 0, "5/2400 field 4", nil},
		{"SBC-3 5.25 START STOP UNIT, standby", []byte{0x1b, 0, 0, 0, 0x30, 0}, 0, "5/2400 field 4", nil},
		{"SBC-3 5.17 READ DEFECT DATA (10), both lists", []byte{0x37, 0, 0x1d, 0, 0, 0, 0, 0, 255, 0}, 255, good, []byte{0, 0x1d, 0, 0}},
		{"SBC-3 5.17 READ DEFECT DATA (10), primary list", []byte{0x37, 0, 0x10, 0, 0, 0, 0, 0, 255, 0}, 255, good, []byte{0, 0x10, 0, 0}},
		{"SBC-3 5.18 READ DEFECT DATA (12), grown list", []byte{0xb7, 0x0b, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0}, 255, good, []byte{0, 0x0b, 0, 0, 0, 0, 0, 0}},
		{"SPC-4 6.40 SEND DIAGNOSTIC, self-test", []byte{0x1d, 4, 0, 0, 0, 0}, 0, good, nil},
		{"no unit stops for it", make([]byte, 6), 0, good, nil},
	} {
		c := a.run(x.cdb, x.in, nil)
		if got := sense(c); got != x.want || !bytes.Equal(data(c), x.data) {
			t.Errorf("%s: %s, %x; want %s, %x", x.what, got, data(c), x.want, x.data)
		}
	}
}

// TestVPDPages: SPC-4 7.8: every page that is listed answers, with a length that is right.
func TestVPDPages(t *testing.T) {
	a, _ := pair(t)
	list := data(a.run([]byte{0x12, 1, 0, 1, 0, 0}, 256, nil))
	want := []byte{0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0x8f, 0xb0, 0xb1, 0xb2, 0xb7}
	if !bytes.Equal(list[4:], want) {
		t.Fatalf("pages %x, want %x", list[4:], want)
	}
	for _, page := range want {
		d := data(a.run([]byte{0x12, 1, page, 16, 0, 0}, 4096, nil))
		if d[1] != page || int(binary.BigEndian.Uint16(d[2:])) != len(d)-4 {
			t.Errorf("page %02x: %x", page, d)
		}
	}
	// SBC-3 6.6.2 and 5.29: VBULS, and what it says.
	a.run([]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, 0, []byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0})
	d := data(a.run([]byte{0x12, 1, 0xb1, 0, 64, 0}, 64, nil))
	if got := sense(a.run([]byte{0x2f, 2, 0, 0, 0, 0, 0, 0, 1, 0}, 0, make([]byte, 512))); d[8] != 1 || got != good {
		t.Errorf("page B1h: %x; VERIFY of unmapped blocks: %s", d[:12], got)
	}
	// SPC-4 7.8.17: the descriptors of the third-party copy page, ascending; with the largest token and the kinds of tokens.
	var types []uint16
	for d := data(a.run([]byte{0x12, 1, 0x8f, 16, 0, 0}, 4096, nil))[4:]; len(d) >= 4; {
		n := 4 + int(binary.BigEndian.Uint16(d[2:]))
		body := d[4:n]
		types = append(types, binary.BigEndian.Uint16(d))
		switch types[len(types)-1] {
		case 0x0000:
			if got := binary.BigEndian.Uint64(body[16:]); got != 1<<21 {
				t.Errorf("MAXIMUM TOKEN TRANSFER SIZE: %d", got)
			}
		case 0x0106:
			if n != 96 || binary.BigEndian.Uint32(body[20:]) != 3600 || binary.BigEndian.Uint16(body[42:]) != 48 ||
				!bytes.Equal(body[44:52], []byte{0, 0, 0, 44, 0, 0, 0, 8}) || binary.BigEndian.Uint64(body[52:]) != 1<<30 {
				t.Errorf("ROD token features: %x", d[:n])
			}
		case 0x0108:
			if n != 8+4*64 || body[2] != 1 || body[3] != 0 || !bytes.Equal(body[4:9], []byte{0, 0x80, 0, 0, 3}) || !bytes.Equal(body[68:73], []byte{0, 0x80, 0, 1, 3}) ||
				!bytes.Equal(body[132:137], []byte{0, 0x80, 0xff, 0xff, 1}) || !bytes.Equal(body[196:201], []byte{0xff, 0xff, 0, 1, 2}) {
				t.Errorf("ROD types: %x", d[:n])
			}
		}
		d = d[n:]
	}
	if !slices.Equal(types, []uint16{0x0000, 0x0001, 0x0004, 0x0008, 0x000c, 0x0106, 0x0108, 0x8001}) {
		t.Errorf("third-party copy descriptors: %04x", types)
	}
}

// FuzzParameterLists gives every command that has a parameter list whatever comes: no panic, one Finish, and never
// more of the disk touched than there is.
func FuzzParameterLists(f *testing.F) {
	d := iscsitest.NewDisk("d", 16<<20, 512)
	f.Add([]byte{0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0}, make([]byte, 24))
	f.Add([]byte{0x5f, 7, 0, 0, 0, 0, 0, 0, 72, 0}, append(make([]byte, 24), transportID("iqn.b")...))
	f.Add([]byte{0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0}, append(make([]byte, 8), append([]byte{8, 0x12, 4}, make([]byte, 17)...)...))
	f.Add([]byte{0x48, 1, 0, 0, 0, 0, 0, 0, 5, 0}, []byte{1, 0, 0, 1, 7})
	f.Add([]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, append([]byte{0, 22, 0, 16}, make([]byte, 20)...))
	copies := copyList(1, target(d), segment(0, 0, 8, 0, 100))
	f.Add(append([]byte{0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, byte(len(copies))), copies)
	f.Add([]byte{0x83, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 32}, rangeList(16, [2]uint32{0, 8}))
	f.Add([]byte{0x83, 0x11, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 40}, rangeList(536, [2]uint32{0, 8}))
	f.Fuzz(func(t *testing.T, cdb, list []byte) {
		if len(cdb) > 16 || len(list) > 8<<10 {
			return
		}
		// A bounded disk, so that long copies and overwrites end soon.
		who := &scsi.Initiator{Nexus: reserve.NexusID{Initiator: "iqn.a", Port: 1}}
		d := iscsitest.NewDisk("d", 64<<10, 512)
		n := scsi.NewNexus(who, "iqn.target", scsi.UnitConfig{LUN: 0, Disk: d})
		r := &rig{t: t, disk: d, nexus: n}
		r.ready()
		r.run(cdb, 4096, list)
	})
}

// rtpg reads the descriptors of REPORT TARGET PORT GROUPS: state with PREF, and what is supported, by group.
func (r *rig) rtpg(extended bool) map[uint16][2]byte {
	r.t.Helper()
	cdb := []byte{0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
	at := 4
	if extended {
		cdb[1], at = 0x2a, 8
	}
	d := data(r.run(cdb, 256, nil))
	if len(d) < at || int(binary.BigEndian.Uint32(d)) != len(d)-4 || extended && (d[4] != 0x10 || d[5] == 0) {
		r.t.Fatalf("REPORT TARGET PORT GROUPS: %x", d)
	}
	got := map[uint16][2]byte{}
	for d = d[at:]; len(d) >= 8; d = d[8+4*int(d[7]):] {
		got[binary.BigEndian.Uint16(d[2:])] = [2]byte{d[0], d[1]}
	}
	return got
}

func twoSites(generation uint64, own, other, far reserve.AccessState) reserve.PathInfo {
	p := reserve.PathInfo{Generation: generation, Remote: reserve.ActiveNonOptimized}
	for i, s := range []reserve.AccessState{own, other, far} {
		id := uint16(i + 1)
		g := reserve.PortGroup{ID: id, State: s, Preferred: s == reserve.ActiveOptimized, Ports: []uint16{id}, Place: 1 + id/3}
		if far == reserve.Standby || far == reserve.Unavailable || own == reserve.Standby || own == reserve.Unavailable {
			p.Limited, p.Remote, g.MayBe = true, max(own, far), []reserve.AccessState{max(own, far)}
		}
		p.Groups = append(p.Groups, g)
	}
	return p
}

// TestAccessStates: SPC-4 5.16.2.4 (what works in which state), 6.37 (report).
func TestAccessStates(t *testing.T) {
	r := newRig(t, 512).ready()
	const optimized, non, standby, unavailable = reserve.ActiveOptimized, reserve.ActiveNonOptimized, reserve.Standby, reserve.Unavailable
	r.disk.SetPaths(twoSites(1, optimized, non, non))
	tur := make([]byte, 6)
	if got := sense(r.run(tur, 0, nil)); got != "6/2a06" {
		t.Errorf("after a change of states: %s", got)
	}
	if got := r.rtpg(true); got[1] != [2]byte{0x80, 0x83} || got[2] != [2]byte{1, 0x83} || got[3] != [2]byte{1, 0x83} {
		t.Errorf("REPORT TARGET PORT GROUPS: %x", got)
	}
	if d := data(r.run([]byte{0x12, 0, 0, 0, 96, 0}, 96, nil)); d[5]&0x30 != 0x30 {
		t.Errorf("TPGS: INQUIRY has %#x", d[5])
	}
	read := []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}
	for i, x := range []struct {
		state reserve.AccessState
		sense string
		also  []byte // commands that work beside those that always do
	}{
		{standby, "2/040b", []byte{0x4d, 0x5e, 0x1d}},
		{unavailable, "2/040c", nil},
		{reserve.Transitioning, good, []byte{0x4d, 0x5e, 0x1d}},
	} {
		r.disk.SetPaths(twoSites(uint64(2+i), x.state, non, optimized))
		if got := sense(r.run(tur, 0, nil)); got != "6/2a06" {
			t.Fatalf("state %d: %s", x.state, got)
		}
		for what, got := range map[string]string{
			"TEST UNIT READY": sense(r.run(tur, 0, nil)),
			"READ":            sense(r.run(read, 512, nil)),
			"WRITE":           sense(r.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, make([]byte, 512))),
			"VERIFY":          sense(r.run([]byte{0x2f, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, nil)),
		} {
			if got != x.sense {
				t.Errorf("%s in state %d: %s, want %s", what, x.state, got, x.sense)
			}
		}
		for code, cdb := range map[byte][]byte{
			0x12: {0x12, 0, 0, 0, 96, 0}, 0xa0: {0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0}, 0x03: {0x03, 0, 0, 0, 18, 0},
			0xa3: {0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0}, 0xa4: {0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
			0x1a: {0x1a, 0, 0x3f, 0, 255, 0}, 0x4d: {0x4d, 0, 0x40, 0, 0, 0, 0, 0, 255, 0}, 0x5e: {0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0}, 0x1d: {0x1d, 4, 0, 0, 0, 0},
		} {
			want := good
			if (code == 0x4d || code == 0x5e || code == 0x1d) && !bytes.Contains(x.also, []byte{code}) {
				want = x.sense
			}
			if got := sense(r.run(cdb, 256, nil)); got != want {
				t.Errorf("command %#x in state %d: %s, want %s", code, x.state, got, want)
			}
		}
		// What a host asks that finds the disk by such a path, and keeps: its size, its cache, its commands.
		for what, cdb := range map[string][]byte{
			"READ CAPACITY (10)": {0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "READ CAPACITY (16)": {0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0},
			"MODE SENSE (6)": {0x1a, 8, 0x08, 0, 255, 0}, "MODE SENSE (10)": {0x5a, 8, 0x08, 0, 0, 0, 0, 0, 255, 0},
			"REPORT SUPPORTED OPERATION CODES": {0xa3, 0x0c, 1, 0x93, 0, 0, 0, 0, 0, 64, 0, 0},
		} {
			if got := sense(r.run(cdb, 256, nil)); got != good {
				t.Errorf("%s in state %d: %s", what, x.state, got)
			}
		}
		if got := r.rtpg(false); got[1][0] != byte(x.state) || x.state == standby && got[1][1] != 0x87 || x.state == unavailable && got[1][1] != 0x8b {
			t.Errorf("REPORT TARGET PORT GROUPS in state %d: %x", x.state, got)
		}
	}
}

// TestSetTargetPortGroups: SPC-4 6.45, and 5.16.2.5 for who gets the unit attention.
func TestSetTargetPortGroups(t *testing.T) {
	a, b := pair(t)
	const optimized, non = reserve.ActiveOptimized, reserve.ActiveNonOptimized
	a.disk.SetPaths(twoSites(1, optimized, non, non))
	tur := make([]byte, 6)
	for _, r := range []*rig{a, b} {
		if got := sense(r.run(tur, 0, nil)); got != "6/2a06" {
			t.Fatal(got)
		}
	}
	var asked []uint16
	generation := uint64(1)
	a.disk.OnOptimize(func(group uint16) error {
		if asked = append(asked, group); group == 3 {
			return scsi.ErrGroupsNotSet
		}
		states := []reserve.AccessState{non, non, non}
		states[group-1] = optimized
		generation++
		a.disk.SetPaths(twoSites(generation, states[0], states[1], states[2]))
		return nil
	})
	stpg := func(groups ...[2]byte) string {
		list := make([]byte, 4)
		for _, g := range groups {
			list = append(list, g[1], 0, 0, g[0])
		}
		return sense(a.run([]byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, byte(len(list)), 0, 0}, 0, list))
	}
	for _, x := range []struct {
		what, got, want string
	}{
		{"nothing", sense(a.run([]byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, nil)), good},
		{"a header alone", stpg(), "5/2400 field 6"},
		{"half a descriptor", sense(a.run([]byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0}, 0, make([]byte, 10))), "5/2400 field 6"},
		{"a group that is not there", stpg([2]byte{9, 0}), "5/2600 field 6"},
		{"transitioning", stpg([2]byte{2, 0xf}), "5/2600 field 4"},
		{"a reserved state", stpg([2]byte{2, 5}), "5/2600 field 4"},
		{"standby where that is no policy", stpg([2]byte{2, 0}, [2]byte{1, 2}), "5/2600 field 8"},
		{"two of them", stpg([2]byte{2, 0}, [2]byte{1, 0}), "5/2600 field 8"},
		{"the optimized one non-optimized, no other named", stpg([2]byte{1, 1}), "5/2600 field 4"},
		{"as it is", stpg([2]byte{2, 1}), good},
	} {
		if x.got != x.want || len(asked) > 0 {
			t.Errorf("%s: %s, want %s; asked %v", x.what, x.got, x.want, asked)
		}
	}
	if got := stpg([2]byte{2, 0}, [2]byte{1, 1}); got != good || len(asked) != 1 || asked[0] != 2 {
		t.Errorf("group 2: %s, asked %v", got, asked)
	}
	if got := a.rtpg(false); got[1][0] != 1 || got[2][0] != 0x80 {
		t.Errorf("states: %x", got)
	}
	if x, y := sense(a.run(tur, 0, nil)), sense(b.run(tur, 0, nil)); x != good || y != "6/2a06" {
		t.Errorf("who asked is told %s, the other %s", x, y)
	}
	if got := stpg([2]byte{3, 0}); got != "4/670a" {
		t.Errorf("one that fails: %s", got)
	}
	// SPC-4 table 65: it conflicts with another's reservation.
	b.prout(0, 0, 0, 7, 0)
	b.prout(1, reserve.WriteExclusive, 7, 0, 0)
	if got := stpg([2]byte{1, 0}); got != conflict {
		t.Errorf("under another's reservation: %s", got)
	}
}
