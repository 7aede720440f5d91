package scsi_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/access/scsi"
)

// populate sends POPULATE TOKEN for some ranges.
func (r *rig) populate(list uint32, flags byte, ranges ...[2]uint32) string {
	p := rangeList(16, ranges...)
	p[2] = flags
	return r.thirdParty(0x10, p, list)
}

// told sends RECEIVE ROD TOKEN INFORMATION.
func (r *rig) told(list uint32) (string, []byte) {
	cdb := make([]byte, 16)
	cdb[0], cdb[1] = 0x84, 7
	binary.BigEndian.PutUint32(cdb[2:], list)
	binary.BigEndian.PutUint32(cdb[10:], 1024)
	c := r.run(cdb, 1024, nil)
	return sense(c), data(c)
}

// token makes a token and fetches it.
func (r *rig) token(t *testing.T, list uint32, ranges ...[2]uint32) []byte {
	t.Helper()
	if got := r.populate(list, 0, ranges...); got != good {
		t.Fatalf("POPULATE TOKEN: %s", got)
	}
	got, d := r.told(list)
	if got != good || len(d) != 32+4+2+512 {
		t.Fatalf("RECEIVE ROD TOKEN INFORMATION: %s, %d bytes", got, len(d))
	}
	return bytes.Clone(d[38:])
}

// use sends WRITE USING TOKEN.
func (r *rig) use(list uint32, flags byte, token []byte, ranges ...[2]uint32) string {
	p := rangeList(536, ranges...)
	p[2] = flags
	copy(p[16:], token)
	return r.thirdParty(0x11, p, list)
}

// TestTokenBytes: SPC-4 5.17.6.4, 5.17.6.5.1; SBC-3 6.7.
func TestTokenBytes(t *testing.T) {
	be := binary.BigEndian
	a, _ := pair(t)
	one, two := a.token(t, 1, [2]uint32{0, 10}, [2]uint32{10, 6}), a.token(t, 1, [2]uint32{0, 10}, [2]uint32{10, 6})
	if kind, length := be.Uint32(one), be.Uint16(one[6:]); kind != 0x00800000 || length != 0x1f8 || be.Uint16(one[4:]) != 0 {
		t.Errorf("header: %x", one[:8])
	}
	if bytes.Equal(one[8:16], two[8:16]) {
		t.Errorf("two tokens have the identifier %x", one[8:16])
	}
	creator := target(a.disk)
	creator[30] = 2 // blocks of 512 bytes
	if !bytes.Equal(one[16:48], creator) {
		t.Errorf("creator: %x, want %x", one[16:48], creator)
	}
	if be.Uint64(one[48:]) != 0 || be.Uint64(one[56:]) != 16*512 {
		t.Errorf("number of bytes represented: %x", one[48:64])
	}
	capacity := data(a.run(append([]byte{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32}, 0, 0), 32, nil))
	if want := append(capacity[8:16:16], make([]byte, 24)...); !bytes.Equal(one[96:128], want) {
		t.Errorf("device type specific data: %x, want %x", one[96:128], want)
	}
	page := data(a.run([]byte{0x12, 1, 0x83, 1, 0, 0}, 256, nil))
	device := one[128 : 132+int(one[131])]
	if one[129]&0x3f != 0x28 || one[131] == 0 || !bytes.HasSuffix(page, device) { // the target device, by name
		t.Errorf("target device: %x; page 83h: %x", device, page)
	}
	// SPC-4 5.17.6.5.1: at least 256 bits of the extended data are random.
	same := 0
	for i := 256; i < 480; i++ {
		if one[i] == two[i] {
			same++
		}
	}
	if same > 480-256-32 {
		t.Errorf("%d of 224 bytes are those of another token", same)
	}
	if sum := sha256.Sum256(one[:480]); !bytes.Equal(sum[:], one[480:]) {
		t.Error("the digest is another")
	}

	// A name for which there is no room.
	long := newRigNamed(t, "iqn.2026-11.dev.dozo:"+string(bytes.Repeat([]byte("x"), 190)), 512).ready()
	if tok := long.token(t, 1, [2]uint32{0, 1}); !bytes.Equal(tok[128:132], []byte{0x51, 0xa3, 0, 8}) || tok[132]>>4 != 3 || !bytes.Equal(tok[140:256], make([]byte, 116)) {
		t.Errorf("target device with a long name: %x", tok[128:256])
	} else if got := long.use(2, 0, tok, [2]uint32{100, 1}); got != good {
		t.Errorf("its use: %s", got)
	}
}

