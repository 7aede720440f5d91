package export

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/iscsi"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
	"dozo/internal/control"
	"dozo/internal/wire"
)

// The hosts' target: one target of the cluster at which each host finds the volumes that are mapped to it, each at its
// LUN. A session is one client to several owners:
//
//   - a volume takes commands of the session once its owner has barred the nexus's older connections (rule R9); a LUN
//     whose owner does not answer is not ready meanwhile, and the others are served;
//   - what a command's byte stream proves about when it was sent is a number of the session's own, for which stampBook
//     has the stamps of all its volumes.

const (
	barAtLogin  = 4 * time.Second // for the owners of all LUNs; those that take longer are not ready
	barAgain    = 300 * time.Millisecond
	logoutBound = 2 * time.Second
)

// hostsTarget is one session's hosts' target.
type hostsTarget struct {
	session *session
	host    control.Host
	name    string // of the cluster

	mu     sync.Mutex
	luns   []*hostLUN
	closed bool
	nexus  reserve.NexusID
	conn   uint64 // of Bar; 0 before it
}

// hostLUN is a volume as one session sees it.
type hostLUN struct {
	m    control.Map
	v    *access.Volume
	disk *disk
}

// hostOf finds the host that an initiator belongs to, by its name or, for hosts that have none, by its address.
func hostOf(ctl control.Store, p iscsi.Peer) (control.Host, bool) {
	from := func(h control.Host) bool {
		return slices.ContainsFunc(h.CIDRs, func(c netip.Prefix) bool { return c.Contains(p.Remote.Addr().Unmap()) })
	}
	if h, ok := ctl.HostByInitiator(p.Initiator); ok {
		return h, len(h.CIDRs) == 0 || from(h)
	}
	for _, h := range ctl.Hosts() {
		if len(h.InitiatorNames) == 0 && from(h) {
			return h, true
		}
	}
	return control.Host{}, false
}

// mapOf says how a volume is mapped to the host that an initiator belongs to.
func mapOf(ctl control.Store, p iscsi.Peer, v *control.VolumeSpec) (control.Map, bool) {
	if len(v.Maps) == 0 {
		return control.Map{}, false
	}
	h, ok := hostOf(ctl, p)
	if !ok || h.Tenant != v.Tenant {
		return control.Map{}, false
	}
	return v.MapTo(h.Name)
}

// mapped is a volume and how it is mapped.
type mapped struct {
	spec control.VolumeSpec
	m    control.Map
}

// mapsOf lists a host's LUNs, ascending. Should a LUN have been given twice, because a volume came back by the
// restoration of the control store, the older volume has it.
func mapsOf(all []control.VolumeSpec, h control.Host) (list []mapped) {
	for _, v := range all {
		if m, ok := v.MapTo(h.Name); ok && v.Tenant == h.Tenant && v.Cloning == nil {
			list = append(list, mapped{v, m})
		}
	}
	slices.SortStableFunc(list, func(a, b mapped) int {
		if a.m.LUN != b.m.LUN {
			return int(a.m.LUN) - int(b.m.LUN)
		}
		return a.spec.Created.Compare(b.spec.Created)
	})
	return slices.CompactFunc(list, func(a, b mapped) bool { return a.m.LUN == b.m.LUN })
}

// loginHosts opens the hosts' target for a session.
func (e *Exports) loginHosts(ctx context.Context, p iscsi.Peer, target string, isid [6]byte, cluster control.Cluster) (iscsi.Target, error) {
	h, ok := hostOf(e.ctl, p)
	if !ok {
		return nil, iscsi.ErrNotAuthorized
	}
	if r := e.redirect(ctx, p, target, isid, nil, ""); r != nil {
		return nil, r
	}
	s := &session{nexus: newNexus(reserve.NexusID{Initiator: p.Initiator, ISID: isid, Port: p.Group}), exp: e, peer: p, book: newStampBook()}
	t := &hostsTarget{session: s, host: h, name: cluster.Name}
	t.set(mapsOf(e.ctl.Volumes(), h))
	return t, nil
}

