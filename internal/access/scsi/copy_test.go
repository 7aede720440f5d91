package scsi_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/access/scsi"
)

// segment is a block to block segment descriptor (SPC-4 6.4.6.4).
func segment(src, dst uint16, blocks uint16, from, to uint64) []byte {
	be := binary.BigEndian
	b := []byte{2, 0, 0, 24}
	b = be.AppendUint16(be.AppendUint16(b, src), dst)
	b = be.AppendUint16(append(b, 0, 0), blocks)
	return be.AppendUint64(be.AppendUint64(b, from), to)
}

// target is an identification descriptor with the NAA (SPC-4 6.4.5.6).
func target(d scsi.Disk) []byte {
	b := make([]byte, 32)
	naa := d.Identity().NAA()
	b[0], b[4], b[5], b[7] = 0xe4, 1, 3, 8
	copy(b[8:], naa[:])
	return b
}

func copyList(list byte, targets, segments []byte) []byte {
	b := make([]byte, 16)
	b[0] = list
	binary.BigEndian.PutUint16(b[2:], uint16(len(targets)))
	binary.BigEndian.PutUint32(b[8:], uint32(len(segments)))
	return append(append(b, targets...), segments...)
}

func (r *rig) thirdParty(action byte, list []byte, list4 uint32) string {
	cdb := make([]byte, 16)
	cdb[0], cdb[1] = 0x83, action
	binary.BigEndian.PutUint32(cdb[6:], list4)
	binary.BigEndian.PutUint32(cdb[10:], uint32(len(list)))
	return sense(r.run(cdb, 0, list))
}

// TestExtendedCopy: SPC-4 6.4, 6.5, 6.25.
func TestExtendedCopy(t *testing.T) {
	a, _ := pair(t)
	other := iscsitest.NewDisk("other", 8<<20, 4096)
	a.disk.SetOthers(other)
	pattern := make([]byte, 1<<20)
	for i := range pattern {
		pattern[i] = byte(i>>9) ^ byte(i)
	}
	a.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 8, 0, 0}, 0, pattern)
	targets := append(target(a.disk), target(other)...)
	// Within the disk, overlapping, and to the other one, whose blocks are larger.
	segments := append(segment(0, 0, 2048, 0, 100), segment(0, 1, 2048, 100, 64)...)
	if got := a.thirdParty(0, copyList(5, targets, segments), 0); got != good {
		t.Fatal(got)
	}
	read := func(d *iscsitest.Disk, off int64) (b []byte) {
		d.Read(scsi.Request{}, off, len(pattern), func(r scsi.ReadResult, err error) {
			if err != nil {
				t.Fatal(err)
			}
			b = bytes.Join(r.Buffers(), nil)
			r.Release()
		})
		return b
	}
	if !bytes.Equal(read(a.disk, 100*512), pattern) || !bytes.Equal(read(other, 64*4096), pattern) {
		t.Error("not copied")
	}
	status := data(a.run([]byte{0x84, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0}, 255, nil))
	if len(status) != 12 || status[4] != 1 || status[6] != 2 || binary.BigEndian.Uint32(status[8:]) != 2048 {
		t.Errorf("RECEIVE COPY STATUS: %x", status)
	}
	if got := sense(a.run([]byte{0x84, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0}, 255, nil)); got != "5/2400 field 2" {
		t.Errorf("asked again: %s", got)
	}
	many := bytes.Repeat(segment(0, 0, 1, 0, 0), 65)
	for _, x := range []struct {
		what string
		list []byte
		want string
	}{
		{"cut off", copyList(1, targets, segments)[:60], "5/1a00"},
		{"header alone", make([]byte, 15), "5/1a00"},
		{"unknown target descriptor", copyList(1, append([]byte{0xe0}, target(a.disk)[1:]...), nil), "5/2607"},
		{"unknown segment descriptor", copyList(1, targets, append([]byte{4}, segment(0, 0, 1, 0, 0)[1:]...)), "5/2609"},
		{"too many targets", copyList(1, bytes.Repeat(targets, 9), nil), "5/2606"},
		{"too many segments", copyList(1, targets, many), "5/2608"},
		{"target index", copyList(1, targets, segment(0, 7, 1, 0, 0)), "a/0804"},
		{"a unit that isn't there", copyList(1, append(target(a.disk), target(iscsitest.NewDisk("away", 1<<20, 512))...), segment(0, 1, 1, 0, 0)), "a/0804 field 48"},
		{"past the end", copyList(1, targets, segment(0, 1, 8, 0, 5000)), "a/0000"},
		{"segment of another length", copyList(1, targets, append([]byte{2, 0, 0, 20}, segment(0, 0, 1, 0, 0)[4:24]...)), "5/2600 field 82"},
		{"nothing", nil, good},
	} {
		if got := a.thirdParty(0, x.list, 0); got != x.want {
			t.Errorf("%s: %s, want %s", x.what, got, x.want)
		}
	}
	// SPC-4 5.17.7.4: the sense says which segment failed, and how much of it was left if some of it was copied.
	a.disk.SetFault(func(op iscsitest.Op, _ scsi.Request, off int64, _ int) error {
		if op == iscsitest.OpRead && off >= 3<<20 {
			return scsi.ErrMedium
		}
		return nil
	})
	failing := append(segment(0, 1, 8, 0, 0), segment(0, 1, 4096, 4096, 0)...) // 1 MiB can be read, the next can't
	c := a.run([]byte{0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(16 + len(targets) + len(failing)), 0, 0}, 0, copyList(1, targets, failing))
	if got := sense(c); got != "a/1100" || c.Sense[0] != 0xf0 || binary.BigEndian.Uint32(c.Sense[3:]) != 256 || binary.BigEndian.Uint32(c.Sense[8:]) != 1 {
		t.Errorf("a segment that failed in the middle: %s, %x", got, c.Sense)
	}
	details := data(a.run([]byte{0x84, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0}, 255, nil))
	if len(details) != 52 || details[5] != 2 || binary.BigEndian.Uint32(details[8:]) != 0xfffffffe || details[13] != 20 || details[14] != 18 ||
		binary.BigEndian.Uint64(details[16:]) != 4096+1<<20 || details[25] != 2 || !bytes.Equal(details[32:50], c.Sense[:18]) {
		t.Errorf("RECEIVE COPY STATUS (LID4) of it: %x", details)
	}
	a.disk.SetFault(nil)
	// LID4, SPC-4 6.4.2.
	wide := make([]byte, 48)
	wide[0], wide[3], wide[16], wide[23] = 1, 0x20, 0xff, 9
	one := segment(0xffff, 0, 8, 0, 3000)
	wide[43], wide[45] = byte(len(target(a.disk))), byte(len(one))
	wide = append(append(wide, target(a.disk)...), one...)
	if got := a.thirdParty(1, wide, 0); got != good {
		t.Fatalf("LID4: %s", got)
	}
	status = data(a.run([]byte{0x84, 5, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0}, 255, nil))
	if len(status) != 32 || status[4] != 1 || status[5] != 1 || binary.BigEndian.Uint64(status[16:]) != 4096 {
		t.Errorf("RECEIVE COPY STATUS (LID4): %x", status)
	}
}

