package core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// Store keeps replicas of segments in one directory on one disk. It implements journal.Store.
type Store struct {
	opts    Options
	fs      vfs.FS
	dir     string
	id      ident.StoreID
	log     *slog.Logger
	lock    io.Closer
	notes   *notesLog
	handles *handles
	metrics *metrics

	// No fence is answered before this moment of the clock: grants given before a restart may still run (R6).
	fenceFrom time.Duration

	mu struct {
		sync.RWMutex
		journals map[ident.JournalID]*journalState
		replicas map[ident.SegmentID]*replica
		opening  map[ident.SegmentID]*opening
		dirs     map[string]bool       // of segments/: made and stable
		sorted   []ident.SegmentID     // all replicas in order, nil when it has to be made again
		changes  uint64                // of the set of replicas
		dirty    map[*replica]struct{} // with unsynced bytes
	}
	spares   spares
	scrub    scrubber
	reserved atomic.Int64 // capacity that OpenSegment calls under way will take
	used     atomic.Int64
	corrupt  atomic.Uint64
	aside    atomic.Uint64          // files that were set aside
	made     atomic.Uint64          // the number of the replica made last
	cantTell atomic.Bool            // the file system never knows what is in memory
	failure  atomic.Pointer[string] // not nil: no appends any more, and why

	life   context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup
	tickle chan struct{} // a journal has too much unsynced, or the first replica has anything
	closed atomic.Bool

	active  atomic.Int64 // requests under way, and one for the store being open
	drain   sync.Once
	drained chan struct{}
}

var _ journal.Store = (*Store)(nil)

// Open opens the store in o.Dir, or makes it there with o.Create.
func Open(o Options) (*Store, error) {
	o.fill()
	s := &Store{opts: o, fs: o.FS, dir: o.Dir, tickle: make(chan struct{}, 1), drained: make(chan struct{})}
	s.active.Store(1)
	if o.Create {
		if err := s.fs.MkdirAll(s.dir); err != nil {
			return nil, fmt.Errorf("store %s: %w", s.dir, err)
		}
		_ = s.fs.SyncDir(path.Dir(s.dir)) // the parent may not be ours to sync
	}
	lock, err := s.fs.Lock(s.dir + "/" + lockName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("store %s: %w", s.dir, ErrNoStore)
	}
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", s.dir, err)
	}
	s.lock = lock
	if err := s.open(); err != nil {
		if s.notes != nil {
			s.notes.close()
			s.handles.closeAll()
		}
		_ = lock.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) open() error {
	super, err := readSuper(s.fs, s.dir)
	fresh := errors.Is(err, ErrNoStore) && s.opts.Create
	if fresh {
		super, err = s.create()
	}
	if err != nil {
		return err
	}
	if s.opts.Cluster != "" && super.Cluster != s.opts.Cluster {
		return fmt.Errorf("store %s belongs to cluster %q, not to %q", s.dir, super.Cluster, s.opts.Cluster)
	}
	s.id = super.Store
	s.log = s.opts.Logger.With("store", s.id.String())
	s.handles = newHandles(s.fs, s.opts.OpenFiles)
	s.life, s.cancel = context.WithCancel(context.Background())
	s.spares.init()
	s.mu.journals = map[ident.JournalID]*journalState{}
	s.mu.replicas = map[ident.SegmentID]*replica{}
	s.mu.opening = map[ident.SegmentID]*opening{}
	s.mu.dirs = map[string]bool{}
	s.mu.dirty = map[*replica]struct{}{}
	notes, err := openNotes(s.fs, s.dir, s.id)
	if err != nil {
		return fmt.Errorf("store %s: %w", s.dir, err)
	}
	s.readMark()
	if err := notes.start(); err != nil {
		if s.Failed() == "" {
			return fmt.Errorf("store %s: start the next generation of notes: %w", s.dir, err)
		}
		// A disk that has failed in this boot: what it has may be read, and it promises nothing any more.
		s.log.Error("the notes of a failed store can't be written: it can only be read", "err", err)
		if notes, err = openNotes(s.fs, s.dir, s.id); err != nil {
			return fmt.Errorf("store %s: %w", s.dir, err)
		}
		notes.refuse(errors.New("the store has failed"))
	}
	s.notes = notes
	if err := s.restart(fresh); err != nil {
		return fmt.Errorf("store %s: %w", s.dir, err)
	}
	s.loadScrub()
	s.metrics = newMetrics(s, s.opts.Metrics)
	if s.Failed() != "" {
		s.metrics.failed.Set(1)
	}
	s.work.Go(s.background)
	s.work.Go(s.trimSpares)
	return nil
}

