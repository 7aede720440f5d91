package scsi_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

// TestPersistentReservations: SPC-4 6.15, 6.16 as bytes; the rules themselves are package reserve's tests.
func TestPersistentReservations(t *testing.T) {
	a, b := pair(t)
	write := []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}
	for _, x := range []struct{ what, got, want string }{
		{"register a", a.prout(0, 0, 0, 0xa1, 1), good},
		{"register b", b.prout(0, 0, 0, 0xb1, 0), good},
		{"wrong key", b.prout(1, reserve.WriteExclusive, 7, 0, 0), conflict},
		{"reserve", a.prout(1, reserve.WriteExclusive, 0xa1, 0, 0), good},
		{"write of the holder", sense(a.run(write, 0, make([]byte, 512))), good},
		{"write of another", sense(b.run(write, 0, make([]byte, 512))), conflict},
		{"read of another", sense(b.run([]byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 512, nil)), good},
		{"TEST UNIT READY of another", sense(b.run(make([]byte, 6), 0, nil)), good},
		{"GET LBA STATUS of another", sense(b.run([]byte{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0}, 24, nil)), good},
		{"START STOP UNIT of another: start", sense(b.run([]byte{0x1b, 0, 0, 0, 1, 0}, 0, nil)), good},
		{"START STOP UNIT of another: stop", sense(b.run([]byte{0x1b, 0, 0, 0, 0, 0}, 0, nil)), conflict},
		{"START STOP UNIT of another: active", sense(b.run([]byte{0x1b, 0, 0, 0, 0x11, 0}, 0, nil)), conflict},
		{"PREVENT ALLOW of another: allow", sense(b.run([]byte{0x1e, 0, 0, 0, 0, 0}, 0, nil)), good},
		{"PREVENT ALLOW of another: prevent", sense(b.run([]byte{0x1e, 0, 0, 0, 1, 0}, 0, nil)), conflict},
		{"release of the wrong type", a.prout(2, reserve.ExclusiveAccess, 0xa1, 0, 0), "5/2604"},
		{"SPEC_I_PT with the ignoring action", a.prout(6, 0, 0, 1, 8), "5/2600 field 20"},
		{"preempt", b.prout(5, reserve.ExclusiveAccess, 0xb1, 0xa1, 0), good},
		{"what the preempted learns", sense(a.run(make([]byte, 6), 0, nil)), "6/2a05"},
		{"read of the preempted", sense(a.run([]byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 512, nil)), conflict},
		{"GET LBA STATUS of the preempted", sense(a.run([]byte{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0}, 24, nil)), conflict},
		{"clear", b.prout(3, 0, 0xb1, 0, 0), good},
		{"replace what isn't lost (5.13.11.3)", b.prout(8, reserve.WriteExclusive, 0, 0xb1, 0), "5/2604"},
		{"the same with a list of 28 bytes", sense(b.run([]byte{0x5f, 8, 1, 0, 0, 0, 0, 0, 28, 0}, 0, make([]byte, 28))), "5/1a00"},
		{"and with another's RESERVE (5.13.3)", sense(a.run([]byte{0x16, 0, 0, 0, 0, 0}, 0, nil)) + b.prout(8, reserve.WriteExclusive, 0, 0xb1, 0) +
			sense(a.run([]byte{0x17, 0, 0, 0, 0, 0}, 0, nil)), good + conflict + good},
		{"action 9", b.prout(9, 0, 0xb1, 0, 0), "5/2400 field 1"},
		{"list of 23 bytes", sense(a.run([]byte{0x5f, 0, 0, 0, 0, 0, 0, 0, 23, 0}, 0, make([]byte, 23))), "5/1a00"},
		{"list of 25 bytes", sense(a.run([]byte{0x5f, 0, 0, 0, 0, 0, 0, 0, 25, 0}, 0, make([]byte, 25))), "5/1a00"},
	} {
		if x.got != x.want {
			t.Errorf("%s: %s, want %s", x.what, x.got, x.want)
		}
	}
}

