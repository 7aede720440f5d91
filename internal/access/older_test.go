package access

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// newestTime is the time of the last record that a store has of a volume's history.
func (c *cluster) newestTime(id ident.JournalID) (at int64) {
	c.t.Helper()
	var last ident.Seq
	for _, s := range c.seats {
		for seg, r := range c.replicas(s, id) {
			if seg.IsCheckpoint() || r.Last.Seq <= last || r.End <= journal.SegmentHeaderSize {
				continue
			}
			raw, err := s.ReadRaw(context.Background(), &wire.ReadRaw{Segment: seg, Len: r.End})
			if err != nil {
				c.t.Fatal(err)
			}
			for b := raw.Data[journal.SegmentHeaderSize:]; len(b) > 0; {
				var rec journal.Record
				if err := rec.Decode(b); err != nil {
					c.t.Fatal(err)
				}
				if rec.Seq > last {
					last, at = rec.Seq, rec.Time
				}
				n, err := journal.SizeAt(b)
				if err != nil {
					c.t.Fatal(err)
				}
				b = b[n:]
			}
			release(raw)
		}
	}
	return at
}

// Core servers of the first release refuse records with a time, which was a reserved field to them, and its owners know
// nothing of forks that were given up. While there is a node of it, owners make no such records.
func TestRecordsThatOlderNodesCanRead(t *testing.T) {
	c := newCluster(t, 1, 3)
	node := control.Node{Name: "old", Site: 1, HostID: "h", Roles: []control.Role{control.RoleAccess}, Version: "1"}
	node.Addrs.Portals = []control.Portal{{Addr: netip.MustParseAddrPort("127.0.0.9:3260")}}
	if _, err := c.ctl.RegisterNode(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	c.mem.Downgrade("old")
	eventually(t, "the node is known to be older", func() bool { return c.ctl.Level() == 1 })
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	defer o.Close()
	write := func() {
		t.Helper()
		if err := writeAt(o, 0, bytes.Repeat([]byte{1}, 4096), true); err != nil {
			t.Fatal(err)
		}
	}
	write()
	o.look()
	write()
	if at := c.newestTime(v.ID); at != 0 {
		t.Errorf("a record says that it was made at %d", at)
	}
	var err error
	o.ask(func() {
		o.forks.cuts = []wire.EpochStart{{At: ident.Position{Epoch: o.epoch, Seq: 1}}}
		o.forget(o.epoch, func(e error) { err = e })
	})
	if !errors.Is(err, wire.ErrVersion) {
		t.Errorf("giving up a fork: %v", err)
	}
	o.ask(func() { o.forks.cuts = nil })

	if _, err := c.ctl.RegisterNode(t.Context(), node); err != nil { // it was upgraded
		t.Fatal(err)
	}
	eventually(t, "the node is known to be upgraded", func() bool { return c.ctl.Level() == control.Level })
	o.look()
	write()
	if at := c.newestTime(v.ID); at == 0 {
		t.Error("records do not say when they were made")
	}
}