// TestCopiesWithinADisk: SPC-4 6.4.6.4. Ranges of one unit are copied by reference but for what is no whole physical
// block, and by data where that can't be done; either way what there is is the same, for any ranges and overlaps.
func TestCopiesWithinADisk(t *testing.T) {
	for _, reference := range []bool{true, false} {
		t.Run(fmt.Sprint("by reference ", reference), func(t *testing.T) {
			a, _ := pair(t)
			if !reference {
				a.disk.NoCopies()
			}
			rng := rand.New(rand.NewPCG(3, 3))
			want := make([]byte, 16<<20)
			for i := range want {
				want[i] = byte(rng.Uint32())
			}
			for off := 0; off < len(want); off += 1 << 20 {
				w, _ := a.disk.NewWrite(int64(off), 1<<20)
				copy(w.Bytes(), want[off:])
				a.disk.Write(scsi.Request{}, w, false, func(err error) {
					if err != nil {
						t.Fatal(err)
					}
				})
			}
			total := uint64(len(want) / 512)
			for i := range 200 {
				n := 1 + rng.Uint64N(40)
				if i%10 == 0 {
					n = 1 + rng.Uint64N(total/2)
				}
				from, to := rng.Uint64N(total-n+1), rng.Uint64N(total-n+1)
				switch i % 4 {
				case 0:
					to = min(total-n, from+rng.Uint64N(20)) // overlapping
				case 1:
					to = from - min(from, rng.Uint64N(20))
				case 2:
					to = min(total-n, to/8*8+from%8) // the same place within physical blocks
				}
				if got := a.thirdParty(0, copyList(5, target(a.disk), segment(0, 0, uint16(n), from, to)), 0); got != good {
					t.Fatal(got)
				}
				copy(want[to*512:(to+n)*512], bytes.Clone(want[from*512:(from+n)*512]))
			}
			for off := 0; off < len(want); off += 1 << 20 {
				a.disk.Read(scsi.Request{}, int64(off), 1<<20, func(r scsi.ReadResult, err error) {
					if err != nil || !bytes.Equal(bytes.Join(r.Buffers(), nil), want[off:off+1<<20]) {
						t.Fatalf("what is at %d differs: %v", off, err)
					}
					r.Release()
				})
			}
			if got := a.disk.Copied(); reference && got < 16<<20 || !reference && got != -1 {
				t.Errorf("%d bytes copied by reference", got)
			}
		})
	}
}