func TestPersistentReserveInData(t *testing.T) {
	a, b := pair(t)
	a.prout(0, 0, 0, 0xa1, 4) // ALL_TG_PT: at both target ports
	b.prout(0, 0, 0, 0xb1, 1)
	a.prout(1, reserve.ExclusiveAccessRegistrants, 0xa1, 0, 0)
	be := binary.BigEndian
	if d := a.prin(0); be.Uint32(d) != 2 || be.Uint32(d[4:]) != 24 || be.Uint64(d[8:]) != 0xa1 || be.Uint64(d[24:]) != 0xb1 {
		t.Errorf("READ KEYS: %x", d)
	}
	if d := b.prin(1); be.Uint32(d[4:]) != 16 || be.Uint64(d[8:]) != 0xa1 || d[21] != byte(reserve.ExclusiveAccessRegistrants) {
		t.Errorf("READ RESERVATION: %x", d)
	}
	if d := b.prin(2); !bytes.Equal(d, []byte{0, 8, 0x9d, 0xc1, 0xea, 0x01, 0, 0}) {
		t.Errorf("REPORT CAPABILITIES: %x", d)
	}
	d := b.prin(3)
	if be.Uint32(d[4:]) != uint32(len(d)-8) && len(d) != 256 {
		t.Errorf("READ FULL STATUS: %x", d)
	}
	first := d[8:]
	if be.Uint64(first) != 0xa1 || first[12] != 1 || be.Uint16(first[18:]) != 1 || first[24] != 0x45 || string(first[28:28+5]) != "iqn.a" {
		t.Errorf("READ FULL STATUS, first descriptor: %x", first)
	}
	if c := a.run([]byte{0x5e, 0, 0, 0, 0, 0, 0, 0, 4, 0}, 256, nil); len(data(c)) != 4 {
		t.Errorf("allocation length of 4: %x", data(c))
	}
}

// transportID is the iSCSI format with an ISID (SPC-4 7.6.4.6).
func transportID(name string) []byte {
	text := []byte(name + ",i,0x000000000000\x00")
	for len(text)%4 != 0 || len(text) < 20 {
		text = append(text, 0)
	}
	return append([]byte{0x45, 0, 0, byte(len(text))}, text...)
}

func TestRegisterAndMove(t *testing.T) {
	a, b := pair(t)
	a.prout(0, 0, 0, 1, 0)
	a.prout(1, reserve.WriteExclusive, 1, 0, 0)
	id := transportID("iqn.b")
	list := make([]byte, 24)
	list[7], list[15], list[17], list[19], list[23] = 1, 9, 2, 1, byte(len(id))
	list = append(list, id...)
	cdb := []byte{0x5f, 7, 0, 0, 0, 0, 0, 0, byte(len(list)), 0}
	bad := bytes.Clone(list)
	bad[24] = 0x46
	if got := sense(a.run(cdb, 0, bad)); got != "5/2600 field 24" {
		t.Errorf("TransportID of another protocol: %s", got)
	}
	bad = bytes.Clone(list)
	bad[19] = 7
	if got := sense(a.run(cdb, 0, bad)); got != "5/2600 field 18" {
		t.Errorf("unknown target port: %s", got)
	}
	if got := sense(a.run(cdb, 0, list)); got != good {
		t.Fatalf("move: %s", got)
	}
	if got := sense(b.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, make([]byte, 512))); got != good {
		t.Errorf("write of the new holder: %s", got)
	}
	if got := sense(a.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, make([]byte, 512))); got != conflict {
		t.Errorf("write of the old holder: %s", got)
	}
}

// TestReserve6 is SPC-2 7.21 and table 9.
func TestReserve6(t *testing.T) {
	a, b := pair(t)
	for _, x := range []struct {
		who  *rig
		cdb  []byte
		want string
	}{
		{a, []byte{0x16, 0, 0, 0, 0, 0}, good}, {b, []byte{0x16, 0, 0, 0, 0, 0}, conflict}, {b, make([]byte, 6), conflict},
		{b, []byte{0x12, 0, 0, 0, 96, 0}, good}, {b, []byte{0x17, 0, 0, 0, 0, 0}, good}, {b, []byte{0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0}, conflict},
		{a, []byte{0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0}, good}, {a, []byte{0x16, 0x10, 0, 0, 0, 0}, "5/2400 field 1"},
		{a, []byte{0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0}, good}, {b, make([]byte, 6), good},
	} {
		if got := sense(x.who.run(x.cdb, 96, nil)); got != x.want {
			t.Errorf("%x: %s, want %s", x.cdb, got, x.want)
		}
	}
}

