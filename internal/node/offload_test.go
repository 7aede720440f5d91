package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"dozo/internal/api"
	dozov1 "dozo/internal/api/dozov1"
	"dozo/internal/initiator"
)

// offloadedTransfer is what Windows does for a copy (Offloaded Data Transfer): it asks what there is (pages 00h, 8Fh), reads a
// fragmented file as a token, writes it by the token in parts of the optimal size, each at an offset into the token, and asks after each what came of
// it; what a token can not do it does by itself. Source and destination are volumes, seen through different access servers.
func offloadedTransfer(t *testing.T, ctx context.Context, c *api.Client, n1, n2 *testNode) {
	t.Helper()
	const block = 512
	be := binary.BigEndian
	dial := func(x *testNode, name string) *path {
		v, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: name, SizeBytes: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		return dialPath(t, ctx, x, v.Volume.Iqn, "iqn.1991-05.com.microsoft:host", 0)
	}
	src, dst := dial(n1, "odx1"), dial(n2, "odx2")
	defer func() {
		src.s.Kill()
		dst.s.Kill()
		for _, name := range []string{"odx1", "odx2"} {
			if _, err := c.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: name, Force: true}); err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
		}
	}()
	const good, check = initiator.StatusGood, initiator.StatusCheckCondition

	// What there is.
	pages := dst.wants("page 00h", good, []byte{0x12, 1, 0, 0, 255, 0}, nil, 255)
	if !bytes.Contains(pages[4:], []byte{0x8f}) || !bytes.Contains(pages[4:], []byte{0xb0}) {
		t.Fatalf("pages %x", pages)
	}
	page := dst.wants("page 8Fh", good, []byte{0x12, 1, 0x8f, 2, 0, 0}, nil, 512)
	if be.Uint16(page[4:]) != 0 || be.Uint16(page[6:]) != 32 {
		t.Fatalf("page 8Fh does not begin with the limits of tokens: %x", page[:8])
	}
	limits := page[8:40]
	fragments, most, optimal := int(be.Uint16(limits[6:])), be.Uint64(limits[16:]), be.Uint64(limits[24:])
	if fragments < 4 || most < 2048 || optimal < 64 || be.Uint32(limits[12:]) == 0 || be.Uint32(limits[12:]) > be.Uint32(limits[8:]) {
		t.Fatalf("limits: %x", limits)
	}

	content := make([]byte, 256<<10) // little: what is deleted leaves no large files
	for i := range content {
		content[i] = byte(i>>9) + byte(i)*byte(i>>13)
	}
	src.wants("write of the source", good, []byte{0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0}, content, 0)
	list := uint32(0x8000)
	command := func(action byte, head int, ranges [][2]uint32, change func(p []byte)) ([]byte, []byte) {
		p := make([]byte, head)
		for _, r := range ranges {
			p = be.AppendUint64(p, uint64(r[0]))
			p = append(be.AppendUint32(p, r[1]), 0, 0, 0, 0)
		}
		be.PutUint16(p[head-2:], uint16(16*len(ranges)))
		be.PutUint16(p, uint16(len(p)-2))
		change(p)
		list++
		cdb := make([]byte, 16)
		cdb[0], cdb[1] = 0x83, action
		be.PutUint32(cdb[6:], list)
		be.PutUint32(cdb[10:], uint32(len(p)))
		return cdb, p
	}
	// told asks what came of the last command, as long as it is under way.
	told := func(p *path, action byte) (d []byte) {
		t.Helper()
		cdb := make([]byte, 16)
		cdb[0], cdb[1] = 0x84, 7
		be.PutUint32(cdb[2:], list)
		be.PutUint32(cdb[10:], 1024)
		eventually(t, "the operation does not end", func() error {
			d = p.wants("RECEIVE ROD TOKEN INFORMATION", good, cdb, nil, 1024)
			if len(d) < 36 || d[4] != action || d[15] != 0xf1 {
				t.Fatalf("RECEIVE ROD TOKEN INFORMATION: %x", d)
			}
			if d[5]&0xf0 == 0x10 {
				return fmt.Errorf("status %02x, again in %d ms", d[5], be.Uint32(d[8:]))
			}
			return nil
		})
		return d
	}
	count := func(d []byte) uint32 { return uint32(be.Uint64(d[16:])) }
	const immediate, deleted = 1, 2
	read := func(flags byte, ranges ...[2]uint32) []byte {
		t.Helper()
		cdb, p := command(0x10, 16, ranges, func(p []byte) { p[2] = flags })
		src.wants("POPULATE TOKEN", good, cdb, p, 0)
		d := told(src, 0x10)
		n := uint32(0)
		for _, r := range ranges {
			n += r[1]
		}
		if d[5] != 1 || count(d) != n || len(d) != 32+4+2+512 || be.Uint32(d[32:]) != 514 {
			t.Fatalf("offload read: %x", d[:min(len(d), 40)])
		}
		return bytes.Clone(d[38:])
	}
	write := func(flags byte, token []byte, offset uint32, ranges ...[2]uint32) string {
		t.Helper()
		cdb, p := command(0x11, 536, ranges, func(p []byte) {
			p[2] = flags
			be.PutUint32(p[12:], offset)
			copy(p[16:], token)
		})
		return dst.sense(0, cdb, p, 0)
	}
	same := func(what string, lba uint32, want []byte) {
		t.Helper()
		cdb := []byte{0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		be.PutUint32(cdb[6:], lba)
		be.PutUint32(cdb[10:], uint32(len(want)/block))
		if got := dst.wants("read", good, cdb, nil, len(want)); !bytes.Equal(got, want) {
			t.Errorf("%s is something else", what)
		}
	}

	// A file of four fragments, in and out of order, to three others.
	file := [][2]uint32{{400, 64}, {8, 8}, {125, 126}, {256, 7}}
	var want []byte
	for _, f := range file {
		want = append(want, content[f[0]*block:(f[0]+f[1])*block]...)
	}
	for i, flags := range []byte{0, immediate} {
		token := read(flags, file...)
		to := [][2]uint32{{8192, 60}, {12000, 129}, {100, 16}}
		offset := uint32(0)
		for _, r := range to {
			if got := write(flags, token, offset, r); got != "good" {
				t.Fatalf("offload write %d at %d: %s", i, offset, got)
			}
			d := told(dst, 0x11)
			if d[5] != 1 || count(d) != r[1] || len(d) != 36 || be.Uint32(d[8:]) != 0xfffffffe {
				t.Fatalf("offload write %d at %d: %x", i, offset, d)
			}
			same(fmt.Sprintf("what was written at %d of the token", offset), r[0], want[offset*block:(offset+r[1])*block])
			offset += r[1]
		}
		if offset != uint32(len(want)/block) {
			t.Fatalf("%d blocks of %d", offset, len(want)/block)
		}
		// The token has less than is asked for: what there is is written, and told (SBC-5 4.28.2).
		got := write(flags, token, offset-28, [2]uint32{15000, 100})
		if flags == 0 && got != "a/0d04" || flags != 0 && got != "good" {
			t.Errorf("beyond the token: %s", got)
		}
		if d := told(dst, 0x11); d[5] != 3 || count(d) != 28 || d[12] != 2 || be.Uint32(d[32+3:]) != 28 || be.Uint16(d[32+12:]) != 0x0d04 {
			t.Errorf("beyond the token: %x", d)
		}
		same("the end of the token", 15000, want[(offset-28)*block:])
		// Ended by the last who uses it.
		for _, x := range []string{"good", "5/2309"} {
			if got := write(deleted, token, 0, [2]uint32{15000, 8}); got != x {
				t.Errorf("with DEL_TKN: %s, want %s", got, x)
			}
		}
	}

	// Zeros, in several ranges.
	zero := make([]byte, 512)
	copy(zero, []byte{0xff, 0xff, 0, 1, 0, 0, 1, 0xf8})
	if got := write(0, zero, 0, [2]uint32{8192, 60}, [2]uint32{12000, 3}, [2]uint32{100, 8}); got != "good" {
		t.Errorf("zeros: %s", got)
	}
	if d := told(dst, 0x11); d[5] != 1 || count(d) != 71 {
		t.Errorf("zeros: %x", d)
	}
	same("what was zeroed", 8192, make([]byte, 60*block))
	same("what was zeroed in part", 12000, append(make([]byte, 3*block), want[63*block:68*block]...))

	// Why a token is refused. Each is told at another access server, which may be the owner or not.
	token := read(0, file...)
	bad := bytes.Clone(token)
	bad[300] ^= 4
	if got := write(0, bad, 0, [2]uint32{8192, 8}); got != "5/2305" {
		t.Errorf("another token than it was: %s", got)
	}
	src.wants("write into the source", good, []byte{0x2a, 0, 0, 0, 0, 128, 0, 0, 8, 0}, content[128*block:136*block], 0)
	got := write(0, token, 0, [2]uint32{8192, 8})
	if got != "5/2308" {
		t.Errorf("after a write to the source: %s", got)
	}
	if d := told(dst, 0x11); d[5] != 2 || count(d) != 0 || d[12] != byte(check) || be.Uint16(d[32+12:]) != 0x2308 {
		t.Errorf("after a write to the source: %x", d)
	}
	same("what no token was good for", 8192, make([]byte, 8*block))
	token = read(immediate, file...)
	for group, state := range src.states(0) { // the volume gets another owner
		if state&0x0f != 1 {
			continue
		}
		eventually(t, "the volume is handed over", func() error { // GOOD is the answer, too, where it stays for a while
			if got := src.sense(0, []byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8}, []byte{0, 0, 0, 0, 0, 0, byte(group >> 8), byte(group)}, 0); got != "good" {
				t.Fatalf("SET TARGET PORT GROUPS: %s", got)
			}
			if got := src.states(0)[group] & 0x0f; got != 0 {
				return fmt.Errorf("its state is %d", got)
			}
			return nil
		})
		break
	}
	if got := write(0, token, 0, [2]uint32{8192, 8}); got != "5/2308" {
		t.Errorf("after a hand-over of the source: %s", got)
	}
}