// ranges makes block device range descriptors (SBC-3 5.21.3) behind a header of so many bytes.
func rangeList(head int, list ...[2]uint32) []byte {
	b := make([]byte, head)
	for _, r := range list {
		b = binary.BigEndian.AppendUint64(b, uint64(r[0]))
		b = append(binary.BigEndian.AppendUint32(b, r[1]), 0, 0, 0, 0)
	}
	binary.BigEndian.PutUint16(b[head-2:], uint16(16*len(list)))
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	return b
}

// TestTokens: SBC-3 5.21, 5.50; SPC-4 6.26.
func TestTokens(t *testing.T) {
	a, b := pair(t)
	pattern := bytes.Repeat([]byte("dozo"), 16*128)
	a.run([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 16, 0}, 0, pattern)
	token := func(list uint32) []byte {
		if got := a.thirdParty(0x10, rangeList(16, [2]uint32{0, 10}, [2]uint32{10, 6}), list); got != good {
			t.Fatalf("POPULATE TOKEN: %s", got)
		}
		d := data(a.run([]byte{0x84, 7, 0, 0, 0, byte(list), 0, 0, 0, 0, 0, 0, 4, 0, 0, 0}, 1024, nil))
		if len(d) != 32+4+2+512 || d[4] != 0x10 || d[5] != 1 || binary.BigEndian.Uint64(d[16:]) != 16 {
			t.Fatalf("RECEIVE ROD TOKEN INFORMATION: %d bytes, %x", len(d), d[:min(len(d), 40)])
		}
		return d[38:]
	}
	use := func(r *rig, tok []byte, offset byte, list ...[2]uint32) string {
		p := rangeList(536, list...)
		p[15] = offset
		copy(p[16:], tok)
		return r.thirdParty(0x11, p, 3)
	}
	tok := token(1)
	if got := use(b, tok, 8, [2]uint32{1000, 4}, [2]uint32{2000, 4}); got != good { // by another initiator
		t.Fatal(got)
	}
	if d := data(a.run([]byte{0x28, 0, 0, 0, 7, 208, 0, 0, 4, 0}, 2048, nil)); !bytes.Equal(d, pattern[12*512:16*512]) {
		t.Errorf("written by token: %q", d[:8])
	}
	// SBC-5 4.28.2: what the token has is written; the status and RECEIVE ROD TOKEN INFORMATION say that it was not all.
	if got := use(a, tok, 12, [2]uint32{3000, 2}, [2]uint32{3010, 6}); got != "a/0d04" {
		t.Errorf("more than the token has: %s", got)
	}
	if d := data(a.run([]byte{0x84, 7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0}, 1024, nil)); d[5] != 3 || binary.BigEndian.Uint64(d[16:]) != 4 ||
		binary.BigEndian.Uint16(d[24:]) != 0 || binary.BigEndian.Uint32(d[8:]) != 0xfffffffe || d[12] != 2 || !bytes.Equal(d[32:39], []byte{0xf0, 0, 0xa, 0, 0, 0, 4}) {
		t.Errorf("RECEIVE ROD TOKEN INFORMATION of it: %x", d)
	}
	list := func(change func(p []byte)) []byte {
		p := rangeList(16, [2]uint32{0, 2}, [2]uint32{10, 2})
		change(p)
		return p
	}
	for _, x := range []struct{ what, got, want string }{
		{"a list that is too short by its own word", a.thirdParty(0x10, list(func(p []byte) { p[1] = 29 }), 7), "5/2600 field 0"},
		{"a kind of token that isn't made", a.thirdParty(0x10, list(func(p []byte) { p[2], p[11] = 2, 1 }), 7), "5/2600 field 8"},
		{"a kind of token that is for nobody to ask for", a.thirdParty(0x10, list(func(p []byte) { p[2] = 2 }), 7), "5/2600 field 8"},
		{"a kind of token that doesn't count", a.thirdParty(0x10, list(func(p []byte) { p[11] = 1 }), 7), good},
		{"a range that is cut off", a.thirdParty(0x10, list(func([]byte) {})[:40], 7), good},
		{"nothing of the token", use(a, tok, 16, [2]uint32{3000, 1}), "5/2600 field 8"},
		{"no ranges", use(a, tok, 0), "5/2600 field 0"},
		{"past the end", use(a, tok, 0, [2]uint32{32760, 16}), "5/2100"},
		{"overlapping ranges", use(a, tok, 0, [2]uint32{3000, 4}, [2]uint32{3002, 4}), "5/2600 field 552"},
		{"not a token", use(a, make([]byte, 512), 0, [2]uint32{3000, 4}), "5/230a"},
		{"a token of another type", use(a, append([]byte{0, 1, 0, 0, 0, 0, 1, 0xf8, 0, 0, 0, 0, 0, 0, 0, 0, 0xe4, 0, 0, 0, 1, 3, 0, 8, 0x31}, make([]byte, 487)...), 0, [2]uint32{3000, 4}), "5/2301"},
		{"a token that is none", use(a, append([]byte{0, 0x80, 0, 0, 0, 0, 1, 0xf8}, make([]byte, 504)...), 0, [2]uint32{3000, 4}), "5/2305"},
		{"a token of a unit that isn't there", use(a, append([]byte{0, 0x80, 0, 0, 0, 0, 1, 0xf8, 0, 0, 0, 0, 0, 0, 0, 0, 0xe4, 0, 0, 0, 1, 3, 0, 8, 0x31}, make([]byte, 487)...), 0, [2]uint32{3000, 4}), "a/0d02"},
		{"ranges of the token that overlap", a.thirdParty(0x10, rangeList(16, [2]uint32{0, 2}, [2]uint32{1, 2}), 7), "5/2600 field 32"},
	} {
		if x.got != x.want {
			t.Errorf("%s: %s, want %s", x.what, x.got, x.want)
		}
	}
	// The source changes: the token stands for what was there, so it is good for nothing any more.
	a.run([]byte{0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0}, 0, make([]byte, 512))
	if got := use(a, tok, 0, [2]uint32{1000, 4}); got != "5/2308" {
		t.Errorf("after a write to the source: %s", got)
	}
	zero := make([]byte, 512)
	copy(zero, []byte{0xff, 0xff, 0, 1, 0, 0, 1, 0xf8})
	if got := use(a, zero, 0, [2]uint32{2000, 4}); got != good {
		t.Errorf("zero token: %s", got)
	}
	if d := data(a.run([]byte{0x28, 0, 0, 0, 7, 208, 0, 0, 4, 0}, 2048, nil)); !bytes.Equal(d, make([]byte, 2048)) {
		t.Errorf("zeroed: %q", d[:8])
	}

	// In the background, and ended there (SPC-4 6.3, COPY OPERATION STATUS of 6.24).
	status := func(list byte) byte {
		return data(a.run([]byte{0x84, 5, 0, 0, 0, list, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0}, 64, nil))[5]
	}
	release := a.disk.Hold()
	p := rangeList(536, [2]uint32{2000, 4})
	p[2] = 1 // IMMED
	copy(p[16:], zero)
	if got := a.thirdParty(0x11, p, 9); got != good {
		t.Fatalf("IMMED: %s", got)
	}
	if got := status(9); got != 0x12 {
		t.Errorf("status of a copy in the background: %02x", got)
	}
	abort := &scsi.Command{CDB: [scsi.CDBMax]byte{0x83, 0x1c, 0, 0, 0, 9}}
	ended := make(chan struct{})
	abort.Finish = func(*scsi.Command) { close(ended) }
	abort.Request.Initiator = a.nexus.Initiator()
	a.nexus.Prepare(abort)
	a.nexus.Execute(abort)
	select {
	case <-ended:
		t.Error("COPY OPERATION ABORT is answered while the copy has something under way")
	default:
	}
	release()
	<-ended
	if got := sense(abort); got != good {
		t.Errorf("COPY OPERATION ABORT: %s", got)
	}
	a.disk.Wait()
	if got := status(9); got != 0x60 {
		t.Errorf("status of a copy that was ended: %02x", got)
	}
}

