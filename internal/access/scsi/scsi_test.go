package scsi_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

type rig struct {
	t     testing.TB
	disk  *iscsitest.Disk
	nexus *scsi.Nexus
}

func newRig(t testing.TB, blockSize uint32) *rig { return newRigNamed(t, "iqn.target", blockSize) }

func newRigNamed(t testing.TB, name string, blockSize uint32) *rig {
	d := iscsitest.NewDisk("d", 16<<20, blockSize)
	who := &scsi.Initiator{Nexus: reserve.NexusID{Initiator: "iqn.a", Port: 1}}
	r := &rig{t: t, disk: d, nexus: scsi.NewNexus(who, name, scsi.UnitConfig{LUN: 0, Disk: d}, scsi.UnitConfig{LUN: 300, Disk: d})}
	return r
}

func (r *rig) ready() *rig {
	r.run(make([]byte, 6), 0, nil)
	return r
}

// run executes a CDB at LUN 0.
func (r *rig) run(cdb []byte, in uint32, out []byte) *scsi.Command { return r.runAt(0, cdb, in, out) }

func (r *rig) runAt(lun uint64, cdb []byte, in uint32, out []byte) *scsi.Command {
	c := new(scsi.Command)
	finished := 0
	c.Finish = func(*scsi.Command) { finished++ }
	copy(c.CDB[:], cdb)
	c.LUN, c.ExpectIn, c.ExpectOut = lun, in, uint32(len(out))
	c.Request.Initiator = r.nexus.Initiator()
	r.nexus.Prepare(c)
	r.nexus.Allocate(c)
	room := 0
	for _, b := range c.Out {
		copy(b, out[min(room, len(out)):])
		room += len(b)
	}
	if room != c.FetchOut && !c.Failed() {
		r.t.Fatalf("%x: %d bytes of room, %d wanted", cdb, room, c.FetchOut)
	}
	r.nexus.Execute(c)
	if finished != 1 {
		r.t.Fatalf("%x finished %d times", cdb, finished)
	}
	return c
}

// start begins a CDB at LUN 0; the channel is closed once it has finished.
func (r *rig) start(cdb, out []byte) (*scsi.Command, chan struct{}) {
	c := &scsi.Command{ExpectOut: uint32(len(out))}
	copy(c.CDB[:], cdb)
	done := make(chan struct{})
	c.Finish = func(*scsi.Command) { close(done) }
	c.Request.Initiator = r.nexus.Initiator()
	r.nexus.Prepare(c)
	r.nexus.Allocate(c)
	for _, b := range c.Out {
		out = out[copy(b, out):]
	}
	r.nexus.Execute(c)
	return c, done
}

func sense(c *scsi.Command) string {
	if c.Status != scsi.StatusCheckCondition {
		return fmt.Sprintf("status %#x", byte(c.Status))
	}
	s := fmt.Sprintf("%x/%04x", c.Sense[2]&15, binary.BigEndian.Uint16(c.Sense[12:]))
	if c.Sense[15]&0x80 != 0 {
		s += fmt.Sprintf(" field %d", binary.BigEndian.Uint16(c.Sense[16:]))
	}
	return s
}

func data(c *scsi.Command) []byte { return bytes.Join(c.In, nil) }

