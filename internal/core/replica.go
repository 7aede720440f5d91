package core

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// replica is one segment file.
//
//	(OpenSegment) ──> Open, Copy ──Seal──> Sealed ──Drop──> gone
//	                   │ new boot ID            ▲
//	                   └──────> Short ──Seal────┘
//	Open, Short, Sealed ──Seal that R14 forbids──> Fork
//	any ──bad bytes before good ones──> Damaged
type replica struct {
	id   ident.SegmentID
	j    *journalState
	path string

	file *handle // guarded by handles.mu
	gone bool    // likewise: dropped, nobody may open it any more

	note atomic.Pointer[replicaNote] // as last put to the notes log
	end  atomic.Uint32               // bytes that may be read; stored with mu held
	from atomic.Uint64               // mu.before.Seq, for readers; stored before end

	counted atomic.Int64 // what it is in Store.used; see count

	sealing sync.Mutex // held by Seal and Drop from beginning to end, I/O included

	mu struct {
		sync.Mutex
		state     wire.ReplicaState
		closing   bool // a seal is under way or done: no appends
		away      bool // lost, and the file is no longer under the segment's name
		capacity  uint32
		taken     uint32 // bytes of the file that space was taken for by this process, at most capacity: space.go
		before    ident.Position
		last      ident.Position
		start     wire.EpochStart
		index     []journal.IndexEntry // of a replica that isn't sealed
		stale     ident.Seq            // while it is empty: what a recycled file holds of its journal goes up to here
		stableEnd uint32
		stable    ident.Position

		pinned     *handle       // while there are unsynced bytes
		dirtySince time.Duration // when the first unsynced byte came
		hinted     uint32        // writeback was hinted up to here
		running    *syncRun
		syncing    uint32 // what the one under way finds: up to there, a seal has cut nothing since
		next       *syncRun
	}
}

// Path is where the replica of a segment lies, or would lie: for people and for `dozo inspect`.
func (s *Store) Path(id ident.SegmentID) string { return s.replicaPath(id) }

func (s *Store) replicaPath(id ident.SegmentID) string { return SegmentPath(s.dir, id) }

// SegmentPath is where a store in the directory keeps its replica of a segment.
func SegmentPath(dir string, id ident.SegmentID) string {
	return fmt.Sprintf("%s/%s/%02x/%s", dir, segmentsName, id.Journal[0], id)
}

func (s *Store) newReplica(n *replicaNote) *replica {
	r := &replica{id: n.Segment, j: s.journal(n.Segment.Journal), path: s.replicaPath(n.Segment)}
	r.note.Store(n)
	r.mu.state = n.State
	r.mu.capacity = n.Capacity
	r.mu.last, r.mu.start = n.Last, n.Start
	r.beginsLocked(n.Before)
	r.mu.stableEnd = n.StableEnd
	if n.State == wire.ReplicaSealed {
		r.mu.stableEnd, r.mu.stable = n.End, n.Last
		r.mu.closing = true
	}
	r.end.Store(n.End)
	return r
}

// beginsLocked notes what is in front of the first record.
func (r *replica) beginsLocked(before ident.Position) {
	r.mu.before = before
	r.from.Store(uint64(before.Seq))
}

// noteLocked makes the durable note of what is known now, and puts it. r.mu is held.
func (s *Store) noteLocked(r *replica, state wire.ReplicaState, length uint32) *noteBatch {
	n := &replicaNote{Segment: r.id, State: state, Boot: r.note.Load().Boot, Capacity: r.mu.capacity, Length: length,
		End: r.end.Load(), StableEnd: r.mu.stableEnd, Before: r.mu.before, Last: r.mu.last, Start: r.mu.start}
	was := r.note.Load()
	n.Made, n.Again = was.Made, was.Again && state != wire.ReplicaSealed
	r.note.Store(n)
	return s.notes.putReplica(n)
}

// describe gives the replica as Inventory and Fence show it.
func (s *Store) describe(r *replica) wire.Replica {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := wire.Replica{Segment: r.id, State: r.mu.state, Before: r.mu.before, Last: r.mu.last,
		End: r.end.Load(), StableEnd: r.mu.stableEnd, Start: r.mu.start}
	n := r.note.Load()
	d.Made = n.Made
	switch d.State {
	case stateLost:
		d.State = wire.ReplicaDamaged
		return d
	case stateAside:
		d.State = stateDropped
		return d
	}
	if n.Again { // not whole yet
		d.State = wire.ReplicaDamaged
		return d
	}
	// What a failed disk has not made stable may read as anything later on (R8).
	if d.State == wire.ReplicaOpen && d.StableEnd < d.End && s.failure.Load() != nil {
		d.State = wire.ReplicaShort
	}
	// Whoever sealed it has seen all of it; before that, what a copy had beyond its stable end went with the page cache,
	// and nobody knows how much that was.
	d.Unsure = d.State == wire.ReplicaCopy && (n.Boot != s.opts.Boot || d.StableEnd < d.End && s.failure.Load() != nil)
	return d
}

// beingMadeAgain reports that a replica was let go in order to be made again, and is not whole yet.
func (r *replica) beingMadeAgain() bool {
	n := r.note.Load()
	return n.State == stateLost || n.Again
}

// length is what the file takes.
func (n *replicaNote) space() int64 {
	if n.State == stateLost {
		return 0
	}
	if n.State == wire.ReplicaSealed || n.State == wire.ReplicaFork && n.Length > 0 {
		return int64(n.Length)
	}
	return int64(n.Capacity)
}

// opening is an OpenSegment under way; others of the same segment wait for it.
type opening struct {
	done chan struct{}
	err  error
}

// journalState is what the store knows of a journal.
type journalState struct {
	id       ident.JournalID
	replicas map[ident.SegmentID]*replica // guarded by Store.mu
	durable  atomic.Pointer[ident.Epoch]  // the fence, once it is on disk
	unsynced atomic.Int64
	appended atomic.Int64 // bytes since the store was opened: space.go

	mu struct {
		sync.Mutex
		fence   ident.Epoch // obeyed at once, in front of durable while the note is on its way
		was     ident.Epoch // before the last raise
		raising *noteBatch
		commit  ident.Position
		stable  ident.Position
		noted   journalNote // as last put by noteTold
		told    wire.Told
	}
}

func newJournalState(n *journalNote) *journalState {
	j := &journalState{id: n.Journal, replicas: map[ident.SegmentID]*replica{}}
	fence := n.Fence
	j.durable.Store(&fence)
	j.mu.fence, j.mu.was = n.Fence, n.Fence
	j.mu.commit, j.mu.stable, j.mu.noted = n.Commit, n.Stable, *n
	return j
}

// higher orders points of a journal's history that were told as committed or stable: those made in a newer
// epoch are of the history that prevailed.
func higher(a, b ident.Position) bool {
	if c := a.Epoch.Compare(b.Epoch); c != 0 {
		return c > 0
	}
	return a.Seq > b.Seq
}

// hearLocked remembers the highest points told.
func (j *journalState) hearLocked(commit, stable ident.Position) {
	if commit.Seq != j.mu.commit.Seq && higher(commit, j.mu.commit) {
		j.mu.commit = commit
	}
	if stable.Seq != j.mu.stable.Seq && higher(stable, j.mu.stable) {
		j.mu.stable = stable
	}
}

func (j *journalState) noteLocked() *journalNote {
	return &journalNote{Journal: j.id, Fence: j.mu.fence, Commit: j.mu.commit, Stable: j.mu.stable}
}

var _ vfs.File = (*handle)(nil)
