package access

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync/atomic"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// The unit's shared state at its owner: reservations, mode parameters, a sanitize operation (R7). A change is
// decided by reserve.State.Apply at its place in the history and recorded as the state that it makes. While it
// is not committed, whatever depends on the state waits, so every decision stands on committed records. The
// answer to a change comes once its record is stable and every access server that can be reached has raised the
// unit attentions:
//
//	admit -> Apply -> record -> commit (map's state, bars of PREEMPT AND ABORT) -> stable -> announce -> Done

// stateUnit is the kind of the unit's state in checkpoints (volume.Map.SetState); docs/format.md lists them.
const stateUnit = 10

// goodOutcome is the answer to a change that was made.
var goodOutcome = []byte{byte(reserve.Good)}

// unit is what the owner's loop keeps of the unit.
type unit struct {
	state     *reserve.State // with the change in flight
	committed *reserve.State
	events    []reserve.Event // the last ones, of committed changes
	open      bool            // nothing in state is in anybody's way
	version   atomic.Uint64   // of the committed state, for ticks
	progress  atomic.Uint32   // of a sanitize operation, of 65536
	working   bool            // it is under way
	resources unitResources
}

// unitResult is what Apply decided for an Op.
type unitResult struct {
	next   *reserve.State
	result reserve.Result
}

func (u *unit) set(s *reserve.State) {
	u.state = s
	u.open = s.Idle() && s.Sanitize.Kind == reserve.SanitizeNone && !s.Current.WriteProtect
}

// revert forgets a change that found no room.
func (u *unit) revert() { u.set(u.committed) }

// loadUnit takes the state from the checkpoint that the map was loaded from.
func (o *Owner) loadUnit() error {
	s := new(reserve.State)
	if b := o.m.State(stateUnit); b != nil {
		var err error
		if s, err = reserve.DecodeState(b); err != nil {
			return fmt.Errorf("state of the unit in the checkpoint: %w", err)
		}
	}
	o.unit.committed = s
	o.unit.set(s)
	o.unit.version.Store(s.Version)
	return nil
}

// unitApplied takes a committed record into the state.
func (o *Owner) unitApplied(body []byte) error {
	s, err := reserve.DecodeState(body)
	if err != nil {
		return err
	}
	if err := o.m.SetState(stateUnit, append([]byte(nil), body...)); err != nil {
		return err
	}
	o.unit.committed = s
	if s.Version >= o.unit.state.Version {
		o.unit.set(s)
	}
	o.unit.version.Store(s.Version)
	return nil
}

// nexusID is a nexus in the terms of reservations.
func nexusID(n *wire.Nexus) reserve.NexusID {
	return reserve.NexusID{Initiator: n.Initiator, ISID: n.ISID, Port: n.TPGT}
}

// NexusOf is a nexus in the terms of the wire.
func NexusOf(n reserve.NexusID) wire.Nexus {
	x := wire.Nexus{Initiator: n.Initiator, ISID: n.ISID, TPGT: n.Port}
	sum := sha256.Sum256([]byte(n.String()))
	copy(x.Digest[:], sum[:])
	return x
}

// unitWaits says that a change of the unit is in flight that the command may depend on.
func (o *Owner) unitWaits(op *Op) bool {
	flying := o.unit.state != o.unit.committed && o.unit.state.Version != o.unit.committed.Version
	if mutant.On(mutant.R7Unit) || !flying && (o.ack.rule == nil || o.ack.unit <= o.ack.rule.Held()) {
		return false
	}
	return op.Kind == wire.OpUnit || op.Kind == wire.OpUnitState || op.Nexus != nil && op.Kind != wire.OpProvisioned
}

// unitRefuses says that the state doesn't let a client's command run.
func (o *Owner) unitRefuses(op *Op) *wire.Error {
	if o.unit.open || op.Nexus == nil {
		return nil
	}
	class := reserve.AccessWrite // a flush too: SBC-3 table 13
	switch op.Kind {
	case wire.OpUnit, wire.OpUnitState, wire.OpProvisioned:
		return nil
	case wire.OpRead, wire.OpToken:
		class = reserve.AccessRead
	}
	s := o.unit.state
	switch {
	case !s.Allows(nexusID(op.Nexus), class):
		return wire.Errorf(wire.CodeDenied, "reserved")
	case s.Sanitize.Kind != reserve.SanitizeNone:
		return wire.Errorf(wire.CodeSanitizing, "a sanitize operation is under way or failed")
	case s.Current.WriteProtect && writes(op.Kind):
		return wire.Errorf(wire.CodeProtected, "software write protection")
	}
	return nil
}