func TestSense(t *testing.T) {
	r := newRig(t, 512)
	if got := sense(r.run(make([]byte, 6), 0, nil)); got != "6/2900" {
		t.Errorf("first command: %s", got)
	}
	for _, x := range []struct {
		what string
		cdb  []byte
		want string
	}{
		{"ready", []byte{0, 0, 0, 0, 0, 0}, "status 0x0"},
		{"unknown operation", []byte{0xc1}, "5/2000"},
		{"variable length CDB", []byte{0x7f, 0, 0, 0, 0, 0, 0, 24}, "5/2000"},
		{"unknown service action", []byte{0x9e, 0x1f}, "5/2400 field 1"},
		{"RDPROTECT", []byte{0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0}, "5/2400 field 1"},
		{"NACA", []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4}, "5/2400 field 9"},
		{"past the end", []byte{0x28, 0, 0, 0, 0x80, 0, 0, 0, 1, 0}, "5/2100"},
		{"over the end", []byte{0x28, 0, 0, 0, 0x7f, 0xff, 0, 0, 2, 0}, "5/2100"},
		{"LBA near 2^64", append([]byte{0x88, 0}, bytes.Repeat([]byte{0xff}, 12)...), "5/2100"},
		{"page without EVPD", []byte{0x12, 0, 1, 0, 255, 0}, "5/2400 field 2"},
		{"unknown VPD page", []byte{0x12, 1, 0xc5, 0, 255, 0}, "5/2400 field 2"},
		{"saved pages", []byte{0x1a, 0, 0xff, 0, 255, 0}, "status 0x0"},
		{"unknown mode page", []byte{0x1a, 0, 0x19, 0, 255, 0}, "5/2400 field 2"},
		{"eject", []byte{0x1b, 0, 0, 0, 2, 0}, "5/2400 field 4"},
		{"start", []byte{0x1b, 0, 0, 0, 1, 0}, "status 0x0"},
		{"write without data", []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "status 0x0"},
		{"BYTCHK 10b", []byte{0x2f, 4, 0, 0, 0, 0, 0, 0, 1, 0}, "5/2400 field 1"},
		{"unmap announced too short", []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, "5/0e03"},
	} {
		if got := sense(r.run(x.cdb, 512, nil)); got != x.want {
			t.Errorf("%s: %s, want %s", x.what, got, x.want)
		}
	}
	if got := sense(r.runAt(7<<48, []byte{0x28}, 0, nil)); got != "5/2500" {
		t.Errorf("absent LUN: %s", got)
	}
	if c := r.runAt(7<<48, []byte{0x12, 0, 0, 0, 96, 0}, 96, nil); data(c)[0] != 0x7f {
		t.Errorf("INQUIRY of an absent LUN: %x", data(c))
	}
	if c := r.run([]byte{0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}, 256, nil); !bytes.Equal(data(c), []byte{0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}[:8:8]) && len(data(c)) != 24 {
		t.Errorf("REPORT LUNS: %x", data(c))
	} else if lun, ok := scsi.LUNNumber(binary.BigEndian.Uint64(data(c)[16:])); !ok || lun != 300 {
		t.Errorf("second LUN %d, %v", lun, ok)
	}
}

// TestEveryDiskError walks the sentinels: each has a status, none is silently good.
// TestReportLUNsOfNone: SPC-4 6.33: who asks for all logical units is told of one at least.
func TestReportLUNsOfNone(t *testing.T) {
	r := newRig(t, 512).ready()
	r.nexus.SetUnits()
	for selected, want := range map[byte]int{0x00: 0, 0x01: 0, 0x02: 8} {
		d := data(r.run([]byte{0xa0, 0, selected, 0, 0, 0, 0, 0, 0, 64, 0, 0}, 64, nil))
		if len(d) != 8+want || int(d[3]) != want || !bytes.Equal(d[4:], make([]byte, 4+want)) {
			t.Errorf("SELECT REPORT %02x: %x", selected, d)
		}
	}
}

// TestFirstInvalidLBA: SBC-3 4.18.1: the INFORMATION field has it.
func TestFirstInvalidLBA(t *testing.T) {
	r := newRig(t, 512).ready() // 32768 blocks
	list := []byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0xff, 0, 0, 0, 2, 0, 0, 0, 0}
	for _, x := range []struct {
		what string
		cdb  []byte
		out  []byte
		want uint32
	}{
		{"READ over the end", []byte{0x28, 0, 0, 0, 0x7f, 0xff, 0, 0, 2, 0}, nil, 0x8000},
		{"READ behind it", []byte{0x28, 0, 0, 1, 0, 0, 0, 0, 2, 0}, nil, 0x10000},
		{"UNMAP", []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, list, 0x8000},
		{"GET LBA STATUS", []byte{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0x80, 7, 0, 0, 0, 24, 0, 0}, nil, 0x8007},
		{"WRITE SAME of nothing", []byte{0x41, 0, 0, 0, 0x80, 9, 0, 0, 0, 0}, nil, 0x8009},
	} {
		c := r.run(x.cdb, 512, x.out)
		if got := sense(c); got != "5/2100" || c.Sense[0] != 0xf0 || binary.BigEndian.Uint32(c.Sense[3:]) != x.want {
			t.Errorf("%s: %s, %x", x.what, got, c.Sense)
		}
	}
	// One that doesn't fit fixed format sense data is not told there.
	if c := r.run(append([]byte{0x88, 0}, append(bytes.Repeat([]byte{0xff}, 8), 0, 0, 0, 1, 0, 0)...), 512, nil); sense(c) != "5/2100" || c.Sense[0] != 0x70 {
		t.Errorf("LBA near 2^64: %x", c.Sense)
	}
}