// create makes the directory's contents; the superblock comes last.
func (s *Store) create() (super superblock, err error) {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return super, fmt.Errorf("store %s: %w", s.dir, err)
	}
	for _, name := range names {
		// What an interrupted creation leaves may be made again, anything else is somebody's.
		if name != lockName && name != segmentsName && name != superName+".new" && !strings.HasPrefix(name, "notes.") && name != "lost+found" {
			return super, fmt.Errorf("store %s: not empty (%s) and no store", s.dir, name)
		}
	}
	super = superblock{Format: StoreFormat, Store: ident.NewStoreID(), Cluster: s.opts.Cluster}
	if subs, err := s.fs.List(s.dir + "/" + segmentsName); err == nil && len(subs) > 0 {
		return super, fmt.Errorf("store %s: there are segments but no %s", s.dir, superName)
	}
	if err := s.fs.MkdirAll(s.dir + "/" + segmentsName); err != nil {
		return super, fmt.Errorf("store %s: %w", s.dir, err)
	}
	if err := createNotes(s.fs, s.dir, super.Store, s.opts.NotesSize); err != nil {
		return super, fmt.Errorf("store %s: make the notes log: %w", s.dir, err)
	}
	if err := writeSuper(s.fs, s.dir, super); err != nil {
		return super, fmt.Errorf("store %s: %w", s.dir, err)
	}
	return super, nil
}

// Close ends the background work and gives the directory free. Requests under way end first; later ones are
// CodeShutdown. Unsynced bytes are left to the kernel. A second call does nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.cancel()
	s.end()
	<-s.drained
	s.work.Wait()
	s.noteTold()
	s.closeSpares()
	s.notes.close()
	s.handles.closeAll()
	s.metrics.unregister()
	return s.lock.Close()
}

// ID implements journal.Store.
func (s *Store) ID() ident.StoreID { return s.id }

// Dir is where the store is.
func (s *Store) Dir() string { return s.dir }

// now is the moment on the clock that leases are measured with.
func (s *Store) now() time.Duration { return s.opts.Clock() }

// begin counts a request, which Close waits for; end must follow unless it failed.
func (s *Store) begin() error {
	s.active.Add(1)
	if s.closed.Load() {
		s.end()
		return wire.Errorf(wire.CodeShutdown, "store %s is closing", s.id)
	}
	return nil
}

func (s *Store) end() {
	if s.active.Add(-1) == 0 {
		s.drain.Do(func() { close(s.drained) })
	}
}

// usable refuses what needs the disk to take bytes once it has failed.
func (s *Store) usable() error {
	if why := s.failure.Load(); why != nil {
		return wire.Errorf(wire.CodeIO, "store %s takes no appends: %s", s.id, *why)
	}
	return nil
}

// Failed says why the store takes no appends any more, or nothing.
func (s *Store) Failed() string {
	if why := s.failure.Load(); why != nil {
		return *why
	}
	return ""
}

// Aside is how many files of damaged replicas have been set aside and were there at the last start, or since.
func (s *Store) Aside() uint64 { return s.aside.Load() }

// GiveUp ends appends and fences for good, though the disk may be well: an operator has declared the store lost.
func (s *Store) GiveUp(why string) {
	if s.failure.CompareAndSwap(nil, &why) {
		s.metrics.failed.Set(1)
		s.log.Error("store is given up", "err", why)
	}
}

// fail ends appends for good. A failed fdatasync also leaves a mark that outlives the process (R8): the
// kernel reports it once, and what it dropped looks written.
func (s *Store) fail(what string, err error) {
	why := fmt.Sprintf("%s: %v", what, err)
	if !s.failure.CompareAndSwap(nil, &why) {
		return
	}
	s.metrics.failed.Set(1)
	s.log.Error("store failed: it takes no appends until the host has rebooted", "err", why)
	if err := s.mark(why); err != nil {
		s.log.Error("the failure could not be marked: a restarted process would use the store again", "err", err)
	}
}