// TestCopiesOfOneUnitByTwoNames: where the ranges overlap they are copied so that nothing is overwritten before it was read, also
// if the unit is not that of the copy manager, and the list names it twice.
func TestCopiesOfOneUnitByTwoNames(t *testing.T) {
	a, _ := pair(t)
	other := iscsitest.NewDisk("other", 16<<20, 512)
	other.NoCopies()
	a.disk.SetOthers(other)
	want := make([]byte, 8<<20)
	for i := range want {
		want[i] = byte(i>>16) ^ byte(i)
	}
	for off := 0; off < len(want); off += 1 << 20 {
		w, _ := other.NewWrite(int64(off), 1<<20)
		copy(w.Bytes(), want[off:])
		other.Write(scsi.Request{}, w, false, func(error) {})
	}
	byEUI := target(other)
	eui := other.Identity().EUI64()
	byEUI[5] = 2
	copy(byEUI[8:], eui[:])
	list := copyList(5, append(target(other), byEUI...), segment(0, 1, 8<<11, 0, 100))
	if got := a.thirdParty(0, list, 0); got != good {
		t.Fatal(got)
	}
	for off := 0; off < len(want); off += 1 << 20 {
		other.Read(scsi.Request{}, int64(off)+100*512, 1<<20, func(r scsi.ReadResult, err error) {
			if err != nil || !bytes.Equal(bytes.Join(r.Buffers(), nil), want[off:off+1<<20]) {
				t.Errorf("what was at %d is something else now: %v", off, err)
			}
			r.Release()
		})
	}
}