// changeUnit decides upon a change.
func (o *Owner) changeUnit(op *Op) {
	cmd, err := reserve.DecodeCommand(op.Unit)
	if err == nil && op.Nexus != nil && (cmd.Nexus != nexusID(op.Nexus) || !clientMay(cmd.Action)) {
		err = fmt.Errorf("action %d for %s by %s", cmd.Action, cmd.Nexus, nexusID(op.Nexus))
	}
	if err != nil {
		o.finish(op, wire.Errorf(wire.CodeBadRequest, "%v", err))
		return
	}
	next, result := o.unit.state.Apply(cmd)
	var body []byte
	if next != nil {
		if body = next.Append(nil); len(body) > journal.RecordBodyGoal {
			next, result = nil, reserve.Result{Outcome: reserve.InsufficientRegistrations}
		}
	}
	if next == nil {
		op.Data = append(op.Data[:0], []byte{byte(result.Outcome)})
		o.finish(op, nil)
		return
	}
	o.unit.set(next)
	op.decided = unitResult{next, result}
	e := ownEntry(journal.KindReservation, body)
	e.Request, e.Part, e.Context = requestID(op), op.part, op
	op.parts = 1
	o.w.Queue(e)
	op.seq = e.Seq
	o.uncommitted = append(o.uncommitted, op)
}

// clientMay tells the actions of clients from the owner's own.
func clientMay(a reserve.Action) bool {
	switch a {
	case reserve.SanitizeEnd, reserve.ThresholdCrossed, reserve.Reset, reserve.ClearTasks, reserve.Evict:
		return false
	}
	return true
}

// unitCommitted goes on with a change whose record is committed.
func (o *Owner) unitCommitted(op *Op, now uint64) {
	d := &op.decided
	// R9: the refusal is there before the answer. Those that wait are held to it as well.
	for _, n := range d.result.Aborts {
		x := NexusOf(n)
		o.late.bar(&wire.Bar{Kind: wire.BarPreemptAbort, Nexus: x}, now)
		for _, w := range o.waiting {
			if w.Nexus != nil && w.Nexus.Digest == x.Digest {
				w.barred = false
			}
		}
	}
	o.unit.events = append(o.unit.events, d.result.Events...)
	if n := len(o.unit.events) - reserve.EventsMax; n > 0 {
		o.unit.events = append(o.unit.events[:0:0], o.unit.events[n:]...)
	}
	o.sanitize()
	msg := o.unitMessage()
	msg.Tick = now + 1 // later than the refusals of this turn
	f := NewOp()
	f.Kind, f.seq = wire.OpFlush, op.seq
	f.Done = func(f *Op, err error) {
		f.Release()
		o.goBackground(func() {
			if err == nil && o.env.Announce != nil {
				o.env.Announce(o.ctx, msg)
			}
			o.call(func() {
				op.Data = append(op.Data[:0], goodOutcome)
				o.finish(op, err)
			})
		})
	}
	o.awaitStable(f)
}

// snapshot is the unit as the owner tells it.
func (o *Owner) snapshot() *reserve.Snapshot {
	size := max(uint64(o.spec.Load().BlockSize), 512)
	return &reserve.Snapshot{State: o.unit.committed, Events: o.unit.events, Progress: uint16(o.unit.progress.Load()),
		UsedBlocks: o.m.Mapped() * journal.BlockSize / size, AvailableBlocks: o.unit.resources.free / size}
}

func (o *Owner) unitMessage() *wire.Unit {
	return &wire.Unit{Journal: o.journalID, Epoch: o.epoch, Data: o.snapshot().Append(nil)}
}

// showUnit answers what the state is. Like a read it needs the lease (R6).
func (o *Owner) showUnit(op *Op) {
	if !o.mayRead() {
		o.awaitLease(op, func() { o.showUnit(op) })
		return
	}
	op.Data = append(op.Data[:0], o.snapshot().Append(nil))
	o.finish(op, nil)
}

// ownChange makes a change that no client's command stands for; in the loop. The channel gets its outcome.
func (o *Owner) ownChange(cmd *reserve.Command) <-chan error {
	done := make(chan error, 1)
	op := NewOp()
	op.Kind, op.Unit, op.barred = wire.OpUnit, cmd.Append(nil), true
	op.Done = func(op *Op, err error) {
		op.Release()
		done <- err
	}
	o.admit(op)
	return done
}