// TestTokensThatAreRefused: SPC-4 5.17.6.5.2.3. What made a token invalid is told, at the command and afterwards.
func TestTokensThatAreRefused(t *testing.T) {
	a, b := pair(t)
	other := iscsitest.NewDisk("other", 1<<20, 512)
	a.disk.SetOthers(other)
	zero := make([]byte, 512)
	tok := a.token(t, 1, [2]uint32{0, 16})
	for i := range tok {
		for _, bit := range []byte{0x01, 0x80} {
			bad := bytes.Clone(tok)
			bad[i] ^= bit
			want := "5/2305"
			if i == 6 || i == 7 {
				want = "5/230a"
			}
			if got := b.use(2, 0, bad, [2]uint32{1000, 4}); got != want {
				t.Errorf("bit %02x of byte %d is another: %s, want %s", bit, i, got, want)
			}
		}
	}
	got, d := b.told(2) // SBC-5 4.28.1: it was begun
	if got != good || d[5] != 2 || d[12] != 2 || binary.BigEndian.Uint16(d[32+12:]) != 0x2305 {
		t.Errorf("RECEIVE ROD TOKEN INFORMATION of it: %s, %x", got, d)
	}
	if got := b.use(2, 0, tok, [2]uint32{1000, 4}); got != good {
		t.Errorf("the token itself: %s", got)
	}
	// Another target's: its bytes are nothing that we could judge, unless it says that a unit of ours has made it.
	foreign := func(change func(p []byte)) []byte {
		p := bytes.Clone(tok)
		copy(p[128:], "another target device")
		change(p)
		return p
	}
	for _, x := range []struct {
		what string
		tok  []byte
		want string
	}{
		{"of another target, by one of our units", foreign(func([]byte) {}), "5/2305"},
		{"of a unit that isn't there", foreign(func(p []byte) { p[25]++ }), "a/0d02"},
		{"of an unknown type", foreign(func(p []byte) { p[25]++; p[1] = 0x81 }), "5/2301"},
		{"by a name that is no unit's", foreign(func(p []byte) { p[21] = 8 }), "5/2305"},
		{"nothing", append(bytes.Clone(tok[:8]), zero[8:]...), "5/2305"},
	} {
		if got := b.use(2, 0, x.tok, [2]uint32{1000, 4}); got != x.want {
			t.Errorf("a token %s: %s, want %s", x.what, got, x.want)
		}
	}
	for _, x := range []struct {
		why  error
		want string
	}{{scsi.ErrTokenExpired, "5/2307"}, {scsi.ErrTokenCancelled, "5/2308"}, {scsi.ErrTokenDeleted, "5/2309"}, {scsi.ErrTokenUnknown, "5/2304"}} {
		tok := a.token(t, 1, [2]uint32{0, 16})
		a.disk.EndTokens(x.why)
		if got := b.use(2, 0, tok, [2]uint32{1000, 4}); got != x.want {
			t.Errorf("%v: %s, want %s", x.why, got, x.want)
		}
		if got := b.use(2, 1, tok, [2]uint32{1000, 4}); got != x.want {
			t.Errorf("%v, IMMED: %s, want %s", x.why, got, x.want)
		}
	}
	// It ends in the middle of a copy by reference.
	tok = a.token(t, 1, [2]uint32{0, 4096})
	a.disk.SetFault(func(op iscsitest.Op, _ scsi.Request, _ int64, _ int) error {
		if op == iscsitest.OpCopy {
			a.disk.EndTokens(scsi.ErrTokenExpired)
		}
		return nil
	})
	if got := b.use(2, 0, tok, [2]uint32{8192, 4096}); got != "5/2307" {
		t.Errorf("a token that ends under way: %s", got)
	}
	a.disk.SetFault(func(op iscsitest.Op, _ scsi.Request, _ int64, _ int) error {
		if op == iscsitest.OpToken {
			return scsi.ErrTokenNoRoom
		}
		return nil
	})
	if got := a.populate(1, 0, [2]uint32{0, 16}); got != "5/550d" {
		t.Errorf("one token too many: %s", got)
	}
}