// TestCopiesUnderWay: SPC-4 6.4.3.2, 6.22: those without a list identifier are not in each other's way, nobody finds
// them by the number 0, and there are no more at a time than RECEIVE COPY (OPERATING PARAMETERS) says.
func TestCopiesUnderWay(t *testing.T) {
	a, _ := pair(t)
	parameters := data(a.run([]byte{0x84, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0}, 255, nil))
	most := int(binary.BigEndian.Uint16(parameters[34:]))
	with := func(usage, flags, list byte) *scsi.Command {
		p := make([]byte, 48)
		p[0], p[1], p[3], p[15], p[16], p[23] = 1, usage<<3, 0x20, flags, 0xff, list
		one := segment(0xffff, 0xffff, 8, 0, 3000)
		p[45] = byte(len(one))
		p = append(p, one...)
		return a.run([]byte{0x83, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(p)), 0, 0}, 0, p)
	}
	const immediate, goodSense = 1, 2
	begin := func(usage, list byte) *scsi.Command { return with(usage, immediate, list) }
	// SPC-4 6.4.2: nothing runs in the background that nobody can ask for, or that is to say more with its status.
	for _, x := range []struct {
		usage, flags byte
		want         string
	}{{3, immediate, "5/2400"}, {0, immediate | goodSense, "5/2400"}, {0, goodSense, "5/2600 field 15"}, {3, 0, good}} {
		if got := sense(with(x.usage, x.flags, 0)); got != x.want {
			t.Errorf("LIST ID USAGE %d, flags %d: %s, want %s", x.usage, x.flags, got, x.want)
		}
	}
	release := a.disk.Hold()
	for i := range most {
		if got := sense(begin(0, byte(100+i))); got != good {
			t.Fatalf("copy %d: %s", i, got)
		}
	}
	if got := sense(with(3, 0, 0)); got != "status 0x8" {
		t.Errorf("copy %d, without an identifier: %s, want BUSY", most, got)
	}
	if got := sense(begin(0, 9)); got != "status 0x8" {
		t.Errorf("another one with an identifier: %s, want BUSY", got)
	}
	if got := sense(a.run([]byte{0x84, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0}, 64, nil)); got != "5/2400 field 2" {
		t.Errorf("status of list 0: %s", got)
	}
	release()
	a.disk.Wait()
	for _, want := range []string{good, good} { // one after the other: the disk is not held
		if got := sense(begin(0, 9)); got != want {
			t.Errorf("after the others: %s", got)
		}
	}
	release = a.disk.Hold()
	if got := sense(begin(2, 9)) + sense(begin(2, 9)); got != good+"5/0016" {
		t.Errorf("twice with one identifier: %s", got)
	}
	release()
	a.disk.Wait()
	// SPC-4 6.24: a reset forgets what came of copies.
	status := func() string {
		return sense(a.run([]byte{0x84, 5, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0}, 64, nil))
	}
	if got := status(); got != good {
		t.Errorf("status of a copy: %s", got)
	}
	a.nexus.CancelCopies(0, func() {})
	if got := status(); got != "5/2400 field 2" {
		t.Errorf("status of a copy after a reset: %s", got)
	}
}

