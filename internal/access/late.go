package access

import (
	"slices"

	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// Rule R9: a late command never runs. The owner refuses what may have been retried elsewhere meanwhile; the
// client gets BUSY and asks again by itself.

// stampAgeMax is below the path timeouts of initiators (protocol.md R9).
const stampAgeMax = 3000 // ms

// late keeps what the owner needs to tell a late command.
type late struct {
	resetTick uint64                     // LUN RESET or PREEMPT AND ABORT of everybody
	bars      map[[16]byte]bar           // by nexus: login, reinstatement
	aborted   aborts                     // until their tick is out of every stamp's reach
	sessions  map[string]*initiatorState // by initiator name
	before    *lateBefore                // of the epoch before, if it was handed over
	pruned    uint64
}

type bar struct {
	session uint64
	tick    uint64
}

// initiatorState says which sessions of an initiator were seen lately; only initiators with several have their
// writes remembered.
type initiatorState struct {
	sessions  map[uint64]uint64 // session -> tick last seen
	acks      *acked            // the writes that have arrived in the last seconds; nil while there is one session only
	acksOlder *acked            // and those of the seconds before
	wide      []wideAck         // long ones, trims of gigabytes among them
	turned    uint64            // when acks began
	last      uint64            // session of the last write,
	mixed     uint64            // and the tick of the last one that was of another than the one before
	// The newest write while there was one session only. Another that shows up later may bring something
	// older, and what was written is not known.
	newest ack
}

// wideSectors is from how many sectors on a write is remembered as a range.
const wideSectors = 4 << 20 / sectorSize

type wideAck struct {
	ack
	first, count uint64
}

// sectors is what a command writes. Another attempt of it writes the same ones, so that nothing is gained by going by whole blocks, and
// what sessions write beside each other within a block is no conflict.
func (op *Op) sectors() (first, count uint64) {
	first = uint64(op.Offset) / sectorSize
	return first, (uint64(op.Offset)+uint64(op.Length)+sectorSize-1)/sectorSize - first
}

type ack struct {
	tick    uint64
	session uint64
}

func newLate() late {
	return late{bars: map[[16]byte]bar{}, aborted: aborts{}, sessions: map[string]*initiatorState{}}
}

// check says whether a command may run; now is the owner's tick.
func (l *late) check(op *Op, epoch ident.Epoch, now uint64) *wire.Error {
	if op.Nexus == nil {
		return nil // the node's own work, or a protocol without proof in its stream
	}
	if op.Kind == wire.OpUnitState {
		return nil // it asks and changes nothing
	}
	s := op.Stamp
	since := s.Tick // what refusals are compared with
	if op.Since != 0 && !mutant.On(mutant.R9Began) {
		since = min(since, op.Since)
	}
	if b := l.before; b != nil && s.Epoch == b.epoch && b.epoch != epoch {
		if err := b.check(op, since); err != nil {
			return err
		}
		s = wire.Stamp{Epoch: epoch, Tick: b.here(s.Tick)}
		since = b.here(since)
	}
	switch {
	case mutant.On(mutant.R9Epoch) && s.Epoch != epoch:
		return nil
	case s.Epoch != epoch:
		return wire.Errorf(wire.CodeStale, "stamp of epoch %s, the owner's is %s", s.Epoch, epoch)
	case s.Tick+stampAgeMax < now && !mutant.On(mutant.R9Age):
		return wire.Errorf(wire.CodeStale, "stamp %d ms old", now-s.Tick)
	case since <= l.resetTick && l.resetTick != 0 && !mutant.On(mutant.R9Reset):
		return wire.Errorf(wire.CodeStale, "older than a reset")
	}
	if b, ok := l.bars[op.Nexus.Digest]; ok && b.session != op.Session && since <= b.tick && !mutant.On(mutant.R9Login) {
		return wire.Errorf(wire.CodeStale, "older than a newer login of its nexus")
	}
	if l.aborted.has(op.Request) && !mutant.On(mutant.R9Abort) {
		return wire.Errorf(wire.CodeStale, "aborted")
	}
	i := l.seen(op, now)
	if mutant.On(mutant.R9Acks) {
		return nil
	}
	if a := i.newest; writes(op.Kind) && a.tick != 0 && a.session != op.Session && s.Tick <= a.tick {
		return wire.Errorf(wire.CodeStale, "older than a newer write by another session")
	}
	if i.acks != nil && writes(op.Kind) {
		first, count := op.sectors()
		for _, a := range i.wide {
			if first < a.first+a.count && a.first < first+count && a.session != op.Session && s.Tick <= a.tick {
				return wire.Errorf(wire.CodeStale, "older than a newer write by another session")
			}
		}
		if i.acks.newer(first, count, op.Session, s.Tick) || i.acksOlder.newer(first, count, op.Session, s.Tick) {
			return wire.Errorf(wire.CodeStale, "older than a newer write by another session")
		}
	}
	return nil
}

// seen gives what is known of a command's initiator, with its session.
func (l *late) seen(op *Op, now uint64) *initiatorState {
	i := l.sessions[op.Nexus.Initiator]
	if i == nil {
		i = &initiatorState{sessions: map[uint64]uint64{}}
		l.sessions[op.Nexus.Initiator] = i
	}
	i.sessions[op.Session] = now
	return i
}

// arrived remembers a write for the other sessions of its initiator. An attempt of it that comes later by one of them was sent before:
// its stamp is no newer than this moment, however and whenever the write is answered. It need not be done for that: with
// MISCOMPARE, RESERVATION CONFLICT or no room it is over for its client, too.
func (l *late) arrived(op *Op, now uint64) {
	if op.Nexus == nil || !writes(op.Kind) {
		return
	}
	i := l.seen(op, now)
	if i.last != op.Session {
		i.last, i.mixed = op.Session, now
	}
	if len(i.sessions) < 2 && i.acks == nil {
		i.newest = ack{now, op.Session}
		return
	}
	if i.acks == nil || now-i.turned > stampAgeMax {
		i.acks, i.acksOlder, i.turned = newAcked(), i.acks, now
		i.wide = slices.DeleteFunc(i.wide, func(a wideAck) bool { return a.tick+2*stampAgeMax < now })
	}
	first, count := op.sectors()
	if count >= wideSectors {
		i.wide = append(i.wide, wideAck{ack{now, op.Session}, first, count})
		return
	}
	i.acks.note(first, count, ack{now, op.Session})
}

// single forgets sectors and goes back to the newest write, once there is one session again, and nothing by another one has arrived for so
// long that no stamp reaches back to it.
func (i *initiatorState) single(now uint64) {
	if i.acks != nil && len(i.sessions) == 1 && i.mixed+2*stampAgeMax < now {
		i.acks, i.acksOlder, i.wide = nil, nil, nil
		i.newest = ack{now, i.last}
	}
}

// bar records a refusal (R9) and returns the tick from which on commands run again.
func (l *late) bar(m *wire.Bar, now uint64) {
	switch m.Kind {
	case wire.BarLogin:
		l.bars[m.Nexus.Digest] = bar{m.Session, now}
	case wire.BarAbortTask:
		l.aborted.add(wire.RequestID{Forwarder: m.Forwarder, Number: m.First}, m.Last, now)
	case wire.BarLUNReset, wire.BarClearTaskSet:
		l.resetTick = now
	case wire.BarPreemptAbort, wire.BarLogout: // a logout ends what its session has under way (RFC 7143 11.14)
		l.bars[m.Nexus.Digest] = bar{^uint64(0), now}
	}
}

// prune forgets what no acceptable stamp can meet any more.
func (l *late) prune(now uint64) {
	if now-l.pruned < stampAgeMax {
		return
	}
	l.pruned = now
	for k, b := range l.bars {
		if b.tick+2*stampAgeMax < now {
			delete(l.bars, k)
		}
	}
	l.aborted.prune(now - min(now, 2*stampAgeMax))
	for name, i := range l.sessions {
		for s, t := range i.sessions {
			if t+10*stampAgeMax < now {
				delete(i.sessions, s)
			}
		}
		if len(i.sessions) == 0 {
			delete(l.sessions, name)
		} else {
			i.single(now)
		}
	}
}

func writes(k wire.ForwardOp) bool {
	switch k {
	case wire.OpWrite, wire.OpTrim, wire.OpZero, wire.OpCompareAndWrite, wire.OpOrWrite, wire.OpCopy:
		return true
	}
	return false
}

// recorded reports operations that become records: one that is sent again is answered by its ID.
func recorded(k wire.ForwardOp) bool { return writes(k) || k == wire.OpUnit }
