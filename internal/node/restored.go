package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/pki"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// This part of Node helps to settle a control store that was restored or rebuilt (rules R3, R11): it registers again,
// says what its stores hold, and, on one node, makes the keys fit once all have answered. In peace it notes on disk
// what the specifications are.

// copyFile, in the state directory, has the specifications as last known, in the format of a backup. It has the hosts'
// secrets, so it is as secret as a voter's directory.
const copyFile = "control-copy"

const (
	copyEvery   = time.Minute // at most so often, and only after a change
	settleEvery = time.Second
)

// settleControl helps whenever the control store was made anew, until ctx ends.
func (n *Node) settleControl(ctx context.Context) {
	ctl := n.control()
	changed, cancel := ctl.Subscribe()
	defer cancel()
	ctx = control.WithActor(ctx, nodeObject(string(n.cfg.Node)))
	cl, _ := ctl.Cluster()
	lineage := cl.Lineage
	n.rememberCopy(ctl)
	answered := map[ident.StoreID]uint32{} // the lineage of the control store that was told
	var noted *control.Snapshot
	var notedAt time.Time
	for ctx.Err() == nil {
		wait := copyEvery
		if cl, err := ctl.Cluster(); err == nil && cl.Lineage != lineage {
			if err := n.registerAnew(ctx, ctl); err != nil {
				n.log.Warn("the control store was started anew, and this node is not registered in it yet", "err", err)
				wait = settleEvery
			} else {
				lineage = cl.Lineage
			}
		}
		r, ok := ctl.Restoration()
		switch {
		case ok && r.Pending():
			wait = settleEvery
			if err := n.settle(ctx, ctl, r, answered); err != nil && ctx.Err() == nil {
				n.log.Warn("the restored control store is not settled yet", "err", err)
			}
		case time.Since(notedAt) >= copyEvery:
			notedAt = time.Now()
			noted = n.noteCopy(ctl, noted)
		}
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-changed:
			// Many changes come together, and none of this is urgent.
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		timer.Stop()
	}
}

// registerAnew writes what a running node knows of itself.
func (n *Node) registerAnew(ctx context.Context, ctl *control.Client) error {
	self := *n.self.Load()
	if s, ok := ctl.Site(self.Site); ok {
		if err := ctl.KeepSite(ctx, s); err != nil && !errors.Is(err, control.ErrExists) {
			return err
		}
	}
	made, err := ctl.RegisterNode(ctx, self)
	if err != nil {
		return err
	}
	n.self.Store(&made)
	n.log.Warn("the control store was started anew: this node is registered again")
	return nil
}

// settle does this node's part.
func (n *Node) settle(ctx context.Context, ctl *control.Client, r control.Restoration, answered map[ident.StoreID]uint32) error {
	var known []ident.StoreID
	for _, x := range ctl.Nodes() {
		for _, s := range x.Stores {
			known = append(known, s.ID)
		}
	}
	if err := ctl.ExpectStores(ctx, known); err != nil {
		return err
	}
	if answered[ident.StoreID{}] != r.Lineage { // before any answer that could complete the picture
		if err := ctl.OfferRemembered(ctx); err != nil {
			return err
		}
		answered[ident.StoreID{}] = r.Lineage
	}
	for id, st := range n.stores {
		if answered[id] == r.Lineage {
			continue
		}
		held, err := n.held(ctx, ctl, st)
		if err != nil {
			return fmt.Errorf("store %s: %w", st.Dir(), err)
		}
		if err := ctl.PutAnswer(ctx, id, held); err != nil {
			return fmt.Errorf("store %s: %w", st.Dir(), err)
		}
		answered[id] = r.Lineage
		n.log.Info("store has told the restored control store what it holds", "store", st.Dir(), "journals", len(held))
	}
	if u := (&burier{n: n}); len(n.stores) == 0 || !u.first(ctl) {
		return nil
	}
	if _, err := ctl.Reconcile(ctx); err != nil && !errors.Is(err, control.ErrConflict) {
		return err
	}
	return nil
}

// held lists what a store knows of journals.
func (n *Node) held(ctx context.Context, ctl *control.Client, st *core.Store) ([]control.HeldJournal, error) {
	var out []control.HeldJournal
	at := map[ident.JournalID]int{}
	for _, j := range st.Journals() {
		at[j.Journal] = len(out)
		out = append(out, control.HeldJournal{ID: j.Journal, Fence: j.Fence})
	}
	roots := map[ident.JournalID][]ident.SegmentID{}
	history := map[ident.JournalID][]ident.SegmentID{}
	for m := (&wire.Inventory{}); ; {
		r, err := st.Inventory(ctx, m)
		if err != nil {
			return nil, err
		}
		for _, x := range r.Replicas {
			id := x.Segment.Journal
			i, ok := at[id]
			if !ok {
				i = len(out)
				at[id], out = i, append(out, control.HeldJournal{ID: id})
			}
			h := &out[i]
			h.Records = true
			if h.Highest.Less(x.Segment.Epoch) || h.Site == 0 {
				h.Highest, h.Site = x.Segment.Epoch, x.Segment.Site
			}
			if _, known := ctl.Volume(id); !known {
				if x.Segment.IsCheckpoint() {
					roots[id] = append(roots[id], x.Segment)
				} else {
					history[id] = append(history[id], x.Segment)
				}
			}
		}
		if !r.More || len(r.Replicas) == 0 {
			break
		}
		m.After = r.Replicas[len(r.Replicas)-1].Segment
	}
	// Only of volumes that nobody specifies any more is it worth the reading how large they are.
	for id, list := range roots {
		out[at[id]].SizeBytes = sizeOf(ctx, st, list)
	}
	for id, list := range history {
		if h := &out[at[id]]; h.SizeBytes == 0 {
			h.WrittenBytes = writtenOf(ctx, st, list)
		}
	}
	return out, nil
}

