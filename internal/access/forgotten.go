package access

import (
	"slices"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A login is answered only once its attachment is stable on two servers. So where a command comes by a path that has not logged in
// in this history, and an epoch of it was not proven, the login is among what that one left behind, and its port was attached before
// (R11). This is held against the path, not only the port: one session of a host may be of before, and another one have logged in
// since, or a login that the host had long given up have arrived. The port is refused by all paths from then on: a record attaches
// and bars it, so that later owners know it, the status shows it, and an operator can let it go on.

// barForgotten has a port refused from now on. It runs in the loop.
func (o *Owner) barForgotten(port journal.Port, op *Op) {
	p := &o.ports
	if o.env.Control.Level() < control.LevelPortBars {
		return // refused, as long as it comes by that path
	}
	if o.late.check(op, o.epoch, o.tick()) != nil {
		return // its session may have logged out since; one that has not sends newer ones
	}
	if p.barring == nil {
		p.barring = map[journal.Port]bool{}
	}
	p.barring[port] = true
	var changes []journal.PortChange
	if p.list[port] == nil {
		changes = p.makeRoom(&o.late)
	}
	changes = append(changes, journal.PortChange{Op: journal.PortBar, Port: port, Group: op.Nexus.TPGT, Session: op.Session})
	o.log.Warn("a port sends commands without a login in this history: it was attached before a takeover that was not proven", "initiator", port.Name, "group", op.Nexus.TPGT)
	o.queueOwn(journal.KindAttach, journal.AppendPortChanges(nil, changes), func(ident.Seq) {})
}

// wasLeftBehind reports that a login is of a port which was attached before an epoch-start that was not proven, by the word of the access server
// where it logs in again, and that is not known here by that path: the last login is among what was left behind. a is what is known of
// the port. It runs in the loop.
func (o *Owner) wasLeftBehind(m *wire.Bar, a *journal.Attachment) bool {
	if !o.ports.strict || m.First == 0 || a != nil && (a.Barred || a.Accepted || hasPath(a, m.Nexus.TPGT)) || o.env.Control.Level() < control.LevelPortBars {
		return false
	}
	last := ident.Epoch{Number: m.First, Lineage: uint32(m.Last)}
	return slices.ContainsFunc(o.forks.cuts, func(c wire.EpochStart) bool { return last.Less(c.At.Epoch) })
}

// acceptForgotten lists those that an operator lets go on while the record that refuses them is under way.
func (p *ports) acceptForgotten(m *wire.Bar) (changes []journal.PortChange) {
	for port := range p.barring {
		if a := p.list[port]; isMeant(m, port) && (a == nil || !a.Barred) {
			changes = append(changes, journal.PortChange{Op: journal.PortAccept, Port: port})
		}
	}
	slices.SortFunc(changes, func(a, b journal.PortChange) int { return slices.Compare(portKey(a.Port), portKey(b.Port)) })
	return changes
}

func portKey(p journal.Port) []byte { return append([]byte(p.Name), p.ISID[:]...) }

// isMeant reports that an operator's word is about a port.
func isMeant(m *wire.Bar, p journal.Port) bool {
	return (m.Nexus.Initiator == "" || m.Nexus.Initiator == p.Name) && (m.Nexus.ISID == [6]byte{} || m.Nexus.ISID == p.ISID)
}

// hasPath reports that a port has logged in by a target portal group. Where it has too many paths, some are not remembered.
func hasPath(a *journal.Attachment, group uint16) bool {
	return len(a.Paths) == journal.PortPathsMax || slices.ContainsFunc(a.Paths, func(x journal.PortPath) bool { return x.Group == group })
}
