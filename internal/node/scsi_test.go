package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"dozo/internal/api"
	dozov1 "dozo/internal/api/dozov1"
	"dozo/internal/initiator"
)

// path is a session of an initiator at one node, and what it sends.
type path struct {
	t *testing.T
	s *initiator.Session
}

func (p *path) run(cdb []byte, out []byte, in int) (initiator.Status, []byte, *initiator.Command) {
	p.t.Helper()
	c := &initiator.Command{LUN: initiator.FlatLUN(0), Out: out}
	copy(c.CDB[:], cdb)
	if in > 0 {
		c.In = make([]byte, in)
	}
	for range 100 {
		if err := p.s.Do(context.Background(), c); err != nil && c.Err != nil {
			p.t.Fatalf("%x: %v", cdb, err)
		}
		if c.Status != 0x08 { // BUSY: rule R9; initiators ask again
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return c.Status, c.In[:c.InLen], c
}

// wants runs a command and holds it to a status.
func (p *path) wants(what string, want initiator.Status, cdb, out []byte, in int) []byte {
	p.t.Helper()
	got, data, c := p.run(cdb, out, in)
	if got != want {
		p.t.Errorf("%s: %s, sense %x; want %s", what, got, c.Sense, want)
	}
	return data
}

func proutList(key, service uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, key)
	return append(binary.BigEndian.AppendUint64(b, service), make([]byte, 8)...)
}

// evicted has an operator clear what a host has reserved that does not come back, by way of either node: the owner's, and
// the other one.
func evicted(t *testing.T, ctx context.Context, cs []*api.Client, stays, goes *path) {
	t.Helper()
	const good, conflict = initiator.StatusGood, initiator.Status(0x18)
	const iqn = "iqn.2026-11.test:gone"
	write, data := []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0}, bytes.Repeat([]byte("dozo"), 1024)
	for i, c := range cs {
		goes.wants("register", good, []byte{0x5f, 0, 0, 0, 0, 0, 0, 0, 24}, proutList(0, 7), 0)
		goes.wants("reserve", good, []byte{0x5f, 1, 3, 0, 0, 0, 0, 0, 24}, proutList(7, 0), 0)
		stays.wants("write beside the reservation", conflict, write, data, 0)
		r, err := c.Reservations.Get(ctx, &dozov1.GetReservationsRequest{Volume: "shared1"})
		if err != nil {
			t.Fatal(err)
		}
		if l := r.Reservations.Registrations; r.Reservations.Type != "exclusive-access" || len(l) != 1 || l[0].InitiatorName != iqn || l[0].Key != "0000000000000007" ||
			!l[0].Holder || !l[0].LoggedIn || l[0].Node == "" {
			t.Errorf("reservations: %+v", r.Reservations)
		}
		if _, err := c.Reservations.Clear(ctx, &dozov1.ClearReservationsRequest{Volume: "shared1"}); api.Reason(err) != "IN_USE" {
			t.Errorf("cleared with its holder logged in: %v", err)
		}
		if _, err := c.Reservations.Clear(ctx, &dozov1.ClearReservationsRequest{Volume: "shared1", InitiatorName: "iqn.2026-11.test:a"}); api.Reason(err) != "NOT_FOUND" {
			t.Errorf("cleared of one that has none: %v", err)
		}
		stays.wants("write after refusals", conflict, write, data, 0)
		last := i == len(cs)-1
		if last { // gone for good
			if err := goes.s.Close(ctx); err != nil {
				t.Errorf("logout: %v", err)
			}
		}
		var gone *dozov1.ClearReservationsResponse
		eventually(t, "who has logged out is taken for one that is logged in", func() error {
			if gone, err = c.Reservations.Clear(ctx, &dozov1.ClearReservationsRequest{Volume: "shared1", InitiatorName: iqn, Force: !last}); api.Reason(err) == "IN_USE" {
				return err // a session ends a moment after its logout is answered
			}
			return nil
		})
		if err != nil || len(gone.Cleared) != 1 || len(gone.Reservations.Registrations) != 0 || gone.Reservations.Type != "" {
			t.Errorf("cleared: %+v, %v", gone, err)
		}
		stays.wants("write after it", good, write, data, 0)
		if last {
			break
		}
		if st, _, x := goes.run(make([]byte, 6), nil, 0); st != 0x02 || len(x.Sense) < 14 || x.Sense[12] != 0x2a || x.Sense[13] != 0x05 {
			t.Errorf("who was cleared is told %s, %x: want REGISTRATIONS PREEMPTED", st, x.Sense)
		}
	}
	if _, err := cs[0].Reservations.Clear(ctx, &dozov1.ClearReservationsRequest{Volume: "shared1", Node: "n9"}); api.Reason(err) != "INVALID" {
		t.Errorf("another node's: %v", err)
	}
}