// TestBareTokens: those of a cluster with older nodes have an ID and nothing else, and are good for as long as they live.
func TestBareTokens(t *testing.T) {
	a, b := pair(t)
	a.disk.BareTokens()
	tok := a.token(t, 1, [2]uint32{0, 16})
	if bytes.Equal(tok[128:144], make([]byte, 16)) || !bytes.Equal(tok[144:], make([]byte, 512-144)) || !bytes.Equal(tok[64:128], make([]byte, 64)) {
		t.Errorf("not as older nodes read it: %x", tok)
	}
	if got := b.use(1, 0, tok, [2]uint32{1000, 16}); got != good {
		t.Error(got)
	}
	tok[128]++
	if got := b.use(1, 0, tok, [2]uint32{1000, 16}); got != "5/2304" {
		t.Errorf("another ID: %s", got)
	}
}

// TestTokensInTheBackground: SBC-5 5.12.2, 5.59.2, 4.28.2; SPC-4 5.17.4.3, 6.3, 6.24, 6.26.
func TestTokensInTheBackground(t *testing.T) {
	a, b := pair(t)
	const immediate = 1
	abort := func(list byte) (*scsi.Command, chan struct{}) { return a.start([]byte{0x83, 0x1c, 0, 0, 0, list}, nil) }
	release := a.disk.Hold()
	if got := a.populate(7, immediate, [2]uint32{0, 16}); got != good {
		t.Fatalf("POPULATE TOKEN in the background: %s", got)
	}
	if got, d := a.told(7); got != good || len(d) != 36 || d[4] != 0x10 || d[5] != 0x12 || binary.BigEndian.Uint32(d[8:]) == 0xfffffffe || d[14] != 0 || d[15] != 0xf1 || binary.BigEndian.Uint64(d[16:]) != 0 {
		t.Errorf("while it is made: %s, %x", got, d)
	}
	// SPC-4 5.17.4.2: of those of one nexus.
	if got := a.populate(7, immediate, [2]uint32{0, 16}) + a.use(7, 0, make([]byte, 512), [2]uint32{0, 16}); got != "5/00165/230a" {
		t.Errorf("the same identifier again: %s", got)
	}
	if got, _ := b.told(7); got != "5/2400 field 2" {
		t.Errorf("asked by another nexus: %s", got)
	}
	release()
	a.disk.Wait()
	_, d := a.told(7)
	if len(d) != 38+512 || d[5] != 1 || binary.BigEndian.Uint64(d[16:]) != 16 || binary.BigEndian.Uint32(d[8:]) != 0xfffffffe {
		t.Fatalf("once it is made: %x", d[:min(len(d), 40)])
	}
	tok := bytes.Clone(d[38:])
	if got := a.use(8, immediate, tok, [2]uint32{1000, 16}); got != good {
		t.Fatal(got)
	}
	a.disk.Wait()
	if got, d := a.told(8); got != good || len(d) != 36 || d[4] != 0x11 || d[5] != 1 || binary.BigEndian.Uint64(d[16:]) != 16 {
		t.Errorf("WRITE USING TOKEN in the background: %s, %x", got, d)
	}
	if got := a.use(8, immediate, tok, [2]uint32{1000, 20}); got != good { // more than there is
		t.Fatal(got)
	}
	a.disk.Wait()
	if got, d := a.told(8); got != good || d[5] != 3 || d[12] != 2 || d[14] != 18 || binary.BigEndian.Uint64(d[16:]) != 16 || binary.BigEndian.Uint16(d[32+12:]) != 0x0d04 {
		t.Errorf("more than the token has, in the background: %s, %x", got, d)
	}
	// Ended by COPY OPERATION ABORT, which is answered once nothing is under way; the token is nobody's.
	a.disk.EndTokens(errors.New("not asked for"))
	for _, flags := range []byte{immediate, 0} {
		release = a.disk.Hold()
		var ended chan struct{}
		populate := new(scsi.Command)
		if flags == immediate {
			if got := a.populate(9, flags, [2]uint32{0, 16}); got != good {
				t.Fatal(got)
			}
		} else {
			p := rangeList(16, [2]uint32{0, 16})
			populate, ended = a.start([]byte{0x83, 0x10, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, byte(len(p)), 0, 0}, p)
		}
		c, done := abort(9)
		select {
		case <-done:
			t.Error("COPY OPERATION ABORT is answered while the token is made")
		default:
		}
		release()
		<-done
		a.disk.Wait()
		if got := sense(c); got != good {
			t.Errorf("COPY OPERATION ABORT: %s", got)
		}
		if flags == 0 {
			if <-ended; sense(populate) != "a/2f02" {
				t.Errorf("POPULATE TOKEN that was ended: %s", sense(populate))
			}
		}
		if got, d := a.told(9); got != good || len(d) != 36 || d[5] != 0x60 || d[12] != 0x40 || d[14] != 0 {
			t.Errorf("a token that was not made: %s, %x", got, d)
		}
		if n := a.disk.EndTokens(scsi.ErrTokenUnknown); n != 0 {
			t.Errorf("%d tokens are left", n)
		}
		if c, done = abort(9); sense(c) != "5/2400 field 2" {
			t.Errorf("COPY OPERATION ABORT of what is over: %s", sense(c))
		}
		<-done
	}
	// One that has nothing left to begin when it is to be ended goes through, and says so.
	zero := make([]byte, 512)
	copy(zero, []byte{0xff, 0xff, 0, 1, 0, 0, 1, 0xf8})
	release = nil
	a.disk.SetFault(func(op iscsitest.Op, _ scsi.Request, _ int64, _ int) error {
		if op == iscsitest.OpRead && release == nil { // the first call; the next one is held
			release = a.disk.Hold()
		}
		return nil
	})
	if got := a.use(11, immediate, zero, [2]uint32{1000, 16}); got != good {
		t.Fatal(got)
	}
	last, over := abort(11)
	release()
	<-over
	if got, d := a.told(11); sense(last) != good || got != good || d[5] != 1 || binary.BigEndian.Uint64(d[16:]) != 16 {
		t.Errorf("ended at its end: %s; %s, %x", sense(last), got, d)
	}
	// An error of the background is told by RECEIVE ROD TOKEN INFORMATION alone.
	a.disk.SetFault(func(op iscsitest.Op, _ scsi.Request, _ int64, _ int) error {
		if op == iscsitest.OpToken {
			return scsi.ErrTokenNoRoom
		}
		return nil
	})
	if got := a.populate(10, immediate, [2]uint32{0, 16}); got != good {
		t.Errorf("POPULATE TOKEN that fails in the background: %s", got)
	}
	a.disk.Wait()
	if got, d := a.told(10); got != good || d[5] != 2 || d[12] != 2 || binary.BigEndian.Uint16(d[32+12:]) != 0x550d || binary.BigEndian.Uint32(d[len(d)-4:]) != 0 {
		t.Errorf("afterwards: %s, %x", got, d)
	}
	if got := a.populate(10, immediate, [2]uint32{32760, 16}); got != "5/2100" {
		t.Errorf("past the end, in the background: %s", got)
	}
}

