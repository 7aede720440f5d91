package iscsitest

import (
	"crypto/sha256"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

// chunk is the unit in which a Disk has memory, and in which space is provisioned.
const chunk = 4096

// Disk is a thin disk in memory. The zero value is not usable: NewDisk makes one.
type Disk struct {
	identity scsi.Identity

	mu       sync.RWMutex
	geometry scsi.Geometry
	paths    reserve.PathInfo
	chunks   map[int64][]byte
	fault    func(op Op, req scsi.Request, off int64, n int) error
	hold     chan struct{} // while not nil, calls wait for it to be closed
	delay    time.Duration
	flushes  int
	inFlight sync.WaitGroup
	pending  atomic.Int32 // held or delayed
	optimize func(group uint16) error
	unit     *reserve.Snapshot
	observer func(*reserve.Snapshot, []reserve.Event)
	calls    uint64
	others   []*Disk
	tokens   map[[16]byte]*token
	bare     bool
	copied   int64 // bytes copied by Copy; below 0: it can't

	buffers sync.Pool
}

// Op names a call of a Disk, for faults.
type Op string

// The calls.
const (
	OpRead    Op = "read"
	OpWrite   Op = "write"
	OpZero    Op = "zero"
	OpCompare Op = "compare"
	OpFlush   Op = "flush"
	OpUnit    Op = "unit"
	OpCopy    Op = "copy"
	OpToken   Op = "token"
)

// NewDisk makes a disk of a size; its identity follows from the name. blockSize is 512 or 4096.
func NewDisk(name string, sizeBytes int64, blockSize uint32) *Disk {
	d := &Disk{tokens: map[[16]byte]*token{}, chunks: map[int64][]byte{}, paths: reserve.SinglePath(1)}
	d.geometry = scsi.Geometry{Blocks: uint64(sizeBytes) / uint64(blockSize), BlockSize: blockSize,
		PhysicalBlockSize: chunk, VolatileCache: true}
	sum := sha256.Sum256([]byte(name))
	d.unit = &reserve.Snapshot{State: new(reserve.State)}
	d.identity = scsi.Identity{ID: [16]byte(sum[:16]), Vendor: "DOZO", Product: "MEMORY", Revision: "1"}
	return d
}

// SetGeometry changes shape and manner; the contents stay.
func (d *Disk) SetGeometry(change func(*scsi.Geometry)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.geometry)
}

// SetPaths changes what the disk says of its paths.
func (d *Disk) SetPaths(p reserve.PathInfo) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paths = p
}

// OnOptimize has f called for SET TARGET PORT GROUPS.
func (d *Disk) OnOptimize(f func(group uint16) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.optimize = f
}

// SetOptimized is scsi.Disk's.
func (d *Disk) SetOptimized(_ scsi.Request, group uint16, done func(error)) {
	d.later(func() {
		d.mu.RLock()
		f := d.optimize
		d.mu.RUnlock()
		if f == nil {
			done(nil)
			return
		}
		done(f(group))
	})
}