func TestEveryDiskError(t *testing.T) {
	r := newRig(t, 512).ready()
	for err, want := range map[error]string{
		scsi.ErrStale: "status 0x8", scsi.ErrBusy: "status 0x8", scsi.ErrQueueFull: "status 0x28",
		scsi.ErrReservationConflict: "status 0x18", scsi.ErrNotReady: "2/0401", scsi.ErrTransition: "2/040a",
		scsi.ErrStandby: "2/040b", scsi.ErrUnavailable: "2/040c", scsi.ErrNoSpace: "7/2707",
		scsi.ErrWriteProtected: "7/2700", scsi.ErrAborted: "b/0000", scsi.ErrTransfer: "b/4705",
		scsi.ErrOutOfRange: "5/2100", scsi.ErrForked: "5/2500", scsi.ErrNotSupported: "5/2000",
		scsi.ErrMedium: "3/1100", scsi.ErrWriteFailed: "3/0c00", scsi.ErrInternal: "4/4400",
		errors.New("unknown"): "4/4400",
	} {
		r.disk.SetFault(func(iscsitest.Op, scsi.Request, int64, int) error { return fmt.Errorf("wrapped: %w", err) })
		for what, c := range map[string]*scsi.Command{
			"read":    r.run([]byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 512, nil),
			"write":   r.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, make([]byte, 512)),
			"flush":   r.run([]byte{0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, nil),
			"zero":    r.run([]byte{0x93, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, 0, make([]byte, 512)),
			"compare": r.run([]byte{0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, 0, make([]byte, 1024)),
		} {
			if got := sense(c); got != want {
				t.Errorf("%v at %s: %s, want %s", err, what, got, want)
			}
		}
	}
	r.disk.SetFault(func(iscsitest.Op, scsi.Request, int64, int) error {
		return &scsi.MediumError{Offset: 9 * 512, Err: errors.New("sum")}
	})
	c := r.run([]byte{0x28, 0, 0, 0, 0, 8, 0, 0, 4, 0}, 2048, nil)
	if sense(c) != "3/1100" || c.Sense[0] != 0xf0 || binary.BigEndian.Uint32(c.Sense[3:]) != 9 {
		t.Errorf("medium error: %s, sense %x", sense(c), c.Sense)
	}
}

// TestLargeTransfers crosses the record size.
func TestLargeTransfers(t *testing.T) {
	r := newRig(t, 512).ready()
	n := 2*scsi.RecordMax + 1024
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(i * 7 >> 3)
	}
	cdb := make([]byte, 16)
	cdb[0] = 0x8a
	cdb[9] = 3
	binary.BigEndian.PutUint32(cdb[10:], uint32(n/512))
	if c := r.run(cdb, 0, out); c.Status != 0 {
		t.Fatal(sense(c))
	}
	cdb[0] = 0x88
	if c := r.run(cdb, uint32(n), nil); c.Status != 0 || !bytes.Equal(data(c), out) {
		t.Fatal(sense(c), "or data came back different")
	}
	cdb[0], cdb[1] = 0x8f, 2 // VERIFY, BYTCHK 01b
	if c := r.run(cdb, 0, out); c.Status != 0 {
		t.Fatal(sense(c))
	}
	out[n-5]++
	if c := r.run(cdb, 0, out); sense(c) != "e/1d00" || binary.BigEndian.Uint32(c.Sense[3:]) != uint32(n-5) {
		t.Errorf("changed byte: %s %x", sense(c), c.Sense)
	}
}

func TestWriteSameAndUnmap(t *testing.T) {
	r := newRig(t, 512).ready()
	block := bytes.Repeat([]byte{1, 2, 3, 4}, 128)
	ws := []byte{0x93, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0} // 4096 blocks from LBA 1: over a record
	if c := r.run(ws, 0, block); c.Status != 0 {
		t.Fatal(sense(c))
	}
	read := func(lba byte) []byte { return data(r.run([]byte{0x28, 0, 0, 0, 0, lba, 0, 0, 1, 0}, 512, nil)) }
	if !bytes.Equal(read(1), block) || !bytes.Equal(read(200), block) || bytes.Equal(read(0), block) {
		t.Error("the pattern is not where it belongs")
	}
	list := make([]byte, 8+32)
	binary.BigEndian.PutUint16(list, 38)
	binary.BigEndian.PutUint16(list[2:], 32)
	binary.BigEndian.PutUint64(list[8:], 2)
	binary.BigEndian.PutUint32(list[16:], 9)
	binary.BigEndian.PutUint64(list[24:], 1<<40)
	binary.BigEndian.PutUint32(list[32:], 1)
	cdb := []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0}
	if c := r.run(cdb, 0, list); sense(c) != "5/2100" || !bytes.Equal(read(2), block) {
		t.Errorf("a list with a bad range: %s, or the good one was done", sense(c))
	}
	binary.BigEndian.PutUint64(list[24:], 20)
	if c := r.run(cdb, 0, list); c.Status != 0 {
		t.Fatal(sense(c))
	}
	for lba, zero := range map[byte]bool{1: false, 2: true, 10: true, 11: false, 20: true, 21: false} {
		if bytes.Equal(read(lba), make([]byte, 512)) != zero {
			t.Errorf("LBA %d: zero is not %v", lba, zero)
		}
	}
	status := data(r.run([]byte{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 40, 0, 0}, 40, nil))
	if len(status) != 24 || binary.BigEndian.Uint64(status[8:]) != 0x2000 || status[20] != 1 {
		t.Errorf("GET LBA STATUS past the data: %x", status)
	}
}