// TestSlowTokens: what takes long before a copy begins is no pause of the copy (rule R9).
func TestSlowTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pair(t)
		other := iscsitest.NewDisk("other", 1<<20, 512)
		b := &rig{t: t, disk: other, nexus: scsi.NewNexus(a.nexus.Initiator(), "iqn.other", scsi.UnitConfig{LUN: 0, Disk: other})}
		tok := b.ready().token(t, 1, [2]uint32{0, 16})
		a.disk.SetOthers(other)
		a.disk.SetDelay(3 * time.Second)
		p := rangeList(536, [2]uint32{1000, 16})
		copy(p[16:], tok)
		c, done := a.start([]byte{0x83, 0x11, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, byte(len(p) >> 8), byte(len(p))}, p)
		a.disk.SetDelay(0)
		if <-done; sense(c) != good {
			t.Errorf("by a token of a unit that takes its time: %s", sense(c))
		}
		a.disk.SetDelay(3 * time.Second)
		if got := a.populate(9, 1, [2]uint32{0, 16}); got != good {
			t.Fatal(got)
		}
		_, done = a.start([]byte{0x83, 0x1c, 0, 0, 0, 9}, nil)
		a.disk.SetDelay(0)
		<-done
		if got, d := a.told(9); got != good || d[5] != 0x60 {
			t.Errorf("a token that took its time, and was not wanted any more: %s, %x", got, d)
		}
	})
}

