package access

import (
	"bytes"
	"testing"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/control"
	"dozo/internal/wire"
)

// TestSanitizeIsFinishedByTheNextOwner: it is recorded before it begins.
func TestSanitizeIsFinishedByTheNextOwner(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(2<<20, 1, control.Replicated)
	o := c.own(v)
	if err := writeAt(o, 0, bytes.Repeat([]byte{1}, 4096), false); err != nil {
		t.Fatal(err)
	}
	cmd := reserve.Command{Action: reserve.SanitizeBegin, Sanitize: reserve.Sanitize{Kind: reserve.SanitizeOverwrite, Passes: 1, Pattern: []byte{0xa5}}}
	op := NewOp()
	op.Kind, op.Unit = wire.OpUnit, cmd.Append(nil)
	if err := do(o, op); err != nil {
		t.Fatal(err)
	}
	old := o
	o = c.own(v) // possibly in the middle of it
	old.Close()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var kind reserve.SanitizeKind
		o.ask(func() { kind = o.unit.committed.Sanitize.Kind })
		if kind == reserve.SanitizeNone {
			break
		}
	}
	r := NewOp()
	r.Kind, r.Length = wire.OpRead, 4096
	if err := do(o, r); err != nil {
		t.Fatal(err)
	}
	if got := bytes.Join(r.Data, nil); !bytes.Equal(got, bytes.Repeat([]byte{0xa5}, 4096)) {
		t.Errorf("after SANITIZE: %x", got[:4])
	}
}

// TestSanitizeInverts: SBC-3 5.24.2.2: with INVERT passes alternate, and the last one writes the pattern, of however many.
func TestSanitizeInverts(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(256<<10, 1, control.Replicated))
	for passes := byte(1); passes <= 3; passes++ {
		cmd := reserve.Command{Action: reserve.SanitizeBegin,
			Sanitize: reserve.Sanitize{Kind: reserve.SanitizeOverwrite, Passes: passes, Invert: true, Pattern: []byte{0xa0 + passes}}}
		op := NewOp()
		op.Kind, op.Unit = wire.OpUnit, cmd.Append(nil)
		if err := do(o, op); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the end of SANITIZE", func() (over bool) {
			o.ask(func() { over = o.unit.committed.Sanitize.Kind == reserve.SanitizeNone })
			return over
		})
		if got, err := readAt(o, 4096, 4096); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{0xa0 + passes}, 4096)) {
			t.Errorf("after %d passes: %x, %v", passes, got[:min(4, len(got))], err)
		}
	}
}

// TestSanitizeOfAVolumeThatBecomesSmaller: the rest of it is overwritten, and the operation has not failed.
func TestSanitizeOfAVolumeThatBecomesSmaller(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(2<<20, 1, control.Replicated)
	o := c.own(v)
	cmd := reserve.Command{Action: reserve.SanitizeBegin, Sanitize: reserve.Sanitize{Kind: reserve.SanitizeOverwrite, Passes: 2, Pattern: []byte{7}}}
	op := NewOp()
	op.Kind, op.Unit = wire.OpUnit, cmd.Append(nil)
	if err := do(o, op); err != nil {
		t.Fatal(err)
	}
	v.SizeBytes = 1 << 20
	o.SetSpec(v)
	var last reserve.SanitizeKind
	eventually(t, "the end of SANITIZE", func() bool {
		o.ask(func() { last = o.unit.committed.Sanitize.Kind })
		return last == reserve.SanitizeNone || last == reserve.SanitizeFailed
	})
	if got, err := readAt(o, 1<<20-4096, 4096); last != reserve.SanitizeNone || err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 4096)) {
		t.Errorf("it ended as %d; %x, %v", last, got[:min(4, len(got))], err)
	}
}

// TestSanitizeProgress: SBC-3 4.11.3: how far it is, every access server tells.
func TestSanitizeProgress(t *testing.T) {
	n := newNodes(t, 2, 2, 300*time.Millisecond)
	v := n.volume(2<<20, 1, control.Replicated)
	for _, x := range n.list {
		x.serve()
	}
	owner := n.awaitOwner(v.ID, nil)
	var clients []*unitClient
	for _, x := range n.list {
		clients = append(clients, x.client(t, v.ID, "iqn."+string(x.name)))
	}
	begin := reserve.Sanitize{Kind: reserve.SanitizeOverwrite, Passes: 31, Pattern: []byte{1}} // some seconds
	if o := owner.client(t, v.ID, "iqn.a").change(reserve.Command{Action: reserve.SanitizeBegin, Sanitize: begin}); o != reserve.Good {
		t.Fatal(o)
	}
	for _, c := range clients {
		told := false
		eventually(t, "progress, or its end", func() bool {
			u := c.volume().Unit()
			told = u.Progress > 0 && u.State.Sanitize.UnderWay()
			return told || !u.State.Sanitize.UnderWay()
		})
		if !told {
			t.Errorf("%s knew of no progress", c.x.name)
		}
	}
}