// scattered is a disk whose map changes with every block, or is known a block at a time only.
type scattered struct {
	*iscsitest.Disk
	same  bool
	asked int
	fail  int // the look-up that fails
}

func (d *scattered) Provisioned(off int64, done func(bool, int64, error)) {
	if d.asked++; d.asked == d.fail {
		done(false, 0, scsi.ErrNotReady)
		return
	}
	done(d.same || off/512%2 == 0, 512, nil)
}

// TestLBAStatus: SBC-3 5.5: descriptors are without gaps, as many as fit, and what one command looks up is bounded.
func TestLBAStatus(t *testing.T) {
	r := newRig(t, 512)
	d := &scattered{Disk: r.disk}
	r.nexus = scsi.NewNexus(r.nexus.Initiator(), "iqn.target", scsi.UnitConfig{LUN: 0, Disk: d})
	r.ready()
	get := func(allocation byte) *scsi.Command {
		d.asked = 0
		return r.run([]byte{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, allocation, 0, 0, 0}, uint32(allocation)<<8, nil)
	}
	list := data(get(16))
	if len(list) != 8+64*16 || int(binary.BigEndian.Uint32(list)) != len(list)-4 || d.asked > 65 {
		t.Fatalf("%d bytes after %d look-ups: %x", len(list), d.asked, list[:8])
	}
	for i := range 64 {
		e := list[8+16*i:]
		if lba := 5 + i; binary.BigEndian.Uint64(e) != uint64(lba) || binary.BigEndian.Uint32(e[8:]) != 1 || int(e[12]) != lba%2 {
			t.Errorf("descriptor %d: %x", i, e[:16])
		}
	}
	if list := data(get(1)); len(list) != 8+15*16 || d.asked > 16 {
		t.Errorf("%d bytes of 256 after %d look-ups", len(list), d.asked)
	}
	d.same = true
	if list := data(get(16)); len(list) != 24 || int(binary.BigEndian.Uint32(list[16:])) != d.asked || d.asked == 0 || d.asked > 256 {
		t.Errorf("%x after %d look-ups", list, d.asked)
	}
	d.fail = 3
	if got := sense(get(16)); got != "2/0401" {
		t.Errorf("a look-up that fails: %s", got)
	}
}

