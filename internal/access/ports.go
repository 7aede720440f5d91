package access

import (
	"fmt"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// Rule R11: after a takeover that is not proven the volume may have gone back in time, and an initiator whose host
// has lived on believes to know what is on it. Every port that was attached gets an error that multipathing passes
// up, by all paths and also after a mere re-login, until it has logged out, comes with a new ISID, or an operator says
// that it may go on.
//
// Attachments are records: a login is answered only once its attachment is stable on two servers, so that no takeover
// without force forgets a port whose command was answered. Nothing is written for the commands themselves.

const stateAttachments uint16 = 2

// Bounds of what is remembered of a volume's ports; ours. A port that went away without a logout stays; when there
// are too many, the one that attached first and has been silent goes.
const (
	portsMax      = 4096
	portBytesMax  = 768 << 10 // in a checkpoint
	portsShownMax = 64        // of the barred ones, in the status
)

// ports is what the owner's loop knows of attachments.
type ports struct {
	list   map[journal.Port]*journal.Attachment
	order  []*journal.Attachment // by the time of attaching
	barred int
	bytes  int
	strict bool // an epoch was not proven: who sends commands without a login in this history was forgotten by it (forgotten.go)
	shows  []portShow
	left   bool                  // an epoch was not proven: a port that attaches from now on may be one that was left behind,
	fresh  map[journal.Port]bool // and these have
	dirty  bool                  // since the last checkpoint

	barring map[journal.Port]bool // a record that refuses the port is under way
	leaving int                   // records of logouts that are under way
}

func portOf(n *wire.Nexus) journal.Port {
	return journal.Port{Protocol: journal.PortISCSI, ISID: n.ISID, Name: n.Initiator}
}

func portAttach(n *wire.Nexus, session uint64) journal.PortChange {
	return journal.PortChange{Op: journal.PortAttach, Port: portOf(n), Group: n.TPGT, Session: session}
}

// load takes the attachments of the checkpoint.
func (p *ports) load(b []byte) error {
	p.list, p.fresh = map[journal.Port]*journal.Attachment{}, map[journal.Port]bool{}
	if b == nil {
		return nil
	}
	list, err := journal.DecodeAttachments(b)
	if err != nil {
		return err
	}
	for i := range list {
		a := &list[i]
		p.list[a.Port] = a
		p.order = append(p.order, a)
		p.bytes += a.Size()
		if a.Barred {
			p.barred++
		}
	}
	return nil
}

// refusesPort reports that a command gets R11's error. The common case is two comparisons. What is shared beside the
// data, reservations and the like, is as the records have it and can be asked for and changed.
func (o *Owner) refusesPort(op *Op) bool {
	p := &o.ports
	if mutant.On(mutant.R11Ports) || p.barred == 0 && !p.strict || op.Nexus == nil || op.Kind == wire.OpUnit || op.Kind == wire.OpUnitState {
		return false
	}
	port := portOf(op.Nexus)
	a := p.list[port]
	switch {
	case a != nil && a.Barred:
		return true
	case !p.strict || op.Copier: // what a target copies from or to for a port says nothing of what that one knows
		return false
	case p.barring[port]:
		return true
	case a != nil && (a.Accepted || hasPath(a, op.Nexus.TPGT)):
		return false
	}
	o.barForgotten(port, op)
	return true
}

// started takes an epoch-start of the history.
func (p *ports) started(s wire.EpochStart) {
	if s.Proven {
		return
	}
	p.left = true
	for _, a := range p.order {
		p.bar(a)
	}
}

// bar has a port get errors from now on.
func (p *ports) bar(a *journal.Attachment) {
	if !a.Barred {
		a.Barred, a.Accepted = true, false
		delete(p.fresh, a.Port) // it does not go on without an error
		p.barred++
		p.dirty = true
	}
}

// apply takes one committed change.
func (p *ports) apply(c *journal.PortChange) {
	p.dirty = true
	a := p.list[c.Port]
	if a == nil {
		if c.Op != journal.PortAttach && c.Op != journal.PortBar {
			return
		}
		a = &journal.Attachment{Port: c.Port}
		p.list[c.Port] = a
		if p.left {
			p.fresh[c.Port] = true
		}
		p.order = append(p.order, a)
	} else {
		p.bytes -= a.Size()
	}
	i := slices.IndexFunc(a.Paths, func(x journal.PortPath) bool { return x.Group == c.Group })
	switch c.Op {
	case journal.PortAttach, journal.PortBar:
		if c.Op == journal.PortBar {
			delete(p.barring, c.Port)
			p.bar(a)
		}
		if i >= 0 {
			a.Paths = slices.Delete(a.Paths, i, i+1)
		} else if len(a.Paths) == journal.PortPathsMax {
			a.Paths = slices.Delete(a.Paths, 0, 1)
		}
		a.Paths = append(a.Paths, journal.PortPath{Group: c.Group, Session: c.Session})
	case journal.PortDetach:
		// A session that began since is not the one that has logged out.
		if i >= 0 && a.Paths[i].Session == c.Session {
			a.Paths = slices.Delete(a.Paths, i, i+1)
		}
		if len(a.Paths) == 0 {
			delete(p.list, a.Port)
			delete(p.fresh, a.Port)
			p.order = slices.DeleteFunc(p.order, func(x *journal.Attachment) bool { return x == a })
			if a.Barred {
				p.barred--
			}
			return
		}
	case journal.PortAccept:
		if a.Barred {
			a.Barred, a.Accepted = false, true
			p.barred--
		}
	}
	p.bytes += a.Size()
}

// applyPorts takes a committed record of the history, if it is about ports.
func (o *Owner) applyPorts(kind journal.Kind, rec *journal.Record, body []byte) error {
	switch kind {
	case journal.KindAttach:
		changes, err := journal.DecodePortChanges(body)
		if err != nil {
			return err
		}
		for i := range changes {
			o.ports.apply(&changes[i])
		}
	case journal.KindEpochStart:
		s, err := journal.DecodeEpochStart(rec, body)
		if err != nil {
			return err
		}
		if s.At.Epoch != o.epoch || !o.ack.kept || !o.ack.silent { // else: keptAll
			o.ports.started(s)
		}
	}
	return nil
}

// portsState keeps the attachments with the checkpoint that begins.
func (o *Owner) portsState() error {
	p := &o.ports
	if !p.dirty {
		return nil
	}
	list := make([]journal.Attachment, len(p.order))
	for i, a := range p.order {
		list[i] = *a
		list[i].Accepted = a.Accepted && o.env.Control.Level() >= control.LevelPortBars
	}
	if err := o.m.SetState(stateAttachments, journal.AppendAttachments(nil, list)); err != nil {
		return err
	}
	p.dirty = false
	return nil
}

// portBar does what a bar says of attachments; then is called, in the loop, with nil once the caller may be
// answered. A port that is attached already waits for nothing.
func (o *Owner) portBar(m *wire.Bar, then func(error)) {
	p := &o.ports
	port := portOf(&m.Nexus)
	switch m.Kind {
	case wire.BarLogin:
		a := p.list[port]
		known := false
		if a != nil {
			i := slices.IndexFunc(a.Paths, func(x journal.PortPath) bool { return x.Group == m.Nexus.TPGT })
			// Where somebody is logging out, that path may be going.
			if known = i >= 0 && p.leaving == 0; known && a.Paths[i].Session == m.Session {
				then(nil)
				return
			}
		}
		change := portAttach(&m.Nexus, m.Session)
		if o.wasLeftBehind(m, a) {
			o.log.Warn("a port logs in again whose last login a takeover that was not proven has left behind", "initiator", port.Name, "group", m.Nexus.TPGT)
			change.Op = journal.PortBar
		}
		changes := append(p.makeRoom(&o.late), change)
		if known { // only the session is another; a logout must know it, a takeover need not
			o.queueOwn(journal.KindAttach, journal.AppendPortChanges(nil, changes), func(ident.Seq) {})
			then(nil)
			return
		}
		o.queuePorts(changes, func(seq ident.Seq, err error) {
			if err != nil {
				then(err)
				return
			}
			o.awaitShown(seq, then)
		})
	case wire.BarLogout:
		// Lost with the power it stays attached, which does no harm: the error comes once more.
		c := journal.PortChange{Op: journal.PortDetach, Port: port, Group: m.Nexus.TPGT, Session: m.Session}
		p.leaving++
		o.queueOwn(journal.KindAttach, journal.AppendPortChanges(nil, []journal.PortChange{c}), func(ident.Seq) {
			p.leaving--
			then(nil)
		})
	case wire.BarAccept:
		// Nobody has agreed yet to what a later takeover has left behind: the word may have been long on its way, or be said again because it
		// was not answered, by somebody whose ports have gone on since.
		if seen := (ident.Epoch{Number: m.First, Lineage: uint32(m.Last)}); m.First != 0 && o.cutSince(seen) {
			then(wire.Errorf(wire.CodeConflict, "since epoch %s there was another takeover that was not proven, and ports get errors because of that one", seen))
			return
		}
		var changes []journal.PortChange
		for _, a := range p.order {
			if a.Barred && isMeant(m, a.Port) {
				changes = append(changes, journal.PortChange{Op: journal.PortAccept, Port: a.Port})
			}
		}
		changes = append(changes, p.acceptForgotten(m)...)
		if len(changes) == 0 {
			then(nil)
			return
		}
		o.log.Warn("ports may go on after a takeover that was not proven", "ports", len(changes))
		o.queuePorts(changes, func(_ ident.Seq, err error) { then(err) })
	case wire.BarForget:
		o.forget(ident.Epoch{Number: m.First, Lineage: uint32(m.Last)}, then)
	default:
		then(nil)
	}
}

// cutSince reports that an epoch-start behind an epoch, this owner's included, was not proven.
func (o *Owner) cutSince(e ident.Epoch) bool {
	return !o.proven && e.Less(o.epoch) || slices.ContainsFunc(o.recovered.Cuts, func(s wire.EpochStart) bool { return e.Less(s.At.Epoch) })
}

// queuePorts makes changes a record, and calls then, in the loop, once it is stable.
func (o *Owner) queuePorts(changes []journal.PortChange, then func(ident.Seq, error)) {
	op := NewOp()
	op.Kind, op.home = wire.OpFlush, true // at home: for other sites awaitShown waits, with a bound
	op.Done = func(op *Op, err error) {
		seq := op.seq
		op.Release()
		o.call(func() { then(seq, err) })
	}
	o.queueOwn(journal.KindAttach, journal.AppendPortChanges(nil, changes), func(seq ident.Seq) {
		op.seq = seq
		o.awaitStable(op)
	})
}

// makeRoom says who has to go for one more port.
func (p *ports) makeRoom(l *late) (changes []journal.PortChange) {
	count, size := len(p.order), p.bytes
	for _, a := range p.order {
		if count < portsMax && size < portBytesMax {
			break
		}
		if l.heardOf(a) {
			continue
		}
		for _, x := range a.Paths {
			changes = append(changes, journal.PortChange{Op: journal.PortDetach, Port: a.Port, Group: x.Group, Session: x.Session})
		}
		count, size = count-1, size-a.Size()
	}
	return changes
}

// heardOf reports that a session of a port has sent commands lately. Others of the same initiator say nothing of it: one that takes another ISID
// for each session has thousands of ports that are gone.
func (l *late) heardOf(a *journal.Attachment) bool {
	i := l.sessions[a.Port.Name]
	return i != nil && slices.ContainsFunc(a.Paths, func(x journal.PortPath) bool { _, lately := i.sessions[x.Session]; return lately })
}

// waitPorts does the part of a bar that is about attachments.
func (o *Owner) waitPorts(m *wire.Bar) error {
	done := make(chan error, 1)
	o.call(func() {
		if o.stopErr != nil {
			done <- wire.Errorf(wire.CodeNotOwner, "epoch %s is over", o.epoch)
			return
		}
		o.portBar(m, func(err error) { done <- err })
	})
	timer := time.NewTimer(barPatience)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("attachment: %w", err)
		}
		return nil
	case <-o.stopped:
		return wire.Errorf(wire.CodeNotOwner, "epoch %s is over", o.epoch)
	case <-timer.C:
		return wire.Errorf(wire.CodeBusy, "the attachment of %s is not stable yet", m.Nexus.Initiator)
	}
}

// barredPorts lists the first of the ports that are refused, for people.
func (p *ports) barredPorts() (list []wire.PortName) {
	for _, a := range p.order {
		if a.Barred && len(list) < portsShownMax {
			list = append(list, wire.PortName{Initiator: a.Port.Name, ISID: a.Port.ISID})
		}
	}
	return list
}