// evict ends the registrations and reservations of an initiator, or of all; it returns once that is recorded.
func (o *Owner) evict(ctx context.Context, initiator string) error {
	var done <-chan error
	o.ask(func() {
		done = o.ownChange(&reserve.Command{Action: reserve.Evict, Nexus: reserve.NexusID{Initiator: initiator}})
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the owner has not recorded it yet: %w", ctx.Err())
	}
}

// barUnit changes the unit as a refusal asks for it: a reset resets it too, and a login ends what an older
// session of the nexus had reserved. nil if there is nothing to change.
func (o *Owner) barUnit(m *wire.Bar) <-chan error {
	n := nexusID(&m.Nexus)
	switch m.Kind {
	case wire.BarLUNReset:
		return o.ownChange(&reserve.Command{Action: reserve.Reset, Nexus: n})
	case wire.BarClearTaskSet:
		return o.ownChange(&reserve.Command{Action: reserve.ClearTasks, Nexus: n})
	case wire.BarLogin:
		if l := o.unit.state.Legacy; l != nil && l.Nexus == n && l.Session != m.Session {
			return o.ownChange(&reserve.Command{Action: reserve.NexusLost, Nexus: n, Session: l.Session})
		}
	case wire.BarLogout: // what the session would say itself is barred
		if l := o.unit.state.Legacy; l != nil && l.Nexus == n && l.Session == m.Session {
			return o.ownChange(&reserve.Command{Action: reserve.NexusLost, Nexus: n, Session: l.Session})
		}
	}
	return nil
}

// serveUnit tells everybody how the unit is, and goes on with what a former owner had begun.
func (o *Owner) serveUnit() {
	msg := o.unitMessage()
	if o.env.Announce != nil {
		o.goBackground(func() { o.env.Announce(o.ctx, msg) })
	}
	o.sanitize()
}

// unitResources is how much room there is for the volume's data.
type unitResources struct {
	asking bool
	known  bool
	free   uint64 // bytes that can still be written, each on two stores
	told   [2]bool
	turns  int
}

// resourcesEvery is how many seconds pass between questions for free space.
const resourcesEvery = 5

// everySecondUnit looks after what the unit says of its resources.
func (o *Owner) everySecondUnit() {
	o.sanitize() // if a record of the tail asks for it
	r := &o.unit.resources
	if r.turns--; r.turns > 0 || r.asking || !o.w.Serving() {
		return
	}
	r.turns = resourcesEvery
	if o.env.About != nil { // the node asks each store for all its owners
		var free []uint64
		for _, st := range o.stores {
			if a := o.env.about(st.ID()); a.Known && !a.Failed {
				free = append(free, a.Free)
			}
		}
		if len(free) >= 2 {
			r.known, r.free = true, pairs(free)
			o.checkThresholds()
		} else if !r.known {
			r.turns = 0 // the node has just begun to ask
		}
		return
	}
	r.asking = true
	stores := o.stores
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, o.env.Limits.SyncTimeout)
		defer cancel()
		var free []uint64
		for _, s := range stores {
			if a, err := s.Status(ctx, &wire.StoreStatus{}); err == nil && a.Failed == "" {
				free = append(free, a.Free)
			}
		}
		o.call(func() {
			r.asking = false
			if len(free) >= 2 {
				r.known, r.free = true, pairs(free)
				o.checkThresholds()
			}
		})
	})
}

// pairs is how much fits on two of the stores each.
func pairs(free []uint64) uint64 {
	var sum, most uint64
	for _, f := range free {
		sum += f
		most = max(most, f)
	}
	return min(sum/2, sum-most)
}

// checkThresholds raises the unit attention of a threshold once when it is crossed (SBC-3 4.7.3.7.4, 4.7.3.7.5), and again only after
// its range, half a threshold set to either side, was left: who writes and trims around it is told once.
func (o *Owner) checkThresholds() {
	s, r := o.unit.state, &o.unit.resources
	size := max(uint64(o.spec.Load().BlockSize), 512) << reserve.ThresholdExponent
	free, used := r.free, o.m.Mapped()*journal.BlockSize
	least, most := uint64(s.Current.ThresholdAvailable)*size, uint64(s.Current.ThresholdUsed)*size
	crossed := [2]bool{
		least != 0 && (free <= least || r.told[0] && free <= least+size/2),
		most != 0 && (used >= most || r.told[1] && used+size/2 >= most),
	}
	if s.Current.ReportThresholds && (crossed[0] && !r.told[0] || crossed[1] && !r.told[1]) {
		o.ownChange(&reserve.Command{Action: reserve.ThresholdCrossed})
	}
	r.told = crossed
}