// TestWhatIsToldOfCopies: SPC-4 6.23 to 6.26, 6.4.3.2.
func TestWhatIsToldOfCopies(t *testing.T) {
	a, _ := pair(t)
	receive := func(action, list byte, allocation uint32) (string, []byte) {
		cdb := []byte{0x84, action, 0, 0, 0, list, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		if action == 4 {
			cdb[2], cdb[5] = list, 0
		}
		binary.BigEndian.PutUint32(cdb[10:], allocation)
		c := a.run(cdb, allocation, nil)
		return sense(c), data(c)
	}
	if got := a.thirdParty(0, copyList(5, target(a.disk), segment(0, 0, 8, 0, 3000)), 0); got != good {
		t.Fatal(got)
	}
	if got, d := receive(7, 5, 64); got != good || len(d) != 36 || d[4] != 0 || d[5] != 1 || d[15] != 0 || binary.BigEndian.Uint64(d[16:]) != 4096 {
		t.Errorf("RECEIVE ROD TOKEN INFORMATION of a copy without tokens: %s, %x", got, d)
	}
	if got, d := receive(4, 5, 64); got != good || !bytes.Equal(d, make([]byte, 4)) {
		t.Errorf("details of a failure that there wasn't: %s, %x", got, d)
	}
	a.token(t, 6, [2]uint32{0, 16})
	if got, _ := receive(4, 6, 64); got != "5/2400 field 2" {
		t.Errorf("details of a failure of POPULATE TOKEN: %s", got)
	}
	if got, _ := receive(7, 6, 0); got != good {
		t.Errorf("without room for an answer: %s", got)
	}
	if got, _ := receive(7, 6, 64); got != "5/2400 field 2" { // 6.26, entry b
		t.Errorf("after that: %s", got)
	}
	// One identifier in two forms of the command.
	release := a.disk.Hold()
	wide := make([]byte, 48)
	wide[0], wide[3], wide[15], wide[16], wide[23] = 1, 0x20, 1, 0xff, 9
	one := segment(0xffff, 0xffff, 8, 0, 3000)
	wide[45] = byte(len(one))
	if got := a.thirdParty(1, append(wide, one...), 0); got != good {
		t.Fatal(got)
	}
	if got := a.thirdParty(0, copyList(9, nil, one), 0) + ", " + a.thirdParty(1, append(wide, one...), 0); got != "5/2600 field 1, 5/0016" {
		t.Errorf("its identifier again, by LID1 and LID4: %s", got)
	}
	release()
	a.disk.Wait()
	// A range of no blocks has no block in common with another.
	if got := a.populate(6, 0, [2]uint32{0, 16}, [2]uint32{8, 0}, [2]uint32{16, 4}); got != good {
		t.Errorf("a range of no blocks within another: %s", got)
	}
}