func (s *Store) markName(boot ident.BootID) string {
	return fmt.Sprintf("%s/%s-%s.failed", s.opts.FailMarkDir, s.id, boot)
}

func (s *Store) mark(why string) error {
	if err := s.fs.MkdirAll(s.opts.FailMarkDir); err != nil {
		return err
	}
	f, err := s.fs.Create(s.markName(s.opts.Boot))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(why), 0)
	return errors.Join(err, f.Close())
}

// readMark restores a failure of this boot.
func (s *Store) readMark() {
	b, err := readWhole(s.fs, s.markName(s.opts.Boot), 64<<10)
	if err == nil {
		why := string(b)
		if why == "" {
			why = "marked as failed"
		}
		s.failure.Store(&why)
	}
}

// crowded says that an error is of the process or the host, which can have no more files open, and not of the disk.
func crowded(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// failOpen ends the store for a file that can't be opened, unless that says nothing of it.
func (s *Store) failOpen(path string, err error) error {
	if !crowded(err) {
		s.fail("open "+path, err)
	}
	return ioError("open "+path, err)
}

// ioError turns an error of the file system into an answer.
func ioError(what string, err error) *wire.Error {
	if crowded(err) {
		return wire.Errorf(wire.CodeBusy, "%s: %v", what, err)
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return wire.Errorf(wire.CodeNoSpace, "%s: %v", what, err)
	}
	return wire.Errorf(wire.CodeIO, "%s: %v", what, err)
}

// answer makes an error that may be sent: contexts and notes give other kinds.
func answer(what string, err error) error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return wire.Errorf(wire.CodeUnreached, "%s: %v", what, err)
	}
	return ioError(what, err)
}

func (s *Store) replica(id ident.SegmentID) *replica {
	s.mu.RLock()
	r := s.mu.replicas[id]
	s.mu.RUnlock()
	return r
}

func absent(id ident.SegmentID) error {
	return wire.Errorf(wire.CodeAbsent, "no replica of segment %s here", id)
}

// journal gives the state of a journal, made if it isn't known.
func (s *Store) journal(id ident.JournalID) *journalState {
	s.mu.RLock()
	j := s.mu.journals[id]
	s.mu.RUnlock()
	if j != nil {
		return j
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j = s.mu.journals[id]; j == nil {
		j = newJournalState(&journalNote{Journal: id})
		s.mu.journals[id] = j
	}
	return j
}

func (s *Store) addReplica(r *replica) {
	s.mu.Lock()
	s.mu.replicas[r.id] = r
	r.j.replicas[r.id] = r
	s.mu.sorted = nil
	s.mu.changes++
	s.mu.Unlock()
}

func (s *Store) removeReplica(r *replica) {
	s.mu.Lock()
	if s.mu.replicas[r.id] == r {
		delete(s.mu.replicas, r.id)
		delete(r.j.replicas, r.id)
		s.mu.sorted = nil
		s.mu.changes++
	}
	delete(s.mu.dirty, r)
	s.mu.Unlock()
}

// ids lists replicas in order: those of one journal, or all.
func (s *Store) ids(of ident.JournalID) []ident.SegmentID {
	s.mu.RLock()
	if of.IsZero() && s.mu.sorted != nil {
		defer s.mu.RUnlock()
		return s.mu.sorted
	}
	from := s.mu.replicas
	if !of.IsZero() {
		from = nil
		if j := s.mu.journals[of]; j != nil {
			from = j.replicas
		}
	}
	changes := s.mu.changes
	list := make([]ident.SegmentID, 0, len(from))
	for id := range from {
		list = append(list, id)
	}
	s.mu.RUnlock()
	slices.SortFunc(list, ident.SegmentID.Compare)
	if of.IsZero() {
		s.keepSorted(list, changes)
	}
	return list
}

// keepSorted keeps the list of all replicas as it was at so many changes, unless there were others since.
func (s *Store) keepSorted(list []ident.SegmentID, changes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if changes == s.mu.changes {
		s.mu.sorted = list
	}
}
