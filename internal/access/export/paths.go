package export

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// Every access server is a target port group, whose number is the portal group tag that it keeps for ever. States follow
// the owner:
//
//	the owner           active/optimized, preferred unless it is draining
//	others at its site  active/non-optimized
//	at other sites      active/non-optimized, standby or unavailable, as the volume's policy says
//
// While the volume changes hands, the group of the old owner is transitioning. That is only reported: the
// unit attention comes once the new owner serves, so that an initiator that asks on hearing of it finds states to stay.
// The group of the new one is not: it takes commands, and keeps them until it serves. Linux leaves a group alone that is
// transitioning, asks again after 2 s, and fails what it has for it, so that its path is not used before the next check.

// pathsFresh is how long what was found is kept while nothing is heard of another owner.
const pathsFresh = 200 * time.Millisecond

// stayAfterChange is for how long a volume that has changed hands does not go to another site because of SET TARGET PORT
// GROUPS. When a path is lost, Linux sends the command by every path of the group that it switches to, whatever site that
// leads to, and each would have the volume: it stays at the owner that the site has just found, and the initiator, which is
// told so, uses the paths as they are. A guess: longer than switching over takes.
const stayAfterChange = 5 * time.Second

// pathsReturn is how long after the start of a node hosts take to use its paths again. A guess: open-iscsi tries every few seconds.
const pathsReturn = 30 * time.Second

// setOptimizedTimeout bounds SET TARGET PORT GROUPS, below initiators' command timeouts of 30 s.
const setOptimizedTimeout = 20 * time.Second

// paths is what the paths of one volume are, as this node sees it.
type paths struct {
	now atomic.Pointer[pathView]
	mu  sync.Mutex // held to make the next view
}

type pathView struct {
	info   reserve.PathInfo
	steady []reserve.PortGroup // without transitions
	owner  ident.NodeName      // whom steady follows
	epoch  ident.Epoch         // newest heard of
	at     time.Time
	moved  time.Time // when the owner was seen to have changed
}

// pathsOf finds what is kept of a volume. It stays when sessions go: generations of what initiators know must not begin
// anew.
func (e *Exports) pathsOf(id ident.JournalID) *paths {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.paths[id]
	if p == nil {
		p = new(paths)
		e.paths[id] = p
	}
	return p
}

// look gives the path states of a volume. It is cheap while they are fresh.
func (e *Exports) look(v *access.Volume, p *paths) reserve.PathInfo {
	if w := p.now.Load(); w != nil && w.epoch == v.Epoch() && time.Since(w.at) < pathsFresh {
		return w.info
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old, seen := p.now.Load(), v.Epoch()
	if old != nil && old.epoch == seen && time.Since(old.at) < pathsFresh {
		return old.info
	}
	owner, _, serves := v.Ownership()
	next := &pathView{owner: owner, epoch: seen, at: time.Now()}
	if !serves && old != nil {
		next.owner = old.owner
	}
	if old != nil {
		if next.moved = old.moved; next.owner != old.owner && old.owner != "" {
			next.moved = next.at
		}
	}
	spec := v.Spec()
	if now, ok := e.ctl.Volume(v.ID()); ok {
		spec = &now // the volume learns of policies a little later
	}
	next.steady, next.info.Remote = e.groups(spec, next.owner)
	next.info.Groups = next.steady
	next.info.Limited = slices.ContainsFunc(next.steady, func(g reserve.PortGroup) bool { return g.State == reserve.Standby || g.State == reserve.Unavailable })
	if old != nil {
		next.info.Generation = old.info.Generation
		if !slices.EqualFunc(next.steady, old.steady, sameGroup) {
			next.info.Generation++
		}
	}
	if !serves {
		if n, ok := e.ctl.Node(next.owner); ok && next.owner != owner {
			next.info.Groups = transition(next.steady, n.TPGT)
		}
	}
	p.now.Store(next)
	return next.info
}

func sameGroup(a, b reserve.PortGroup) bool {
	return a.ID == b.ID && a.State == b.State && a.Preferred == b.Preferred && slices.Equal(a.MayBe, b.MayBe)
}

// groups says how the groups are while a node owns the volume. Before anybody does, who will be the owner is one of the
// home site's.
func (e *Exports) groups(spec *control.VolumeSpec, owner ident.NodeName) (list []reserve.PortGroup, remote reserve.AccessState) {
	own, owned := e.ctl.Node(owner)
	site := own.Site
	if !owned {
		site = spec.AtSite
	}
	var mayBe []reserve.AccessState
	if remote = remoteState(spec.ALUARemote); remote != reserve.ActiveNonOptimized {
		mayBe = []reserve.AccessState{remote}
	}
	for _, n := range e.ctl.Nodes() {
		if !n.Has(control.RoleAccess) {
			continue
		}
		g := reserve.PortGroup{ID: n.TPGT, State: reserve.ActiveNonOptimized, Ports: []uint16{n.TPGT}, Place: uint16(n.Site), MayBe: mayBe}
		switch {
		case n.Name == owner || !owned && n.Site == site:
			g.State, g.Preferred = reserve.ActiveOptimized, owned && !n.Draining
		case n.Site != site:
			g.State = remote
		}
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b reserve.PortGroup) int { return int(a.ID) - int(b.ID) })
	return list, remote
}

