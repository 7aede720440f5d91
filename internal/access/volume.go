package access

import (
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Volume is one volume as this access server sees it: served here, or by the owner elsewhere.
type Volume struct {
	srv  *Server
	id   ident.JournalID
	spec atomic.Pointer[control.VolumeSpec]

	owner  atomic.Pointer[Owner] // here; nil if elsewhere
	stamp  atomic.Pointer[wire.Stamp]
	heard  atomic.Pointer[servedBy] // who serves it, by that node's own word
	unit   volumeUnit
	logins logins
	users  atomic.Int32 // sessions: their stamps are kept fresh
	held   atomic.Int32 // commands that wait for an owner
	sought atomic.Int64 // when another node asked for it and it was not served here; 0: never
	wanted time.Time    // Server.mu: since when the owner's node is away
	taking bool         // Server.mu
	again  time.Time    // Server.mu: when this node may try to take it over once more, after an attempt that failed
	left   bool         // Server.mu: it never had an owner, and this node gave it none, having enough
	asked  time.Time    // Server.mu: when another node asked for an owner of a volume that never had one
	unmet  time.Time    // Server.mu: since when somebody here waits for one
	since  time.Time    // Server.mu: since when this node tries to serve it; zero where it serves or need not
	why    error        // Server.mu: why the last attempt failed

	backing   bool           // Server.mu: its owner's key is being written back
	named     ident.NodeName // the owner by the control store at the last look; only reconcile's
	moving    *move          // Server.mu: the hand-over under way from here, or the last one
	moveTried time.Time      // only drain's
	prepared  *prepared      // Server.mu: what is ready for a hand-over to here

	writes ioCount     // while the owner is here
	follow followState // Server.mu

	forcing    bool      // Server.mu: a takeover from a site that is lost is being decided
	lostSince  time.Time // Server.mu: since when the owner's site seems lost
	forceTried time.Time // Server.mu

	gate struct {
		sync.Mutex
		changed chan struct{} // closed when the owner may have changed
	}
}

// wake tells waiting commands that the owner may have changed.
func (v *Volume) wake() {
	v.gate.Lock()
	close(v.gate.changed)
	v.gate.changed = make(chan struct{})
	v.gate.Unlock()
}

func (v *Volume) wakeLater() { go v.wake() }

func (v *Volume) changed() <-chan struct{} {
	v.gate.Lock()
	defer v.gate.Unlock()
	return v.gate.changed
}

// soughtFor is how long it counts that another node has asked for the volume: it asks every tickEvery as long as it has sessions.
const soughtFor = 2 * time.Second

// urgency says how much a takeover is needed: first where commands wait, then where there are sessions, here or at a node that
// asks who serves the volume.
func (v *Volume) urgency() int {
	switch {
	case v.held.Load() > 0:
		return 2
	case v.users.Load() > 0:
		return 1
	}
	if at := v.sought.Load(); at != 0 && v.srv.env.Clock()-at < int64(soughtFor) {
		return 1
	}
	return 0
}

// ID of the volume's journal.
func (v *Volume) ID() ident.JournalID { return v.id }

// Spec is the volume's specification as last seen.
func (v *Volume) Spec() *control.VolumeSpec { return v.spec.Load() }

// Owner is the owner if it is here, else nil.
func (v *Volume) Owner() *Owner { return v.owner.Load() }

// Open counts a user: while there is one, stamps are kept fresh. Close ends it.
func (v *Volume) Open() {
	if v.users.Add(1) == 1 {
		v.srv.wg.Go(func() { v.srv.askTick([]*Volume{v}) })
	}
}

// Close ends what Open began.
func (v *Volume) Close() { v.users.Add(-1) }

// Stamp is the newest moment of the owner's life that this node knows (R9).
func (v *Volume) Stamp() wire.Stamp {
	if o := v.owner.Load(); o != nil {
		return o.Stamp()
	}
	if s := v.stamp.Load(); s != nil {
		return *s
	}
	return wire.Stamp{}
}

func (v *Volume) note(epoch ident.Epoch, tick uint64) {
	for {
		old := v.stamp.Load()
		if old != nil && (epoch.Less(old.Epoch) || epoch == old.Epoch && tick <= old.Tick) {
			return
		}
		if v.stamp.CompareAndSwap(old, &wire.Stamp{Epoch: epoch, Tick: tick}) {
			return
		}
	}
}

// servedBy is a node that has said that it serves the volume, and at which epoch.
type servedBy struct {
	node  ident.NodeName
	epoch ident.Epoch
}

// OwnerNode is the node that owns the journal, as far as is known: by the control store, or by the word of one that serves
// it at a higher epoch than what has come from there.
func (v *Volume) OwnerNode() ident.NodeName {
	if v.owner.Load() != nil {
		return v.srv.env.Node
	}
	state, _, _ := v.srv.env.Control.Journal(v.id)
	if h := v.heard.Load(); h != nil && state.Epoch.Less(h.epoch) {
		return h.node
	}
	return state.Owner
}

// hear notes a node's word that it serves the volume.
func (v *Volume) hear(node ident.NodeName, epoch ident.Epoch) {
	for {
		old := v.heard.Load()
		if old != nil && !old.epoch.Less(epoch) {
			return
		}
		if v.heard.CompareAndSwap(old, &servedBy{node, epoch}) {
			v.wake()
			return
		}
	}
}