// TestACopyThatIsAborted: SPC-4 5.17.4.7: COPY OPERATION ABORT ends a command that waits for its copy, and says so.
func TestACopyThatIsAborted(t *testing.T) {
	a, _ := pair(t)
	zero := make([]byte, 512)
	copy(zero, []byte{0xff, 0xff, 0, 1, 0, 0, 1, 0xf8})
	written := rangeList(536, [2]uint32{2000, 4})
	copy(written[16:], zero)
	for action, list := range map[byte][]byte{0x00: copyList(9, target(a.disk), segment(0, 0, 8, 0, 3000)), 0x11: written} {
		release := a.disk.Hold()
		cdb := make([]byte, 16)
		cdb[0], cdb[1], cdb[9], cdb[12], cdb[13] = 0x83, action, 9, byte(len(list)>>8), byte(len(list))
		if action == 0 {
			cdb[9] = 0
		}
		copied, ended := a.start(cdb, list)
		abort, aborted := a.start([]byte{0x83, 0x1c, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil)
		release()
		<-ended
		<-aborted
		if got := sense(copied) + ", " + sense(abort); !strings.HasPrefix(got, "a/2f02") || sense(abort) != good {
			t.Errorf("service action %02x and its COPY OPERATION ABORT: %s", action, got)
		}
	}
}

// TestATokenOutlastsBusy: SBC-3 5.50, DEL_TKN. A WRITE USING TOKEN that was not begun, and is to be sent again, leaves its token.
func TestATokenOutlastsBusy(t *testing.T) {
	a, _ := pair(t)
	if got := a.thirdParty(0x10, rangeList(16, [2]uint32{0, 10}), 1000); got != good {
		t.Fatal(got)
	}
	d := data(a.run([]byte{0x84, 7, 0, 0, 3, 0xe8, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0}, 1024, nil))
	use := rangeList(536, [2]uint32{2000, 10})
	copy(use[16:], d[38:])
	use[2] = 2 // DEL_TKN
	zero := rangeList(536, [2]uint32{4000, 1})
	copy(zero[16:], []byte{0xff, 0xff, 0, 1, 0, 0, 1, 0xf8})
	zero[2] = 1 // IMMED
	release := a.disk.Hold()
	last := ""
	for list := uint32(1); list < 100 && last != "status 0x8"; list++ {
		last = a.thirdParty(0x11, zero, list)
	}
	if got := a.thirdParty(0x11, use, 1001); last != "status 0x8" || got != "status 0x8" {
		t.Errorf("one too many: %s, %s; want BUSY", last, got)
	}
	release()
	a.disk.Wait()
	if got := a.thirdParty(0x11, use, 1001); got != good {
		t.Errorf("sent again: %s", got)
	}
	if got := a.thirdParty(0x11, use, 1002); got != "5/2309" {
		t.Errorf("once more: %s", got)
	}
}

// TestMemoryOfWrites: what a command takes beside its data-out is counted, as far as it is not small.
func TestMemoryOfWrites(t *testing.T) {
	r := newRig(t, 512).ready()
	for _, x := range []struct {
		what string
		cdb  []byte
		out  int
		want int
	}{
		{"WRITE SAME of 4 MiB", []byte{0x41, 0, 0, 0, 0, 0, 0, 0x20, 0, 0}, 512, scsi.RecordMax},
		{"WRITE SAME of 4 KiB", []byte{0x41, 0, 0, 0, 0, 0, 0, 0, 8, 0}, 512, 4096},
		{"WRITE AND VERIFY", []byte{0x2e, 0, 0, 0, 0, 0, 0, 0, 8, 0}, 4096, 4096},
		{"WRITE AND VERIFY, BYTCHK 01b", []byte{0x2e, 2, 0, 0, 0, 0, 0, 0, 8, 0}, 4096, 8192},
	} {
		c := new(scsi.Command)
		c.Finish = func(*scsi.Command) {}
		copy(c.CDB[:], x.cdb)
		c.ExpectOut = uint32(x.out)
		c.Request.Initiator = r.nexus.Initiator()
		if r.nexus.Prepare(c); c.Failed() || c.ReadCost != x.want {
			t.Errorf("%s: %d bytes, want %d; %s", x.what, c.ReadCost, x.want, sense(c))
		}
		c.Reset()
	}
}