// sizeOf is the size of a volume by the newest checkpoint root in some segments of a store, 0 if there is none. What
// can not be read is passed over: another store may have it.
func sizeOf(ctx context.Context, st journal.Store, list []ident.SegmentID) (size int64) {
	var newest ident.Seq
	for _, id := range list {
		x, err := indexOf(ctx, st, id)
		if err != nil {
			continue
		}
		for i := range x.Entries {
			e := &x.Entries[i]
			if !volume.IsRoot(e) {
				continue
			}
			body, err := bodyOf(ctx, st, id, e)
			if err != nil {
				continue
			}
			if blocks, covers, err := volume.RootSize(body); err == nil && covers >= newest {
				size, newest = int64(blocks)*journal.BlockSize, covers
			}
		}
	}
	return size
}

// writtenOf is where the last block ends that segments of the history write or trim.
func writtenOf(ctx context.Context, st journal.Store, list []ident.SegmentID) (end int64) {
	for _, id := range list {
		x, err := indexOf(ctx, st, id)
		if err != nil {
			continue
		}
		for i := range x.Entries {
			if e := &x.Entries[i]; e.Kind == journal.KindWrite {
				end = max(end, int64(e.Block+uint64(e.Count))*journal.BlockSize)
			}
		}
	}
	return end
}

func indexOf(ctx context.Context, st journal.Store, id ident.SegmentID) (*journal.Index, error) {
	r, err := st.ReadIndex(ctx, &wire.ReadIndex{Segment: id})
	if err != nil {
		return nil, err
	}
	x, err := journal.DecodeIndex(bytes.Clone(r.Data))
	if r.Release != nil {
		r.Release()
	}
	return x, err
}

func bodyOf(ctx context.Context, st journal.Store, id ident.SegmentID, e *journal.IndexEntry) ([]byte, error) {
	r, err := st.ReadRaw(ctx, &wire.ReadRaw{Segment: id, Offset: e.Offset, Len: uint32(journal.RecordSize(e.StoredLen))})
	if err != nil {
		return nil, err
	}
	raw := bytes.Clone(r.Data)
	if r.Release != nil {
		r.Release()
	}
	var rec journal.Record
	if len(raw) < journal.RecordHeaderSize || binary.LittleEndian.Uint32(raw[16:]) != e.StoredLen {
		return nil, fmt.Errorf("segment %s: no record at %d", id, e.Offset)
	}
	if err := rec.Decode(raw); err != nil {
		return nil, err
	}
	if err := rec.VerifyBody(raw); err != nil {
		return nil, err
	}
	return raw[journal.BodyOffset(rec.StoredLen):][:rec.StoredLen], nil
}

// noteCopy notes the specifications, if they have changed.
func (n *Node) noteCopy(ctl *control.Client, was *control.Snapshot) *control.Snapshot {
	if len(n.stores) == 0 {
		return was // it is for those who have something that would be lost without a name
	}
	s, err := ctl.Copy()
	if err != nil || s.Same(was) {
		return was
	}
	var b bytes.Buffer
	if err = s.Write(&b); err == nil {
		err = pki.WriteFileAtomic(filepath.Join(n.cfg.StateDir, copyFile), b.Bytes())
	}
	if err != nil {
		n.log.Warn("the specifications are not noted", "err", err)
		return was
	}
	return s
}

// rememberCopy gives a control store that is not settled what this node has noted of the former one.
func (n *Node) rememberCopy(ctl *control.Client) {
	if r, ok := ctl.Restoration(); !ok || !r.Pending() {
		return
	}
	s, err := readSnapshot(filepath.Join(n.cfg.StateDir, copyFile))
	if err == nil {
		err = ctl.Remember(s)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.log.Warn("what was noted of the former control store is not used", "err", err)
	}
}

// ownSite finds the number that the node's site had, if it has noted it: names of segments have it.
func (n *Node) ownSite(name string) (control.Site, bool) {
	s, err := readSnapshot(filepath.Join(n.cfg.StateDir, copyFile))
	if err != nil {
		return control.Site{}, false
	}
	sites, err := s.Sites()
	if err != nil {
		return control.Site{}, false
	}
	i := slices.IndexFunc(sites, func(x control.Site) bool { return x.Name == name })
	if i < 0 {
		return control.Site{}, false
	}
	return sites[i], true
}

func readSnapshot(path string) (*control.Snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := control.ReadSnapshot(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}
