package core

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
)

// Limits that we chose; a zero field of Options stands for them.
const (
	leaseMaxGoal    = 2 * time.Second        // longer than any lease that owners ask for (about 1 s)
	notesSizeGoal   = 1 << 20                // of one notes file; it grows with the number of replicas
	syncAfterGoal   = time.Second            // R8: how long a byte may stay unsynced
	unsyncedMaxGoal = 64 << 20               // R8: how many bytes of a journal may
	syncTimeoutGoal = time.Second            // R8: an fdatasync that takes longer is shown
	openFilesGoal   = 4096                   // handles kept open; those in use may exceed it
	tickEvery       = 100 * time.Millisecond // how often unsynced replicas are looked at
	tickIdle        = time.Second            // and while there are none
)

// Options says how to open a store.
type Options struct {
	FS      vfs.FS // vfs.Default if nil
	Dir     string
	Create  bool   // make a store if Dir has none; else that is ErrNoStore, so that a disk that is not mounted isn't replaced by an empty one
	Cluster string // ID of the cluster; a store of another one is refused. Empty: not checked
	Boot    ident.BootID

	// Clock is CLOCK_BOOTTIME: it doesn't stop while the host sleeps.
	Clock    func() time.Duration
	Logger   *slog.Logger
	Metrics  prometheus.Registerer // nil: none
	Leases   *Leases               // of the node; nil: this store grants none
	LeaseMax time.Duration         // no grant is longer; the longest ever configured is remembered

	CapacityBytes uint64 // the most that the store may use; 0: what there is
	ReserveBytes  uint64 // kept free by OpenSegment, so that what is open can be sealed
	NotesSize     int64
	OpenFiles     int
	SpareBytes    int64  // at most that much in files of dropped replicas, to write new segments over; below 0: none
	SpareLeast    uint32 // smaller files are not kept
	SyncAfter     time.Duration
	UnsyncedMax   int64
	SyncTimeout   time.Duration
	FailMarkDir   string // where a failed fdatasync is marked until the host reboots: a tmpfs; /run/dozo if empty

	// Peers finds the store that a Push goes to.
	Peers func(ident.StoreID) (journal.Store, error)
	// OnCorrupt hears of every bad checksum, so that the replica is healed from another. It must not block.
	OnCorrupt func(segment ident.SegmentID, offset uint32, err error)
}

func (o *Options) fill() {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		start := time.Now()
		o.Clock = func() time.Duration { return time.Since(start) }
	}
	orDefault(&o.LeaseMax, leaseMaxGoal)
	orDefault(&o.NotesSize, notesSizeGoal)
	orDefault(&o.OpenFiles, openFilesGoal)
	orDefault(&o.SpareBytes, spareGoal)
	orDefault(&o.SpareLeast, spareLeastGoal)
	orDefault(&o.SyncAfter, syncAfterGoal)
	orDefault(&o.UnsyncedMax, unsyncedMaxGoal)
	orDefault(&o.SyncTimeout, syncTimeoutGoal)
	orDefault(&o.FailMarkDir, "/run/dozo")
}

func orDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