// TestWhatReservationsAllow is table 65 of SPC-4 and table 13 of SBC-3: what who is not registered may do under a persistent reservation
// of somebody else, and, by SPC-2 table 9, under another's RESERVE.
func TestWhatReservationsAllow(t *testing.T) {
	a, b := pair(t)
	const always, status, reads, writes = 0, 1, 2, 3 // never in conflict; with RESERVE; with exclusive access, too; with all of them
	names := map[uint16]string{}
	type command struct {
		class int
		cdb   []byte
	}
	var list []command
	add := func(class int, name string, cdb ...byte) {
		sized := make([]byte, 6)
		switch cdb[0] >> 5 {
		case 1, 2:
			sized = make([]byte, 10)
		case 4:
			sized = make([]byte, 16)
		case 5:
			sized = make([]byte, 12)
		}
		copy(sized, cdb)
		names[uint16(sized[0])<<8|uint16(sized[1])] = name
		list = append(list, command{class, sized})
	}
	add(always, "INQUIRY", 0x12)
	add(always, "REPORT LUNS", 0xa0)
	add(always, "REQUEST SENSE", 0x03)
	add(always, "LOG SENSE", 0x4d)
	add(always, "READ CAPACITY (10)", 0x25)
	add(always, "READ CAPACITY (16)", 0x9e, 0x10)
	add(status, "TEST UNIT READY", 0x00)
	add(status, "REPORT TARGET PORT GROUPS", 0xa3, 0x0a)
	add(status, "RECEIVE COPY OPERATING PARAMETERS", 0x84, 0x03)
	add(status, "PERSISTENT RESERVE IN", 0x5e)
	add(reads, "MODE SENSE (6)", 0x1a, 0, 0x08)
	add(reads, "MODE SENSE (10)", 0x5a, 0, 0x08)
	add(reads, "READ DEFECT DATA (10)", 0x37)
	add(reads, "READ DEFECT DATA (12)", 0xb7)
	add(reads, "REPORT SUPPORTED OPERATION CODES", 0xa3, 0x0c)
	add(reads, "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", 0xa3, 0x0d)
	add(reads, "GET LBA STATUS", 0x9e, 0x12)
	add(reads, "PRE-FETCH (10)", 0x34)
	add(reads, "POPULATE TOKEN", 0x83, 0x10)
	add(writes, "SEND DIAGNOSTIC", 0x1d)
	add(writes, "SET TARGET PORT GROUPS", 0xa4, 0x0a)
	add(writes, "EXTENDED COPY (LID1)", 0x83, 0x00)
	add(writes, "WRITE USING TOKEN", 0x83, 0x11)
	add(writes, "COPY OPERATION ABORT", 0x83, 0x1c)
	add(writes, "MODE SELECT (6)", 0x15)
	for reserved, class := range map[string]int{"write exclusive": writes, "exclusive access": reads, "RESERVE": status} {
		switch reserved {
		case "RESERVE":
			a.run([]byte{0x16, 0, 0, 0, 0, 0}, 0, nil)
		default:
			kind := reserve.WriteExclusive
			if class == reads {
				kind = reserve.ExclusiveAccess
			}
			a.prout(6, 0, 0, 0xa1, 0)
			a.prout(1, kind, 0xa1, 0, 0)
		}
		for _, x := range list {
			c := b.run(x.cdb, 0, nil)
			if got := c.Status == scsi.StatusReservationConflict; got != (x.class >= class) {
				t.Errorf("%s, %s: %s", reserved, names[uint16(x.cdb[0])<<8|uint16(x.cdb[1])], sense(c))
			}
		}
		a.prout(3, 0, 0xa1, 0, 0)
		a.run([]byte{0x17, 0, 0, 0, 0, 0}, 0, nil)
	}
}

// TestNothingConflictsToo: SBC-3 table 13. Commands that are about no block conflict like those that are about some.
func TestNothingConflictsToo(t *testing.T) {
	a, b := pair(t)
	empty := make([]byte, 8)
	empty[1] = 6
	none := append(bytes.Clone(empty), make([]byte, 16)...)
	none[1], none[3] = 22, 16
	commands := []struct {
		what  string
		cdb   []byte
		in    uint32
		out   []byte
		reads bool
	}{
		{"READ (10)", []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 512, nil, true},
		{"READ (10) of which nothing is expected", []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, nil, true},
		{"VERIFY (10)", []byte{0x2f, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, nil, true},
		{"WRITE (10)", []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, nil, false},
		{"WRITE (10) of which nothing comes", []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, nil, false},
		{"COMPARE AND WRITE", []byte{0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, nil, false},
		{"ORWRITE", []byte{0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, nil, false},
		{"UNMAP without a list", []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, nil, false},
		{"UNMAP of an empty list", []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 8, 0}, 0, empty, false},
		{"UNMAP of no blocks", []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, 0, none, false},
	}
	for _, kind := range []reserve.Type{reserve.NoReservation, reserve.WriteExclusive, reserve.ExclusiveAccess} {
		if kind != reserve.NoReservation {
			a.prout(6, 0, 0, 0xa1, 0)
			a.prout(1, kind, 0xa1, 0, 0)
		}
		for _, x := range commands {
			want := good
			if kind == reserve.ExclusiveAccess || kind == reserve.WriteExclusive && !x.reads {
				want = conflict
			}
			if got := sense(b.run(x.cdb, x.in, x.out)); got != want {
				t.Errorf("reservation of type %d, %s: %s, want %s", kind, x.what, got, want)
			}
			if got := sense(a.run(x.cdb, x.in, x.out)); got != good {
				t.Errorf("reservation of type %d, %s of the holder: %s", kind, x.what, got)
			}
		}
		a.prout(2, kind, 0xa1, 0, 0)
	}
}
