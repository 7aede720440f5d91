package access

import (
	"encoding/binary"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// Copying within a volume by reference. The record says only which blocks become what which others are right before it,
// so it means the same wherever the history is replayed: after a takeover that has put the end of the history into other
// segments, at another site, in a fork. Each map refers to where those blocks lie for itself. No byte is read or
// written.
//
//	admit -> token still good, leaves of the source in memory -> record -> commit (map: both refer to the same place) -> Done
//
// Records in flight need not be waited for: what is before the copy in the history counts for it, what is behind it does
// not. The leaves of the source stay in memory until the copy is in the map (mayEvict), since a committed record is
// applied without waiting for a disk.

// CopyCall is what a forwarded copy carries beside the range that it makes, which is Offset and Length of the command.
type CopyCall struct {
	From     int64    // byte of the volume that it begins at
	HasToken bool     // it counts only as long as Token is good
	Token    [16]byte // that stands for what is copied
}

const copyCallSize = 1 + 1 + 8 + 16

// Append encodes the call; docs/wire.md, "Copy".
func (c *CopyCall) Append(b []byte) []byte {
	b = append(b, 1, 0)
	if c.HasToken {
		b[len(b)-1] = 1
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(c.From))
	return append(b, c.Token[:]...)
}

// DecodeCopyCall reads what Append wrote.
func DecodeCopyCall(b []byte) (c CopyCall, err error) {
	if len(b) != copyCallSize || b[0] != 1 || b[1] > 1 {
		return c, wire.Errorf(wire.CodeBadRequest, "copy call of %d bytes", len(b))
	}
	c.HasToken, c.From = b[1] == 1, int64(binary.LittleEndian.Uint64(b[2:]))
	copy(c.Token[:], b[10:])
	if c.From < 0 || c.From > journal.BlocksMax*journal.BlockSize || !c.HasToken && c.Token != [16]byte{} {
		return c, wire.Errorf(wire.CodeBadRequest, "copy call from byte %d", c.From)
	}
	return c, nil
}

// CopyMax bounds one copy by reference.
const CopyMax = journal.CopyBlocksMax * journal.BlockSize

// copyBlocks gives a copy its place in the history. wire.ErrVersion says that it has to be done by reading and writing.
func (o *Owner) copyBlocks(op *Op) {
	call, err := DecodeCopyCall(op.Unit)
	size := o.spec.Load().SizeBytes
	switch {
	case err != nil:
	case op.Length == 0 || op.Length > CopyMax || call.From > size || op.Length > size-call.From:
		err = wire.Errorf(wire.CodeBadRequest, "copy of bytes %d+%d of a volume of %d", call.From, op.Length, size)
	case (op.Offset|op.Length|call.From)%journal.BlockSize != 0:
		err = wire.Errorf(wire.CodeVersion, "a copy that is not of whole blocks")
	case o.env.Control.Level() < control.LevelCopies:
		err = wire.Errorf(wire.CodeVersion, "there are nodes that do not know copies by reference")
	case call.HasToken && !o.tokens.covers(call.Token, call.From, op.Length, o.tick()):
		err = wire.Errorf(wire.CodeMismatch, "no such token, or not any more")
	}
	if err != nil {
		o.finish(op, err)
		return
	}
	source := uint64(call.From) / journal.BlockSize
	yes, need := o.m.MayCopy(source, uint32(op.count))
	if need != volume.NoLeaf {
		o.copyAfter(need, op)
		return
	}
	if !yes {
		o.finish(op, wire.Errorf(wire.CodeVersion, "the blocks are referred to too often"))
		return
	}
	o.touched(op.first, op.count)
	e := ownEntry(journal.KindCopy, journal.AppendCopy(nil, source))
	e.Block, e.Count = op.first, uint32(op.count)
	e.Request, e.Part, e.Context = requestID(op), op.part, op
	op.parts = 1
	o.w.Queue(e)
	op.seq = e.Seq
	o.uncommitted = append(o.uncommitted, op)
}

// copyAfter goes on with a copy once a leaf is in memory. Until then it is one of those that are being decided, as a merge
// is: others wait for it, what refuses it meanwhile does so, and the same request sent again is not another copy.
func (o *Owner) copyAfter(need volume.LeafID, op *Op) {
	op.merging = true
	o.merging++
	o.waiting = append(o.waiting, op)
	leaf := NewOp()
	leaf.Kind = wire.OpCopy
	leaf.Done = func(leaf *Op, err error) {
		leaf.Release()
		o.post(event{kind: evMerged, op: op, err: err})
	}
	o.loadLeaf(need, leaf)
}

// copied applies a committed copy to the map. What it needs was in memory when the record was queued, or was fetched with
// the tail of the history.
func (o *Owner) copied(e *journal.IndexEntry, seq ident.Seq, body []byte) error {
	source, err := journal.DecodeCopy(body, e.Count)
	if err != nil {
		return err
	}
	need, err := o.m.Copy(seq, e.Block, source, e.Count)
	if err == nil && need != volume.NoLeaf {
		err = wire.Errorf(wire.CodeBusy, "leaf %d of the map is not in memory", need)
	}
	o.cp.copied += uint64(e.Count) * journal.BlockSize
	o.env.Metrics.Referred.Add(float64(e.Count) * journal.BlockSize)
	return err
}

// mayEvict says that leaves may leave memory: no copy is on its way to the map.
func (o *Owner) mayEvict() bool {
	if !o.w.Serving() { // the tail may have some
		return false
	}
	for _, op := range o.uncommitted {
		if op.Kind == wire.OpCopy {
			return false
		}
	}
	return true
}

// replayCopy applies a copy of the past; it may wait for leaves.
func (o *Owner) replayCopy(e *journal.IndexEntry, seq ident.Seq, body []byte, parts volume.PartReader) error {
	source, err := journal.DecodeCopy(body, e.Count)
	if err != nil {
		return err
	}
	for {
		need, err := o.m.Copy(seq, e.Block, source, e.Count)
		if err != nil || need == volume.NoLeaf {
			return err
		}
		if err := o.m.LoadLeaf(need, parts); err != nil {
			return err
		}
	}
}

// fetchSources has the leaves in memory that the copies of the tail need: they are applied in the owner's loop.
func (o *Owner) fetchSources(tail []*journal.Entry, parts volume.PartReader) error {
	for _, e := range tail {
		if e.Kind != journal.KindCopy {
			continue
		}
		source, err := journal.DecodeCopy(e.Bytes[journal.BodyOffset(e.StoredLen):][:e.StoredLen], e.Count)
		for err == nil {
			var need volume.LeafID
			if _, need = o.m.MayCopy(source, e.Count); need == volume.NoLeaf {
				break
			}
			err = o.m.LoadLeaf(need, parts)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// MayCopy says that this cluster's nodes know copies by reference.
func (v *Volume) MayCopy() bool { return v.srv.env.Control.Level() >= control.LevelCopies }