// set makes the LUNs what they are to be. It gives those that are new and those that are gone; changed is false where
// there are neither.
func (t *hostsTarget) set(want []mapped) (added, gone []*hostLUN, changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, false
	}
	old := t.luns
	t.luns = nil
	for _, w := range want {
		i := slices.IndexFunc(old, func(l *hostLUN) bool { return l.m == w.m && l.v.ID() == w.spec.ID })
		if i >= 0 {
			t.luns = append(t.luns, old[i])
			old = slices.Delete(slices.Clone(old), i, i+1)
			continue
		}
		v, ok := t.session.exp.srv.Volume(w.spec.ID)
		if !ok {
			continue
		}
		v.Open()
		l := &hostLUN{m: w.m, v: v, disk: t.session.disk(v)}
		l.disk.readOnly = w.m.ReadOnly
		l.disk.barred = new(ready)
		t.session.book.add(v)
		t.luns = append(t.luns, l)
		added = append(added, l)
	}
	return added, old, len(added)+len(old) > 0
}

func (t *hostsTarget) list() []*hostLUN {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.luns)
}

func (t *hostsTarget) lun(n uint16) *hostLUN {
	for _, l := range t.list() {
		if l.m.LUN == n {
			return l
		}
	}
	return nil
}

// Admits implements iscsi.Target.
func (t *hostsTarget) Admits(p iscsi.Peer) error {
	if h, ok := hostOf(t.session.exp.ctl, p); !ok || h.Tenant != t.host.Tenant || h.Name != t.host.Name {
		return iscsi.ErrNotAuthorized
	}
	return nil
}

// Units implements iscsi.Target.
func (t *hostsTarget) Units() (list []scsi.UnitConfig) {
	for _, l := range t.list() {
		list = append(list, scsi.UnitConfig{LUN: l.m.LUN, Disk: l.disk})
	}
	return list
}

// Scope implements iscsi.Scoped: LUNs mean the same for the sessions of one host.
func (t *hostsTarget) Scope() string { return t.host.Tenant + "/" + t.host.Name }

// Alias implements iscsi.Alias: the cluster's name.
func (t *hostsTarget) Alias() string { return t.name }

// Stamp implements iscsi.Target.
func (t *hostsTarget) Stamp() scsi.Stamp { return t.session.book.now() }

// Bar implements iscsi.Target.
func (t *hostsTarget) Bar(ctx context.Context, nexus reserve.NexusID, conn uint64) error {
	t.session.nexus = newNexus(nexus)
	t.session.id = conn
	t.mu.Lock()
	t.nexus, t.conn = nexus, conn
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, barAtLogin)
	defer cancel()
	var wg sync.WaitGroup
	for _, l := range t.list() {
		wg.Go(func() { _ = t.barOne(ctx, l) })
	}
	wg.Wait()
	for _, l := range t.list() {
		if !l.disk.barred.is() {
			t.barLater(l)
		}
	}
	return nil
}

// barOne has a volume's owner bar the nexus's older connections; from then on the LUN is ready.
func (t *hostsTarget) barOne(ctx context.Context, l *hostLUN) error {
	if err := l.v.Bar(ctx, &wire.Bar{Kind: wire.BarLogin, Nexus: t.session.nexus, Session: t.session.id}); err != nil {
		return err
	}
	if _, err := l.v.AskUnit(ctx); err != nil && !l.v.HasUnit() {
		return err
	}
	l.disk.barred.set()
	return nil
}