// SetFault lets calls fail: f says with what, nil for not at all.
func (d *Disk) SetFault(f func(op Op, req scsi.Request, off int64, n int) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// Observe has f called, before a change of the unit is answered, with what initiators are to be told.
func (d *Disk) Observe(f func(*reserve.Snapshot, []reserve.Event)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.observer = f
}

// Change makes a change of the unit that no initiator asked for.
func (d *Disk) Change(cmd *reserve.Command) reserve.Outcome {
	d.mu.Lock()
	next, result := d.unit.State.Apply(cmd)
	if next != nil {
		d.unit = &reserve.Snapshot{State: next}
		if z := next.Sanitize.Kind; cmd.Action == reserve.SanitizeBegin && z != reserve.SanitizeNone {
			clear(d.chunks)
			for off := int64(0); z == reserve.SanitizeOverwrite && off < int64(d.geometry.Blocks)*int64(d.geometry.BlockSize); off++ {
				d.store(off, next.Sanitize.Pattern[off%int64(d.geometry.BlockSize)%int64(len(next.Sanitize.Pattern)):][:1])
			}
		}
	}
	observer, unit := d.observer, d.unit
	d.mu.Unlock()
	if next != nil && observer != nil {
		observer(unit, result.Events)
	}
	return result.Outcome
}

// Unit, ShowUnit and ChangeUnit are scsi.Disk's.
func (d *Disk) Unit() *reserve.Snapshot {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.unit
}

// ShowUnit gives the state, with how much is used now: Unit has what it was when the state changed.
func (d *Disk) ShowUnit(_ scsi.Request, done func(*reserve.Snapshot, error)) {
	d.later(func() {
		d.mu.RLock()
		now := *d.unit
		now.UsedBlocks = uint64(len(d.chunks)) * chunk / uint64(d.geometry.BlockSize)
		d.mu.RUnlock()
		done(&now, nil)
	})
}

// ChangeUnit decides at once. A sanitize operation is over before it is answered.
func (d *Disk) ChangeUnit(req scsi.Request, cmd *reserve.Command, done func(reserve.Outcome, error)) {
	d.later(func() {
		if err := d.failure(OpUnit, req, 0, 0); err != nil {
			done(reserve.Good, err)
			return
		}
		o := d.Change(cmd)
		if cmd.Action == reserve.SanitizeBegin && o == reserve.Good {
			d.Change(&reserve.Command{Action: reserve.SanitizeEnd})
		}
		done(o, nil)
	})
}

// allowed says that reservations and modes don't refuse a call; in d.mu.
func (d *Disk) allowed(req scsi.Request, a reserve.Access) error {
	switch s := d.unit.State; {
	case req.Initiator != nil && !s.Allows(req.Initiator.Nexus, a):
		return scsi.ErrReservationConflict
	case a == reserve.AccessWrite && s.Current.WriteProtect:
		return scsi.ErrSoftwareProtected
	}
	return nil
}

// OrWrite combines under the lock.
func (d *Disk) OrWrite(req scsi.Request, w scsi.WriteBuffer, _ bool, done func(error)) {
	d.later(func() {
		b := w.(*buffer)
		defer b.Release()
		err := d.failure(OpWrite, req, b.off, len(b.b))
		if err == nil {
			d.mu.Lock()
			if err = d.check(b.off, len(b.b)); err == nil {
				if err = d.allowed(req, reserve.AccessWrite); err == nil {
					old := make([]byte, len(b.b))
					d.load(b.off, old)
					for i := range old {
						old[i] |= b.b[i]
					}
					d.store(b.off, old)
				}
			}
			d.mu.Unlock()
		}
		done(err)
	})
}

// Stamp, NewID, Other and the tokens are scsi.Disk's.
func (d *Disk) Stamp() scsi.Stamp { return scsi.Stamp{} }

// NewID counts.
func (d *Disk) NewID() scsi.RequestID {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	return scsi.RequestID{Conn: 1 << 63, Seq: d.calls}
}

// SetOthers says which disks Other finds.
func (d *Disk) SetOthers(list ...*Disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.others = list
}

// view is a disk as one who asked for it has it.
type view struct{ *Disk }

// Other looks among those of SetOthers. Who asks twice gets two Disks.
func (d *Disk) Other(meant func(scsi.Identity) bool, done func(scsi.Disk, func())) {
	d.later(func() {
		d.mu.RLock()
		others := d.others
		d.mu.RUnlock()
		for _, o := range others {
			if meant(o.identity) {
				done(&view{o}, func() {})
				return
			}
		}
		done(nil, nil)
	})
}

// Hold makes calls wait until release is called.
func (d *Disk) Hold() (release func()) {
	ch := make(chan struct{})
	d.mu.Lock()
	d.hold = ch
	d.mu.Unlock()
	return func() {
		d.mu.Lock()
		d.hold = nil
		d.mu.Unlock()
		close(ch)
	}
}

// SetDelay makes every call complete so much later, on a goroutine of its own.
func (d *Disk) SetDelay(t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = t
}

// Flushes counts Flush calls.
func (d *Disk) Flushes() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.flushes
}

// Pending says how many calls are held or delayed.
func (d *Disk) Pending() int { return int(d.pending.Load()) }