// sharedUnit has two initiators at two access servers use a volume together, and a third-party copy between volumes.
func sharedUnit(t *testing.T, ctx context.Context, cs []*api.Client, n1, n2 *testNode) {
	t.Helper()
	c := cs[0]
	var iqns []string
	for _, name := range []string{"shared1", "shared2"} {
		v, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: name, SizeBytes: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		iqns = append(iqns, v.Volume.Iqn)
	}
	dial := func(x *testNode, iqn, name string) *path {
		s, err := initiator.Dial(ctx, initiator.Config{Portal: x.cfg.Portals[0].String(), Target: iqn, Initiator: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Kill)
		p := &path{t, s}
		eventually(t, "the unit is not ready", func() error {
			if st, _, c := p.run(make([]byte, 6), nil, 0); st != initiator.StatusGood {
				return fmt.Errorf("%s, %x", st, c.Sense)
			}
			return nil
		})
		return p
	}
	const good, conflict = initiator.StatusGood, initiator.Status(0x18)
	a, b := dial(n1, iqns[0], "iqn.2026-11.test:a"), dial(n2, iqns[0], "iqn.2026-11.test:b")
	write := []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0}
	data := bytes.Repeat([]byte("dozo"), 1024)

	// SPC-4 5.13.5 to 5.13.11: registered through one server, in force at the other.
	a.wants("register", good, []byte{0x5f, 0, 0, 0, 0, 0, 0, 0, 24}, proutList(0, 1), 0)
	b.wants("register", good, []byte{0x5f, 0, 0, 0, 0, 0, 0, 0, 24}, proutList(0, 2), 0)
	a.wants("reserve", good, []byte{0x5f, 1, 1, 0, 0, 0, 0, 0, 24}, proutList(1, 0), 0)
	a.wants("write of the holder", good, write, data, 0)
	b.wants("write of the other", conflict, write, data, 0)
	if keys := b.wants("READ KEYS", good, []byte{0x5e, 0, 0, 0, 0, 0, 0, 0, 255}, nil, 255); len(keys) != 24 || binary.BigEndian.Uint32(keys) != 2 {
		t.Errorf("READ KEYS: %x", keys)
	}
	b.wants("preempt and abort", good, []byte{0x5f, 5, 3, 0, 0, 0, 0, 0, 24}, proutList(2, 1), 0)
	if st, _, x := a.run(make([]byte, 6), nil, 0); st != 0x02 || len(x.Sense) < 14 || x.Sense[12] != 0x2a || x.Sense[13] != 0x05 {
		t.Errorf("the preempted is told %s, %x: want REGISTRATIONS PREEMPTED", st, x.Sense)
	}
	a.wants("read of the preempted", conflict, []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, nil, 4096)
	b.wants("clear", good, []byte{0x5f, 3, 0, 0, 0, 0, 0, 0, 24}, proutList(2, 0), 0)

	// SPC-2 5.5.1: RESERVE ends with the session.
	b.wants("RESERVE (6)", good, []byte{0x16}, nil, 0)
	a.wants("write under another's RESERVE", conflict, write, data, 0)
	if err := b.s.Close(ctx); err != nil {
		t.Errorf("logout: %v", err)
	}
	eventually(t, "RESERVE outlives its session", func() error {
		if st, _, _ := a.run(write, data, 0); st != good {
			return fmt.Errorf("%s", st)
		}
		return nil
	})

	evicted(t, ctx, cs, a, dial(n2, iqns[0], "iqn.2026-11.test:gone"))

	// SPC-4 6.4: from a volume to another, by the copy manager of the first.
	other := dial(n2, iqns[1], "iqn.2026-11.test:a")
	identify := func(p *path) []byte {
		page := p.wants("page 83h", good, []byte{0x12, 1, 0x83, 1, 0}, nil, 256)
		d := make([]byte, 32)
		d[0], d[4], d[5], d[7] = 0xe4, 1, 3, 8
		copy(d[8:16], page[8:16]) // the first designator is the NAA
		return d
	}
	list := make([]byte, 16)
	list[0], list[3], list[11] = 9, 64, 28
	list = append(append(list, identify(a)...), identify(other)...)
	segment := make([]byte, 28)
	segment[0], segment[3], segment[7], segment[11], segment[27] = 2, 24, 1, 8, 16
	list = append(list, segment...)
	a.wants("EXTENDED COPY", good, []byte{0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(list))}, list, 0)
	if got := other.wants("read of the copy", good, []byte{0x28, 0, 0, 0, 0, 16, 0, 0, 8, 0}, nil, 4096); !bytes.Equal(got, data) {
		t.Errorf("copied: %q", got[:8])
	}

	// SPC-4 6.4.6.4: within the volume, by reference, whichever access server has the command; the source is overwritten afterwards.
	for i, p := range []*path{a, dial(n2, iqns[0], "iqn.2026-11.test:c")} {
		list := make([]byte, 16)
		list[0], list[3], list[11] = 10, 32, 28
		list = append(list, identify(p)...)
		at := byte(32 + 8*i)
		segment := make([]byte, 28)
		segment[0], segment[3], segment[11], segment[27] = 2, 24, 8, at
		list = append(list, segment...)
		p.wants("EXTENDED COPY within the volume", good, []byte{0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(list))}, list, 0)
		p.wants("write to its source", good, write, bytes.Repeat([]byte{byte(i)}, 4096), 0)
		if got := p.wants("read of the copy", good, []byte{0x28, 0, 0, 0, 0, at, 0, 0, 8, 0}, nil, 4096); !bytes.Equal(got, data) {
			t.Errorf("copied within the volume: %q", got[:8])
		}
		p.wants("write of what was there", good, write, data, 0)
	}

	// SBC-3 5.21, 5.50: a token made at one server, used at another volume's, at the other server.
	ranges := func(head int, lba byte) []byte {
		b := make([]byte, head+16)
		binary.BigEndian.PutUint16(b, uint16(len(b)-2))
		b[head-1], b[head+7], b[head+11] = 16, lba, 8
		return b
	}
	populate := ranges(16, 0)
	a.wants("POPULATE TOKEN", good, []byte{0x83, 0x10, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, byte(len(populate))}, populate, 0)
	info := a.wants("RECEIVE ROD TOKEN INFORMATION", good, []byte{0x84, 7, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 4, 0}, nil, 1024)
	if len(info) != 38+512 {
		t.Fatalf("token information: %x", info)
	}
	use := ranges(536, 64)
	copy(use[16:], info[38:])
	other.wants("WRITE USING TOKEN", good, []byte{0x83, 0x11, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, byte(len(use) >> 8), byte(len(use) & 255)}, use, 0)
	if got := other.wants("read of what the token wrote", good, []byte{0x28, 0, 0, 0, 0, 64, 0, 0, 8, 0}, nil, 4096); !bytes.Equal(got, data) {
		t.Errorf("written by token: %q", got[:8])
	}
	a.s.Kill()
	other.s.Kill()
	for _, name := range []string{"shared1", "shared2"} {
		if _, err := c.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: name, Force: true}); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
}