// transition marks the group of the node that gives.
func transition(steady []reserve.PortGroup, giver uint16) []reserve.PortGroup {
	list := slices.Clone(steady)
	for i := range list {
		if list[i].ID == giver {
			list[i].State = reserve.Transitioning
		}
	}
	return list
}

// stays reports that a volume does not go to a group now, though an initiator asks for it.
func (w *pathView) stays(group uint16, now time.Time) bool {
	if w == nil || w.moved.IsZero() || now.Sub(w.moved) > stayAfterChange {
		return false
	}
	place := func(is func(*reserve.PortGroup) bool) uint16 {
		for i := range w.steady {
			if is(&w.steady[i]) {
				return w.steady[i].Place
			}
		}
		return 0
	}
	return place(func(g *reserve.PortGroup) bool { return g.ID == group }) != place(func(g *reserve.PortGroup) bool { return g.State == reserve.ActiveOptimized })
}

// orphaned reports that nobody can hand a volume over to a node: its owner is gone, and its site finds the next one by itself. Linux,
// which asks since it has lost a path, uses none of the others before it has its answer: that does not wait for the takeover, as
// the commands do that follow.
func (w *pathView) orphaned(to ident.NodeName, reaches func(ident.NodeName) bool) bool {
	return w != nil && w.owner != "" && w.owner != to && !reaches(w.owner)
}

// staysAtStart reports that a volume, made at created, does not come to this node, self, just because an initiator whose path to it is back asks for
// it: the node has just started, and the volume has had another owner at its site all the time since. Linux reinstates the path in the group in
// which it was lost, while that is the active one, and sends the command by it before anybody has looked at the states.
func (w *pathView) staysAtStart(self, to ident.NodeName, created, started, now time.Time) bool {
	return w != nil && to == self && w.owner != "" && w.owner != self && w.moved.IsZero() &&
		created.Before(started) && now.Sub(started) < pathsReturn
}

// remoteState is the policy's word in the device server's terms.
func remoteState(p control.RemoteAccess) reserve.AccessState {
	switch p {
	case control.RemoteStandby:
		return reserve.Standby
	case control.RemoteUnavailable:
		return reserve.Unavailable
	}
	return reserve.ActiveNonOptimized
}

// Paths implements scsi.Disk.
func (d *disk) Paths() reserve.PathInfo { return d.session.exp.look(d.v, d.paths) }

// errStays is why a volume stays where it is although an initiator asks for it. The answer is success nevertheless, and the states are as
// they were: with TPGS 11b what was asked for may be undone by an implicit transition at once, and an initiator that has its answer asks what
// the states are. Linux does so after a failure, too; Windows does not, and takes the path for one that is lost.
var errStays = errors.New("the volume stays where it is")

// Why it stays.
var (
	errOwnerGone   = fmt.Errorf("%w: its owner can not be reached, and its site finds another one", errStays)
	errJustStarted = fmt.Errorf("%w: this node has just started", errStays)
	errJustMoved   = fmt.Errorf("%w: it has just changed hands", errStays)
	errPinned      = fmt.Errorf("%w: it is pinned", errStays)
)

// SetOptimized implements scsi.Disk: the volume is handed over to the group's node.
func (d *disk) SetOptimized(_ scsi.Request, group uint16, done func(error)) {
	e := d.session.exp
	nodes := e.ctl.Nodes()
	i := slices.IndexFunc(nodes, func(n control.Node) bool { return n.TPGT == group && n.Has(control.RoleAccess) })
	if i < 0 {
		done(scsi.ErrGroupsNotSet)
		return
	}
	to := nodes[i].Name
	// Asked anew before each owner that the volume has until it goes: the first one may be dead, and a takeover on its way.
	may := func() error {
		if d.Paths(); d.paths.now.Load().stays(group, time.Now()) {
			return errJustMoved
		}
		return nil
	}
	spec, now := d.v.Spec(), time.Now()
	err := may()
	switch w := d.paths.now.Load(); {
	case err != nil:
	case w.orphaned(to, e.srv.Reaches):
		err = errOwnerGone
	case w.staysAtStart(e.node, to, spec.Created, e.started, now):
		err = errJustStarted
	case spec.Ownership == control.OwnershipPin:
		err = errPinned
	}
	answer := func(err error) {
		log := e.srv.Log().With("volume", spec.Name, "peer", to, "initiator", d.session.peer.Initiator)
		switch {
		case err == nil:
			log.Info("an initiator has asked for the volume by SET TARGET PORT GROUPS")
		case errors.Is(err, errStays):
			log.Info("not handed over, as an initiator has asked by SET TARGET PORT GROUPS", "err", err)
			err = nil
		default:
			log.Warn("not handed over, as an initiator has asked by SET TARGET PORT GROUPS", "err", err)
			err = errors.Join(scsi.ErrGroupsNotSet, err)
		}
		done(err)
	}
	if err != nil {
		answer(err)
		return
	}
	if !e.srv.Go(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, setOptimizedTimeout)
		defer cancel()
		err := e.srv.MoveToIf(ctx, d.v, to, may)
		if err != nil && d.v.Spec().Ownership == control.OwnershipPin { // it has been pinned meanwhile
			err = errPinned
		}
		answer(err)
	}) {
		done(scsi.ErrGroupsNotSet)
	}
}