// Wait returns when no call is in flight.
func (d *Disk) Wait() { d.inFlight.Wait() }

// later runs f now, or after the hold or delay.
func (d *Disk) later(f func()) {
	d.mu.RLock()
	hold, delay := d.hold, d.delay
	d.mu.RUnlock()
	if hold == nil && delay == 0 {
		f()
		return
	}
	d.pending.Add(1)
	d.inFlight.Go(func() {
		defer d.pending.Add(-1)
		if hold != nil {
			<-hold
		}
		if delay > 0 {
			time.Sleep(delay)
		}
		f()
	})
}

func (d *Disk) failure(op Op, req scsi.Request, off int64, n int) error {
	d.mu.RLock()
	f := d.fault
	d.mu.RUnlock()
	if f != nil {
		return f(op, req, off, n)
	}
	return nil
}

// Geometry, Identity and Paths are scsi.Disk's.
func (d *Disk) Geometry() scsi.Geometry {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.geometry
}

// Identity names the disk.
func (d *Disk) Identity() scsi.Identity { return d.identity }

// Paths says how the disk's paths are.
func (d *Disk) Paths() reserve.PathInfo {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.paths
}

// buffer is memory for a write, or what a read found.
type buffer struct {
	d    *Disk
	off  int64
	b    []byte
	list [1][]byte
}

func (b *buffer) Bytes() []byte     { return b.b }
func (b *buffer) Buffers() [][]byte { b.list[0] = b.b; return b.list[:] }
func (b *buffer) Release()          { b.d.buffers.Put(b) }

func (d *Disk) get(off int64, n int) *buffer {
	b, _ := d.buffers.Get().(*buffer)
	if b == nil || cap(b.b) < n {
		b = &buffer{d: d, b: make([]byte, n)}
	}
	b.off, b.b = off, b.b[:n]
	return b
}

// NewWrite gives a buffer.
func (d *Disk) NewWrite(off int64, n int) (scsi.WriteBuffer, error) { return d.get(off, n), nil }

// Write stores a buffer.
func (d *Disk) Write(req scsi.Request, w scsi.WriteBuffer, _ bool, done func(error)) {
	d.later(func() {
		b := w.(*buffer)
		err := d.failure(OpWrite, req, b.off, len(b.b))
		if err == nil {
			d.mu.Lock()
			if err = d.check(b.off, len(b.b)); err == nil {
				if err = d.allowed(req, reserve.AccessWrite); err == nil {
					d.store(b.off, b.b)
				}
			}
			d.mu.Unlock()
		}
		b.Release()
		done(err)
	})
}

// Copy copies under the lock, whole physical blocks only.
func (d *Disk) Copy(req scsi.Request, from, to, n int64, token *scsi.Token, done func(error)) {
	d.later(func() {
		err := d.failure(OpCopy, req, to, int(n))
		if err == nil {
			d.mu.Lock()
			err = d.copyLocked(req, from, to, n, token)
			d.mu.Unlock()
		}
		done(err)
	})
}

func (d *Disk) copyLocked(req scsi.Request, from, to, n int64, token *scsi.Token) error {
	if d.copied < 0 {
		return scsi.ErrNotSupported
	}
	if (from|to|n)%chunk != 0 || n > scsi.CopyMax {
		return errors.New("a copy that no disk is to be asked for")
	}
	if err := errors.Join(d.check(from, int(n)), d.check(to, int(n)), d.allowed(req, reserve.AccessWrite)); err != nil {
		return err
	}
	if token != nil && d.tokens[token.ID].refusal(*token) != nil {
		return scsi.ErrTokenUnknown // a Disk does not say more of it here
	}
	b := make([]byte, n)
	d.load(from, b)
	d.store(to, b)
	d.copied += n
	return nil
}

// Copied counts the bytes that Copy has copied.
func (d *Disk) Copied() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.copied
}

// NoCopies has Copy say that it is not supported.
func (d *Disk) NoCopies() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.copied = -1
}

func (d *Disk) check(off int64, n int) error {
	if off < 0 || uint64(off)+uint64(n) > d.geometry.Blocks*uint64(d.geometry.BlockSize) {
		return scsi.ErrOutOfRange
	}
	return nil
}

