package access

import (
	"context"
	"log/slog"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Stores finds stores, in this process or elsewhere.
type Stores interface {
	// Store gives a handle; it works, or fails with wire.ErrUnreached, whether or not the store is up.
	Store(id ident.StoreID) (journal.Store, bool)
	// Local reports that the store is in this process.
	Local(id ident.StoreID) bool
	// Up reports that the store's node is thought to be reachable.
	Up(id ident.StoreID) bool
	// Site of the store's node, 0 if not known.
	Site(id ident.StoreID) ident.SiteID
	// Core lists the stores that a site has, in an order that is the same everywhere.
	Core(site ident.SiteID) []ident.StoreID
	// Host is the identity of the machine that has the store: an ensemble takes no two of one.
	Host(id ident.StoreID) string
}

// Env is what owners need of their node.
type Env struct {
	Node    ident.NodeName
	Site    ident.SiteID
	Stores  Stores
	Leases  Leases
	Control control.Store
	Clock   func() int64 // CLOCK_BOOTTIME in nanoseconds
	Log     *slog.Logger
	Metrics *Metrics
	Limits  Limits
	Health  *Health    // of stores, shared by all owners of the node; nil: each owner has its own
	Far     *FarCache  // of blocks of other sites, likewise; nil: none is kept
	Copies  *Copies    // what copies of replicas may cost; nil: no limit
	Chores  *Chores    // housekeeping by the clock, likewise
	Maps    *MapMemory // of all owners' maps together; nil: each has Limits.MapBudgetBytes for itself
	// About says what is known of a store beyond Stores; nil: nothing. It must not block.
	About func(ident.StoreID) StoreInfo
	// Announce tells all access servers of a change of a unit and waits until those that can be reached know;
	// nil in an owner without a Server.
	Announce func(context.Context, *wire.Unit)

	// Followed, if set, is told of hand-overs that this node began by itself because all writes came from elsewhere, once
	// they have ended one way or the other. It must not block.
	Followed func(v control.VolumeSpec, to ident.NodeName, pause time.Duration, err error)

	Hold *controlHold // the node's lease of the control store; nil: owners need none

	// Patience, if set, is called by a takeover that begins to wait for who may know more (R4); what it gives is called
	// when the wait is over. Other takeovers have their turn meanwhile.
	Patience func() (resume func())
	// Waits, if set, is told what a takeover waits for.
	Waits func(error)
}

// Limits are an owner's settings; zero values become defaults.
type Limits struct {
	SegmentBytes       uint32        // 32 MiB
	CheckpointInterval time.Duration // 60 s
	CheckpointBytes    uint64        // 4 GiB
	CheckpointDead     uint64        // of segments that only the next checkpoint lets go; 512 MiB
	MapBudgetBytes     int64         // of a volume, where there is no Env.Maps; 1 GiB
	AppendTimeout      time.Duration // a store that takes longer counts as failed; 800 ms
	ReadTimeout        time.Duration // a read that takes longer goes to another replica; 800 ms
	SyncPatience       time.Duration // likewise for fdatasync, where others can take over (R8); 1 s
	SyncTimeout        time.Duration // and where none can; 5 s
	RepairGrace        time.Duration // how long a store may be away before what it held is copied again; 10 min
	UncertainWait      time.Duration // how long a takeover that does not know the end waits for who may (R4); 30 s
	ShipWindow         int           // pushes under way to a site; 16
	KeepBothLocal      bool          // never drop a local replica
	Warm               int           // volumes owned by a node up to which it takes new ones that nobody uses; 64
	SweepSegments      int           // segments that are looked at in one go (sweep.go): less than a millisecond for each purpose; 1,024
	FollowAfter        time.Duration // writes from elsewhere only for so long: the journal is handed over; 2 s; below 0: never
}

func (l Limits) withDefaults() Limits {
	def := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
	}
	if l.SegmentBytes == 0 {
		l.SegmentBytes = journal.SegmentCapacityGoal
	}
	if l.Warm == 0 {
		l.Warm = 64
	}
	def(&l.CheckpointInterval, time.Minute)
	if l.CheckpointBytes == 0 {
		l.CheckpointBytes = 4 << 30
	}
	if l.CheckpointDead == 0 {
		l.CheckpointDead = 512 << 20
	}
	if l.MapBudgetBytes == 0 {
		l.MapBudgetBytes = 1 << 30
	}
	def(&l.AppendTimeout, 800*time.Millisecond)
	def(&l.ReadTimeout, 800*time.Millisecond)
	def(&l.SyncPatience, time.Second)
	def(&l.SyncTimeout, 5*time.Second)
	def(&l.RepairGrace, 10*time.Minute)
	def(&l.UncertainWait, 30*time.Second)
	def(&l.FollowAfter, 2*time.Second)
	if l.ShipWindow == 0 {
		l.ShipWindow = 16
	}
	if l.SweepSegments == 0 {
		l.SweepSegments = 1024
	}
	return l
}
