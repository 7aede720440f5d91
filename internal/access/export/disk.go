package export

import (
	"errors"

	"dozo/internal/access"
	"dozo/internal/access/iscsi"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// disk is a volume as a direct access device for one session.
type disk struct {
	v       *access.Volume
	session *session
	paths   *paths
	copier  bool // a third-party copy of a session of another volume reads or writes it
	// Of a LUN of the hosts' target:
	readOnly bool   // it is mapped so
	barred   *ready // nil: ready
}

// session is what the disks of one session share: the nexus in the owner's terms.
type session struct {
	nexus wire.Nexus
	id    uint64 // the connection's
	exp   *Exports
	peer  iscsi.Peer
	book  *stampBook // of a session with several volumes, else nil
}

func (s *session) disk(v *access.Volume) *disk {
	return &disk{v: v, session: s, paths: s.exp.pathsOf(v.ID())}
}

func newNexus(n reserve.NexusID) wire.Nexus { return access.NexusOf(n) }

func (d *disk) Geometry() scsi.Geometry {
	s := d.v.Spec()
	blocks := uint64(s.SizeBytes) / uint64(s.BlockSize)
	if !d.barred.is() {
		blocks = 0 // not ready
	}
	return scsi.Geometry{Blocks: blocks, BlockSize: uint32(s.BlockSize), ReadOnly: d.readOnly,
		PhysicalBlockSize: journal.BlockSize, AlwaysDurable: s.Durability == control.Sync,
		VolatileCache: s.Durability != control.Sync && !d.v.Unit().State.Current.CacheOff}
}

func (d *disk) Identity() scsi.Identity { return identity(d.v.ID()) }

func identity(id ident.JournalID) scsi.Identity {
	return scsi.Identity{ID: id, Vendor: "DOZO", Product: "VOLUME", Revision: "1"}
}

// buffer is a scsi.WriteBuffer.
type buffer struct{ *access.WriteBuf }

func (d *disk) NewWrite(off int64, n int) (scsi.WriteBuffer, error) {
	return buffer{access.NewWriteBuf(off, n)}, nil
}

// op makes a command of the owner's from a request.
func (d *disk) op(req scsi.Request, kind wire.ForwardOp, off, n int64) *access.Op {
	op := access.NewOp()
	op.Kind, op.Offset, op.Length = kind, off, n
	op.Nexus, op.Session, op.Copier = &d.session.nexus, req.SessionID(), d.copier
	op.Request = requestID(req.ID)
	op.Stamp = d.stamp(req.Stamp)
	if req.Began != (scsi.Stamp{}) {
		if began := d.stamp(req.Began); began.Epoch == op.Stamp.Epoch {
			op.Since = began.Tick
		} else {
			op.Stamp = began // refusals of that epoch are not known any more
		}
	}
	if b := d.session.book; b != nil && req.ID.Part == 0 {
		b.went(req.ID, d.v)
	}
	return op
}

// stamp is a stamp of the session's in the owner's terms.
func (d *disk) stamp(s scsi.Stamp) wire.Stamp {
	if b := d.session.book; b != nil {
		return b.stamp(d.v, s)
	}
	return wire.Stamp{Epoch: s.Epoch, Tick: s.Tick}
}

// partBits is how many parts of one command have request numbers of their own.
const partBits = 12

func requestID(id scsi.RequestID) wire.RequestID {
	return wire.RequestID{Forwarder: id.Conn, Number: id.Seq<<partBits | uint64(id.Part)&(1<<partBits-1)}
}

func (d *disk) Write(req scsi.Request, b scsi.WriteBuffer, fua bool, done func(error)) {
	buf := b.(buffer).WriteBuf
	op := d.op(req, wire.OpWrite, buf.Offset(), int64(len(buf.Bytes())))
	op.Buf, op.FUA = buf, fua
	op.Caller, op.Done = done, writeDone
	d.v.Submit(op)
}

// writeDone and readDone are functions of their own, and not closures, which would be an allocation for each command.
func writeDone(op *access.Op, err error) {
	done := op.Caller.(func(error))
	op.Release()
	done(translate(err, true))
}

// result is a scsi.ReadResult.
type result struct{ op *access.Op }

func (r result) Buffers() [][]byte { return r.op.Data }
func (r result) Release()          { r.op.Release() }

func (d *disk) Read(req scsi.Request, off int64, n int, done func(scsi.ReadResult, error)) {
	op := d.op(req, wire.OpRead, off, int64(n))
	op.Caller, op.Done = done, readDone
	d.v.Submit(op)
}

func readDone(op *access.Op, err error) {
	done := op.Caller.(func(scsi.ReadResult, error))
	if err != nil {
		off := op.Offset
		op.Release()
		done(nil, medium(off, translate(err, false)))
		return
	}
	done(result{op}, nil)
}

func (d *disk) Zero(req scsi.Request, off, n int64, unmap bool, done func(error)) {
	kind := wire.OpZero
	if unmap {
		kind = wire.OpTrim
	}
	op := d.op(req, kind, off, n)
	op.Done = func(op *access.Op, err error) {
		op.Release()
		done(translate(err, true))
	}
	d.v.Submit(op)
}

func (d *disk) CompareAndWrite(req scsi.Request, compare []byte, b scsi.WriteBuffer, fua bool, done func(int, error)) {
	buf := b.(buffer).WriteBuf
	op := d.op(req, wire.OpCompareAndWrite, buf.Offset(), int64(len(buf.Bytes())))
	op.Buf, op.FUA, op.Compare = buf, fua, compare
	op.Done = func(op *access.Op, err error) {
		at := int(op.Miscompare)
		op.Release()
		switch {
		case errors.Is(err, wire.ErrMiscompare):
			done(at, nil)
		case err != nil:
			done(-1, translate(err, true))
		default:
			done(-1, nil)
		}
	}
	d.v.Submit(op)
}

func (d *disk) OrWrite(req scsi.Request, b scsi.WriteBuffer, fua bool, done func(error)) {
	buf := b.(buffer).WriteBuf
	op := d.op(req, wire.OpOrWrite, buf.Offset(), int64(len(buf.Bytes())))
	op.Buf, op.FUA = buf, fua
	op.Done = func(op *access.Op, err error) {
		op.Release()
		done(translate(err, true))
	}
	d.v.Submit(op)
}

func (d *disk) Unit() *reserve.Snapshot { return d.v.Unit() }

func (d *disk) ShowUnit(_ scsi.Request, done func(*reserve.Snapshot, error)) {
	d.v.ShowUnit(func(s *reserve.Snapshot, err error) { done(s, translate(err, false)) })
}

func (d *disk) ChangeUnit(req scsi.Request, cmd *reserve.Command, done func(reserve.Outcome, error)) {
	if !d.barred.is() {
		done(reserve.Good, scsi.ErrNotReady)
		return
	}
	cmd.Session = req.SessionID()
	d.v.ChangeUnit(d.op(req, wire.OpUnit, 0, 0), cmd, func(o reserve.Outcome, err error) { done(o, translate(err, true)) })
}

func (d *disk) Stamp() scsi.Stamp {
	if b := d.session.book; b != nil {
		return b.now()
	}
	s := d.v.Stamp()
	return scsi.Stamp{Epoch: s.Epoch, Tick: s.Tick}
}

func (d *disk) NewID() scsi.RequestID { return d.session.exp.newID() }

func (e *Exports) newID() scsi.RequestID {
	return scsi.RequestID{Conn: e.copier, Seq: e.copies.Add(1)}
}

// Other finds a volume that the session's initiator may log in to. Its stamps have to be fresh before anything
// can be asked of it.
func (d *disk) Other(meant func(scsi.Identity) bool, done func(scsi.Disk, func())) {
	e := d.session.exp
	for _, spec := range e.ctl.Volumes() {
		if spec.Deleted != nil || !meant(identity(spec.ID)) {
			continue
		}
		m, mapped := mapOf(e.ctl, d.session.peer, &spec)
		if !mapped && !e.allowed(d.session.peer, spec) {
			continue
		}
		v, ok := e.srv.Volume(spec.ID)
		if !ok {
			continue
		}
		v.Open()
		other := d.session.disk(v)
		other.readOnly, other.copier = mapped && m.ReadOnly, true
		if d.session.book != nil {
			d.session.book.add(v)
		}
		v.Ready(func() { done(other, v.Close) })
		return
	}
	done(nil, nil)
}

func (d *disk) Copy(req scsi.Request, from, to, n int64, token *scsi.Token, done func(error)) {
	if !d.v.MayCopy() {
		done(scsi.ErrNotSupported)
		return
	}
	call := access.CopyCall{From: from}
	if token != nil {
		call.HasToken, call.Token = true, token.ID
	}
	op := d.op(req, wire.OpCopy, to, n)
	op.Unit = call.Append(nil)
	op.Done = func(op *access.Op, err error) {
		op.Release()
		if errors.Is(err, wire.ErrMismatch) {
			done(&wrapped{scsi.ErrTokenUnknown, err})
			return
		}
		done(translate(err, true))
	}
	d.v.Submit(op)
}

func (d *disk) Flush(req scsi.Request, done func(error)) {
	op := d.op(req, wire.OpFlush, 0, 0)
	op.Done = func(op *access.Op, err error) {
		op.Release()
		done(translate(err, true))
	}
	d.v.Submit(op)
}

func (d *disk) Provisioned(off int64, done func(mapped bool, n int64, err error)) {
	op := access.NewOp()
	op.Kind, op.Offset, op.Length = wire.OpProvisioned, off, 1
	op.Nexus, op.Session, op.Stamp, op.Copier = &d.session.nexus, d.session.id, d.v.Stamp(), d.copier
	op.Done = func(op *access.Op, err error) {
		mapped, n := op.Mapped, op.Extent
		op.Release()
		done(mapped, n, translate(err, false))
	}
	d.v.Submit(op)
}

// sentinels is the one table from the owner's errors to SCSI's.
var sentinels = []struct {
	from  *wire.Error
	read  error
	write error
}{
	{wire.ErrStale, scsi.ErrStale, scsi.ErrStale},
	{wire.ErrBusy, scsi.ErrBusy, scsi.ErrBusy},
	{wire.ErrNotOwner, scsi.ErrBusy, scsi.ErrBusy},
	{wire.ErrUnreached, scsi.ErrBusy, scsi.ErrBusy},
	{wire.ErrFenced, scsi.ErrBusy, scsi.ErrBusy},
	{wire.ErrConflict, scsi.ErrNotReady, scsi.ErrNotReady},
	{wire.ErrShutdown, scsi.ErrBusy, scsi.ErrBusy},
	{wire.ErrNoSpace, scsi.ErrNoSpace, scsi.ErrNoSpace},
	{wire.ErrIO, scsi.ErrMedium, scsi.ErrWriteFailed},
	{wire.ErrCorrupt, scsi.ErrMedium, scsi.ErrMedium},
	{wire.ErrAbsent, scsi.ErrMedium, scsi.ErrNotReady},
	{wire.ErrMismatch, scsi.ErrMedium, scsi.ErrWriteFailed},
	{wire.ErrGap, scsi.ErrMedium, scsi.ErrWriteFailed},
	{wire.ErrSealed, scsi.ErrInternal, scsi.ErrWriteFailed},
	{wire.ErrFork, scsi.ErrForked, scsi.ErrForked},
	{wire.ErrUnproven, scsi.ErrForked, scsi.ErrForked},
	{wire.ErrDenied, scsi.ErrReservationConflict, scsi.ErrReservationConflict},
	{wire.ErrBadRequest, scsi.ErrOutOfRange, scsi.ErrOutOfRange},
	{wire.ErrVersion, scsi.ErrNotSupported, scsi.ErrNotSupported},
	{wire.ErrMiscompare, scsi.ErrInternal, scsi.ErrInternal},
	{wire.ErrProtected, scsi.ErrSoftwareProtected, scsi.ErrSoftwareProtected},
	{wire.ErrSanitizing, scsi.ErrSanitizing, scsi.ErrSanitizing},
}

func translate(err error, write bool) error {
	if err == nil {
		return nil
	}
	for _, s := range sentinels {
		if errors.Is(err, s.from) {
			if write {
				return &wrapped{s.write, err}
			}
			return &wrapped{s.read, err}
		}
	}
	return &wrapped{scsi.ErrInternal, err}
}

// wrapped shows SCSI's sentinel to the device server and the cause to the log.
type wrapped struct{ kind, cause error }

func (w *wrapped) Error() string   { return w.kind.Error() + ": " + w.cause.Error() }
func (w *wrapped) Unwrap() []error { return []error{w.kind, w.cause} }

func medium(off int64, err error) error {
	if errors.Is(err, scsi.ErrMedium) {
		return &scsi.MediumError{Offset: off, Err: err}
	}
	return err
}