func (d *Disk) store(off int64, b []byte) {
	d.touched(off, int64(len(b)))
	for len(b) > 0 {
		at, in := off/chunk, int(off%chunk)
		mem := d.chunks[at]
		if mem == nil {
			mem = make([]byte, chunk)
			d.chunks[at] = mem
		}
		n := copy(mem[in:], b)
		b, off = b[n:], off+int64(n)
	}
}

func (d *Disk) load(off int64, b []byte) {
	for len(b) > 0 {
		in := int(off % chunk)
		n := min(chunk-in, len(b))
		if mem := d.chunks[off/chunk]; mem != nil {
			copy(b[:n], mem[in:])
		} else {
			clear(b[:n])
		}
		b, off = b[n:], off+int64(n)
	}
}

// Read fetches a copy.
func (d *Disk) Read(req scsi.Request, off int64, n int, done func(scsi.ReadResult, error)) {
	d.later(func() {
		err := d.failure(OpRead, req, off, n)
		if err != nil {
			done(nil, err)
			return
		}
		b := d.get(off, n)
		d.mu.RLock()
		if err = errors.Join(d.check(off, n), d.allowed(req, reserve.AccessRead)); err == nil {
			d.load(off, b.b)
		}
		d.mu.RUnlock()
		if err != nil {
			b.Release()
			done(nil, err)
			return
		}
		done(b, nil)
	})
}

// Zero makes a range read as zeros and gives whole chunks back.
func (d *Disk) Zero(req scsi.Request, off, n int64, _ bool, done func(error)) {
	d.later(func() {
		err := d.failure(OpZero, req, off, int(n))
		if err == nil {
			d.mu.Lock()
			if err = d.check(off, int(n)); err == nil {
				d.zero(off, n)
			}
			d.mu.Unlock()
		}
		done(err)
	})
}

func (d *Disk) zero(off, n int64) {
	end := off + n
	d.touched(off, n)
	if n/chunk > int64(len(d.chunks)) {
		// A large range over few chunks: walk what there is.
		for at, mem := range d.chunks {
			first, last := max(off, at*chunk), min(end, (at+1)*chunk)
			switch {
			case last-first == chunk:
				delete(d.chunks, at)
			case last > first:
				clear(mem[first%chunk : first%chunk+last-first])
			}
		}
		return
	}
	for off < end {
		in := off % chunk
		m := min(chunk-in, end-off)
		if m == chunk {
			delete(d.chunks, off/chunk)
		} else if mem := d.chunks[off/chunk]; mem != nil {
			clear(mem[in : in+m])
		}
		off += m
	}
}

// CompareAndWrite compares and stores under one lock.
func (d *Disk) CompareAndWrite(req scsi.Request, compare []byte, w scsi.WriteBuffer, _ bool, done func(int, error)) {
	d.later(func() {
		b := w.(*buffer)
		defer b.Release()
		if err := d.failure(OpCompare, req, b.off, len(b.b)); err != nil {
			done(-1, err)
			return
		}
		at := -1
		d.mu.Lock()
		err := d.check(b.off, len(b.b))
		if err == nil {
			now := make([]byte, len(b.b))
			d.load(b.off, now)
			for i := range now {
				if now[i] != compare[i] {
					at = i
					break
				}
			}
			if at < 0 {
				d.store(b.off, b.b)
			}
		}
		d.mu.Unlock()
		done(at, err)
	})
}

// Flush counts.
func (d *Disk) Flush(req scsi.Request, done func(error)) {
	d.later(func() {
		err := d.failure(OpFlush, req, 0, 0)
		d.mu.Lock()
		d.flushes++
		d.mu.Unlock()
		done(err)
	})
}

// Provisioned says whether there is a chunk.
func (d *Disk) Provisioned(off int64, done func(bool, int64, error)) {
	d.later(func() {
		d.mu.RLock()
		_, has := d.chunks[off/chunk]
		d.mu.RUnlock()
		done(has, chunk-off%chunk, nil)
	})
}