// durable says that every write of the volume is answered only once it is stable.
func (o *Owner) durable() bool {
	return o.spec.Load().Durability == control.Sync || o.unit.state.Current.CacheOff
}

const (
	sanitizeWindow = 4 // writes of an overwrite that are under way
	// An overwrite is background work: clients of other volumes use the same disks. It goes at these rates, in bytes
	// a second, a small volume's so that it takes some seconds.
	sanitizeRateMax = 200 << 20
	sanitizeRateMin = 16 << 20
	sanitizeSeconds = 6
)

// sanitize starts the operation that the committed state asks for, if it isn't running.
func (o *Owner) sanitize() {
	z := o.unit.committed.Sanitize
	if o.unit.working || !z.UnderWay() || o.stopErr != nil {
		return
	}
	o.unit.working = true
	o.unit.progress.Store(0)
	size := o.spec.Load().SizeBytes
	o.goBackground(func() {
		var err error
		if z.Kind == reserve.SanitizeBlockErase {
			err = o.blocking(func(op *Op) { op.Kind, op.Length = wire.OpTrim, size })
		} else {
			err = o.overwrite(z, size)
		}
		var seq ident.Seq
		o.ask(func() { seq = o.w.At().Seq })
		if err == nil {
			err = o.waitStable(seq)
		}
		o.call(func() {
			o.unit.working = false
			if o.stopErr != nil {
				return // the next owner begins it again
			}
			if err != nil {
				o.log.Error("sanitize", "err", err)
			}
			o.ownChange(&reserve.Command{Action: reserve.SanitizeEnd, Failed: err != nil})
			// What is dead now goes with the next checkpoint.
			o.cp.last = 0
		})
	})
}

// blocking runs a command of the owner's own and waits for it.
func (o *Owner) blocking(set func(*Op)) error {
	done := make(chan error, 1)
	op := NewOp()
	set(op)
	op.Done = func(op *Op, err error) {
		op.Release()
		done <- err
	}
	o.Submit(op)
	return <-done
}

// overwrite writes the pattern to every logical block, as often as was asked for.
func (o *Owner) overwrite(z reserve.Sanitize, size int64) error {
	block := make([]byte, max(o.spec.Load().BlockSize, 512))
	if len(z.Pattern) > 0 {
		for i := 0; i < len(block); i += len(z.Pattern) {
			copy(block[i:], z.Pattern)
		}
	}
	// Segments of small volumes hold few records of full size.
	record := int64(min(journal.RecordBodyGoal, o.env.Limits.SegmentBytes/8/journal.BlockSize*journal.BlockSize))
	passes := int64(max(z.Passes, 1))
	type slot struct{ done chan error }
	var under []slot
	wait := func() error {
		s := under[0]
		under = under[1:]
		return <-s.done
	}
	rate := max(sanitizeRateMin, min(sanitizeRateMax, size/sanitizeSeconds))
	pace := time.NewTicker(time.Second * time.Duration(record) / time.Duration(rate))
	defer pace.Stop()
	var failed error
	for pass := range passes {
		// SBC-3 5.24.2.2: of an even number of passes the first one writes the complement, so that the last one writes the pattern.
		if z.Invert && (pass > 0 || passes%2 == 0) {
			for i := range block {
				block[i] = ^block[i]
			}
		}
		for off := int64(0); off < size && failed == nil && o.ctx.Err() == nil; off += record {
			if size = min(size, o.spec.Load().SizeBytes); off >= size { // it may become smaller meanwhile
				break
			}
			if len(under) == sanitizeWindow {
				failed = wait()
			}
			select {
			case <-pace.C:
			case <-o.ctx.Done():
			}
			op := NewOp()
			s := slot{make(chan error, 1)}
			op.Kind, op.Offset, op.Length = wire.OpWrite, off, min(record, size-off)
			op.Buf = NewWriteBuf(off, int(op.Length))
			for b := op.Buf.Bytes(); len(b) > 0; b = b[min(len(b), len(block)):] {
				copy(b, block)
			}
			op.Done = func(op *Op, err error) {
				op.Release()
				s.done <- err
			}
			under = append(under, s)
			o.Submit(op)
			o.unit.progress.Store(uint32((pass*size + off) * 65535 / (passes * size)))
		}
	}
	for len(under) > 0 {
		if err := wait(); err != nil && failed == nil {
			failed = err
		}
	}
	if failed == nil {
		failed = o.ctx.Err()
	}
	return failed
}