// barLater goes on asking until the owner has answered, or the LUN is gone.
func (t *hostsTarget) barLater(l *hostLUN) {
	_ = t.session.exp.srv.Go(func(ctx context.Context) { // if not: the node is closing
		for said := false; ctx.Err() == nil && slices.Contains(t.list(), l); {
			bctx, cancel := context.WithTimeout(ctx, barAtLogin)
			err := t.barOne(bctx, l)
			cancel()
			if err == nil {
				return
			}
			if !said {
				said = true
				t.session.exp.srv.Log().Warn("LUN is not ready: the volume's owner does not answer", "volume", l.v.Spec().Name, "lun", l.m.LUN, "host", t.host.Name, "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(barAgain):
			}
		}
	})
}

// Logout implements iscsi.Target.
func (t *hostsTarget) Logout(ctx context.Context, nexus reserve.NexusID, conn uint64) {
	var wg sync.WaitGroup
	for _, l := range t.list() {
		if l.disk.barred.is() {
			wg.Go(func() { _ = l.v.Bar(ctx, &wire.Bar{Kind: wire.BarLogout, Nexus: newNexus(nexus), Session: conn}) })
		}
	}
	wg.Wait()
}

// AbortTask implements iscsi.Target. Which volume a command went to is known of the latest ones; of others all are told.
func (t *hostsTarget) AbortTask(id scsi.RequestID, done func(error)) {
	luns := t.list()
	if v := t.session.book.volumeOf(id); v != nil {
		luns = slices.DeleteFunc(luns, func(l *hostLUN) bool { return l.v != v })
	}
	t.each(used(luns), func(l *hostLUN, done func(error)) { t.session.abortTask(l.v, id, done) }, done)
}

// used leaves out what has had no command of the session: LUNs that have not been ready.
func used(luns []*hostLUN) []*hostLUN {
	return slices.DeleteFunc(luns, func(l *hostLUN) bool { return !l.disk.barred.is() })
}

// concerned lists whose owner is told of a refusal at a LUN. A reset and CLEAR TASK SET are about others' commands and
// reservations too, so they are not done before the owner says so, also where the LUN is not ready.
func (t *hostsTarget) concerned(lun uint16, kind wire.BarKind) []*hostLUN {
	l := t.lun(lun)
	switch {
	case l == nil:
		return nil
	case kind == wire.BarLUNReset || kind == wire.BarClearTaskSet:
		return []*hostLUN{l}
	}
	return used([]*hostLUN{l})
}

// each does something about several volumes, and is done when all are; the first error counts.
func (t *hostsTarget) each(luns []*hostLUN, f func(*hostLUN, func(error)), done func(error)) {
	var mu sync.Mutex
	left, first := len(luns), error(nil)
	if left == 0 {
		done(nil)
		return
	}
	for _, l := range luns {
		f(l, func(err error) {
			mu.Lock()
			if left--; first == nil {
				first = err
			}
			last, err := left == 0, first
			mu.Unlock()
			if last {
				done(err)
			}
		})
	}
}

func (t *hostsTarget) bar(lun uint16, kind wire.BarKind, nexus reserve.NexusID, done func(error)) {
	t.each(t.concerned(lun, kind), func(l *hostLUN, done func(error)) { bar(l.v, &wire.Bar{Kind: kind, Nexus: newNexus(nexus)}, done) }, done)
}

// ResetLUN implements iscsi.Target.
func (t *hostsTarget) ResetLUN(nexus reserve.NexusID, lun uint16, done func(error)) {
	t.bar(lun, wire.BarLUNReset, nexus, done)
}

// ClearTaskSet implements iscsi.Target.
func (t *hostsTarget) ClearTaskSet(nexus reserve.NexusID, lun uint16, done func(error)) {
	t.bar(lun, wire.BarClearTaskSet, nexus, done)
}

// AbortTaskSet implements iscsi.Target.
func (t *hostsTarget) AbortTaskSet(nexus reserve.NexusID, lun uint16, done func(error)) {
	t.bar(lun, wire.BarPreemptAbort, nexus, done)
}

// Close implements iscsi.Target.
func (t *hostsTarget) Close() {
	t.mu.Lock()
	luns := t.luns
	t.luns, t.closed = nil, true
	t.mu.Unlock()
	for _, l := range luns {
		t.session.end(l.v)
	}
}

// remap has the sessions at the hosts' target follow the maps: their LUNs change, and they are told.
func (e *Exports) remap() {
	var all []control.VolumeSpec
	for _, x := range e.Sessions() {
		t, ok := x.Target().(*hostsTarget)
		if !ok {
			continue
		}
		if all == nil {
			all = e.ctl.Volumes()
		}
		added, gone, changed := t.set(mapsOf(all, t.host))
		if !changed {
			continue
		}
		x.Nexus().SetUnits(t.Units()...)
		for _, l := range added {
			t.barLater(l)
		}
		t.mu.Lock()
		nexus, conn := newNexus(t.nexus), t.conn
		t.mu.Unlock()
		for _, l := range gone {
			e.srv.Log().Info("LUN is gone", "volume", l.v.Spec().Name, "lun", l.m.LUN, "host", t.host.Name, "initiator", t.session.peer.Initiator)
			if !e.srv.Go(func(ctx context.Context) {
				ctx, cancel := context.WithTimeout(ctx, logoutBound)
				defer cancel()
				if spec, ok := e.ctl.Volume(l.v.ID()); ok && spec.Deleted == nil && l.disk.barred.is() {
					_ = l.v.Bar(ctx, &wire.Bar{Kind: wire.BarLogout, Nexus: nexus, Session: conn})
				}
				t.session.end(l.v)
			}) {
				l.v.Close()
			}
		}
	}
}