func TestAttentions(t *testing.T) {
	r := newRig(t, 512).ready()
	tur := make([]byte, 6)
	r.disk.SetGeometry(func(g *scsi.Geometry) { g.Blocks *= 2 })
	if c := r.run([]byte{0x12, 0, 0, 0, 96, 0}, 96, nil); c.Status != 0 {
		t.Error("INQUIRY was refused because of a unit attention")
	}
	if got := sense(r.run(tur, 0, nil)); got != "6/2a09" {
		t.Errorf("after a resize: %s", got)
	}
	r.nexus.Post(0, reserve.LUNsChanged)
	c := r.run([]byte{0x03, 0, 0, 0, 18, 0}, 18, nil)
	if d := data(c); c.Status != 0 || d[2] != 6 || d[12] != 0x3f || d[13] != 0x0e {
		t.Errorf("REQUEST SENSE: %x", d)
	}
	// SPC-4 7.8.7: LUICLR: what one unit has reported, none reports again.
	other := iscsitest.NewDisk("other", 1<<20, 512)
	r.nexus.SetUnits(scsi.UnitConfig{Disk: r.disk}, scsi.UnitConfig{LUN: 1, Disk: other}) // raises it at LUN 0
	at1 := uint64(1) << 48
	if got := sense(r.runAt(at1, tur, 0, nil)); got != "6/2900" {
		t.Errorf("a new unit: %s", got)
	}
	r.nexus.Post(1, reserve.LUNsChanged)
	if got := sense(r.run(tur, 0, nil)) + ", " + sense(r.runAt(at1, tur, 0, nil)); got != "6/3f0e, "+good {
		t.Errorf("after a change of the list of units: %s", got)
	}
	r.disk.SetPaths(reserve.PathInfo{Generation: 5, Groups: []reserve.PortGroup{{ID: 1, State: reserve.ActiveNonOptimized, Ports: []uint16{1}}}})
	if got := sense(r.run(tur, 0, nil)); got != "6/2a06" {
		t.Errorf("after a path change: %s", got)
	}
	if c := r.run([]byte{0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}, 256, nil); len(data(c)) != 16 || data(c)[4] != 1 {
		t.Errorf("REPORT TARGET PORT GROUPS: %x", data(c))
	}
	r.disk.SetGeometry(func(g *scsi.Geometry) { g.ReadOnly, g.VolatileCache, g.AlwaysDurable = true, false, true })
	if got := sense(r.run(tur, 0, nil)); got != "6/2a01" {
		t.Errorf("after WCE has become one that can't be changed: %s", got)
	}
	if got := sense(r.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 0, make([]byte, 512))); got != "7/2700" {
		t.Errorf("write to a read-only disk: %s", got)
	}
	mode := data(r.run([]byte{0x1a, 8, 8, 0, 255, 0}, 255, nil))
	if mode[2]&0x80 == 0 || mode[4+2]&4 != 0 {
		t.Errorf("mode data %x of a read-only disk without cache", mode)
	}
	if c := r.run([]byte{0x15, 0x10, 0, 0, byte(len(mode)), 0}, 0, mode); c.Status != 0 {
		t.Errorf("MODE SELECT of what is: %s", sense(c))
	}
	mode[4+2] ^= 4
	if got := sense(r.run([]byte{0x15, 0x10, 0, 0, byte(len(mode)), 0}, 0, mode)); got != "5/2600 field 6" {
		t.Errorf("MODE SELECT of a change: %s", got)
	}
}

// TestNoAllocations: the hot path takes everything from pools.
func TestNoAllocations(t *testing.T) {
	r := newRig(t, 512).ready()
	c := new(scsi.Command)
	c.Finish = func(*scsi.Command) {}
	for _, op := range []byte{0x2a, 0x28} {
		n := testing.AllocsPerRun(200, func() {
			c.Reset()
			c.CDB = [16]byte{op, 0, 0, 0, 0, 8, 0, 0, 8}
			c.ExpectIn, c.ExpectOut = 4096, 4096
			r.nexus.Prepare(c)
			r.nexus.Allocate(c)
			r.nexus.Execute(c)
		})
		if c.Status != 0 {
			t.Fatal(sense(c))
		}
		if n > 2 { // the memory disk's own closure, and what its pool loses
			t.Errorf("%#x: %.1f allocations", op, n)
		}
	}
}

// FuzzExecute runs arbitrary CDBs: none panics, finishes other than once, or reaches beyond the disk.
func FuzzExecute(f *testing.F) {
	for _, cdb := range [][]byte{
		{0x12, 1, 0x83, 0, 255}, {0x1a, 0, 0x3f, 0, 255}, {0x28, 8, 0, 0, 0, 1, 0, 0, 8}, {0x2a, 0, 0, 0, 0, 1, 0, 0, 8},
		{0x42, 0, 0, 0, 0, 0, 0, 0, 40}, {0x93, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, {0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1},
		{0xa3, 0x0c, 1, 0x28, 0, 0, 0, 0, 1, 0}, {0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, {0x55, 0x10, 0, 0, 0, 0, 0, 0, 30},
		{0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, {0x8e, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4}, {0x35}, {0x03, 1, 0, 0, 255},
	} {
		f.Add(uint64(0), cdb, uint32(4096), make([]byte, 4096))
	}
	f.Fuzz(func(t *testing.T, lun uint64, cdb []byte, in uint32, out []byte) {
		r := newRig(t, 512).ready()
		end := int64(r.disk.Geometry().Blocks * 512)
		r.disk.SetFault(func(op iscsitest.Op, _ scsi.Request, off int64, n int) error {
			if off < 0 || n < 0 || off > end || int64(n) > end-off || off%512 != 0 || n%512 != 0 {
				t.Errorf("%s of %d at %d", op, n, off)
			}
			return nil
		})
		c := r.runAt(lun, cdb, in, out)
		c.Reset()
	})
}
