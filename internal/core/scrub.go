package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// The scrubber reads everything that is sealed within a set period, so that what rots unread is found while there is
// another copy. What it finds it only reports: the owner of the journal has it made again from a good one, and lets the
// rotten file go by a permit, like everything that goes (R13). A replica with a bad place counts in takeovers all the
// same, since the rest of it is good and every read is checked.
//
// How far it is, and what is rotten, stands in a file beside the superblock: a node that restarts every week would else
// never come to the end.

// ScrubReport is what one pass over a store found.
type ScrubReport struct {
	Replicas int
	Bytes    int64
	Bad      []ident.SegmentID
}

// Limits of the scrubber, ours.
const (
	scrubRateLeast = 1 << 20     // bytes a second: a small store is read in minutes, not spread over weeks
	scrubMargin    = 8           // it hurries by one part in so many, so that it is done before the period is
	scrubSaveEvery = time.Minute // how much of its work may be done twice
	damagedMax     = 1024        // that are remembered; more mean a broken disk, and there the rest is found again
	scrubName      = "scrub.json"
)

// Damaged is a replica with a bad place.
type Damaged struct {
	Segment ident.SegmentID `json:"segment"`
	Made    uint64          `json:"made"` // tells it from one that is made again in its place
}

// scrubState is what the file has.
type scrubState struct {
	Passed  time.Time `json:"passed,omitzero"` // when the last full pass ended
	Began   time.Time `json:"began,omitzero"`  // when the present one did
	After   string    `json:"after,omitempty"` // the last segment that it has read
	Done    uint64    `json:"done"`            // bytes that it has read
	Found   uint64    `json:"found"`           // damaged replicas, since the store was made
	Healed  uint64    `json:"healed"`          // of them, those that are gone or made again
	Damaged []Damaged `json:"damaged,omitempty"`
}

// scrubber is a store's own.
type scrubber struct {
	kick chan struct{} // somebody wants a pass now

	mu struct {
		sync.Mutex
		scrubState
		total uint64 // bytes that the present pass will have read
		now   bool   // it runs as fast as it can
		slow  context.CancelFunc
	}
}

// ScrubStatus is how far the scrubber is.
type ScrubStatus struct {
	Passed, Began time.Time
	Done, Total   uint64
	Found, Healed uint64
	Now           bool
}

// loadScrub reads the file. One that can't be read costs a pass and a count, nothing else.
func (s *Store) loadScrub() {
	x := &s.scrub
	x.kick = make(chan struct{}, 1)
	b, err := readWhole(s.fs, s.dir+"/"+scrubName, 1<<20)
	if err == nil {
		err = json.Unmarshal(b, &x.mu.scrubState)
	}
	if err != nil {
		x.mu.scrubState = scrubState{}
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("the scrubber begins anew", "err", err)
		}
	}
	x.mu.Damaged = x.mu.Damaged[:min(len(x.mu.Damaged), damagedMax)]
}

// saveScrub writes it.
func (s *Store) saveScrub() {
	x := &s.scrub
	x.mu.Lock()
	b, err := json.MarshalIndent(x.mu.scrubState, "", "  ")
	x.mu.Unlock()
	if err == nil && s.Failed() == "" {
		err = writeWhole(s.fs, s.dir, scrubName, append(b, '\n'))
	}
	if err != nil {
		s.log.Warn("how far the scrubber is could not be written", "err", err)
	}
}

// Scrubbing tells how far the scrubber is.
func (s *Store) Scrubbing() ScrubStatus {
	s.Damaged() // what has gone counts as healed
	x := &s.scrub
	x.mu.Lock()
	defer x.mu.Unlock()
	return ScrubStatus{Passed: x.mu.Passed, Began: x.mu.Began, Done: x.mu.Done, Total: max(x.mu.total, x.mu.Done), Found: x.mu.Found, Healed: x.mu.Healed, Now: x.mu.now}
}

// Damaged lists the replicas with a bad place, whoever found it, and those that are damaged as a whole.
func (s *Store) Damaged() (list []Damaged) {
	x := &s.scrub
	x.mu.Lock()
	x.mu.Damaged = slices.DeleteFunc(x.mu.Damaged, func(d Damaged) bool {
		healed := s.healed(d)
		if healed {
			x.mu.Healed++
			s.metrics.healed.Inc()
		}
		return healed
	})
	list = slices.Clone(x.mu.Damaged)
	x.mu.Unlock()
	return list
}

// healed reports that a damaged replica is gone, or that a good one is in its place.
func (s *Store) healed(d Damaged) bool {
	r := s.replica(d.Segment)
	if r == nil {
		return true
	}
	n := r.note.Load()
	return n.Made != d.Made && n.State == wire.ReplicaSealed && !n.Again || n.State == stateDropped || n.State == stateAside
}

// damagedReplica remembers a replica with a bad place.
func (s *Store) damagedReplica(r *replica) {
	d := Damaged{r.id, r.note.Load().Made}
	x := &s.scrub
	x.mu.Lock()
	known := slices.Contains(x.mu.Damaged, d)
	if !known && len(x.mu.Damaged) < damagedMax {
		x.mu.Damaged = append(x.mu.Damaged, d)
		x.mu.Found++
	}
	x.mu.Unlock()
	if !known {
		s.metrics.damaged.Inc()
	}
}

// isDamaged reports that a replica has a bad place.
func (s *Store) isDamaged(r *replica) bool {
	x := &s.scrub
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Contains(x.mu.Damaged, Damaged{r.id, r.note.Load().Made})
}

// ScrubNow has the scrubber read everything as fast as the disk lets it, from the beginning.
func (s *Store) ScrubNow() {
	x := &s.scrub
	x.mu.Lock()
	if !x.mu.now {
		x.mu.now = true
		x.mu.After, x.mu.Done, x.mu.Began, x.mu.total = "", 0, time.Now(), uint64(max(0, s.used.Load()))
		if x.mu.slow != nil {
			x.mu.slow()
		}
	}
	x.mu.Unlock()
	select {
	case x.kick <- struct{}{}:
	default:
	}
}

// KeepScrubbed reads everything once in each period, until ctx or the store ends.
func (s *Store) KeepScrubbed(ctx context.Context, period time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	x := &s.scrub
	for ctx.Err() == nil {
		x.mu.Lock()
		due := time.Duration(0)
		if !x.mu.now && x.mu.After == "" && !x.mu.Began.IsZero() && !x.mu.Passed.Before(x.mu.Began) && !x.mu.Began.After(time.Now()) {
			due = time.Until(x.mu.Began.Add(period)) // this period's is done; not if a clock that was wrong says so
		}
		x.mu.Unlock()
		if due > 0 {
			t := time.NewTimer(due)
			select {
			case <-t.C:
			case <-x.kick:
			case <-ctx.Done():
			}
			t.Stop()
			continue
		}
		if err := s.scrubPass(ctx, period); err != nil && ctx.Err() == nil {
			s.log.Warn("scrubbing interrupted", "err", err)
			select {
			case <-time.After(time.Minute):
			case <-x.kick:
			case <-ctx.Done():
			}
		}
	}
	s.saveScrub()
}

// scrubPass goes on with a pass, or begins one.
func (s *Store) scrubPass(ctx context.Context, period time.Duration) error {
	x := &s.scrub
	pctx, cancel := context.WithCancel(ctx)
	defer cancel()
	used := uint64(max(0, s.used.Load()))
	x.mu.Lock()
	now := x.mu.now
	if x.mu.After == "" {
		x.mu.Began, x.mu.Done = time.Now(), 0
	}
	x.mu.total = max(used, x.mu.Done)
	rate := int64(0)
	if !now {
		left := max(period-period/scrubMargin-max(0, time.Since(x.mu.Began)), period/100, time.Second)
		rate = max(scrubRateLeast, int64(float64(x.mu.total-x.mu.Done)/left.Seconds()))
		x.mu.slow = cancel
	}
	after, err := ident.ParseSegmentID(x.mu.After)
	if err != nil {
		after = ident.SegmentID{}
	}
	x.mu.Unlock()
	saved := time.Now()
	_, err = s.scrubFrom(pctx, rate, after, func(id ident.SegmentID, n int64) {
		x.mu.Lock()
		if x.mu.now == now { // else another pass has been asked for
			x.mu.After = id.String()
			x.mu.Done += uint64(n)
		}
		x.mu.Unlock()
		if time.Since(saved) > scrubSaveEvery {
			saved = time.Now()
			s.saveScrub()
		}
	})
	x.mu.Lock()
	x.mu.slow = nil
	asked := x.mu.now != now
	if err == nil && !asked {
		x.mu.After, x.mu.Passed, x.mu.now = "", time.Now(), false
		s.metrics.scrubPassed.SetToCurrentTime()
	}
	x.mu.Unlock()
	s.saveScrub()
	if asked {
		return nil
	}
	return err
}

// Scrub reads every sealed replica once, whole, and verifies every checksum, the chain and the index. It reads
// rateBps bytes a second, as fast as it can if that is 0. What is bad is reported through Options.OnCorrupt
// as it is found. It ends with the pass or with ctx.
func (s *Store) Scrub(ctx context.Context, rateBps int64) (rep ScrubReport, err error) {
	return s.scrubFrom(ctx, rateBps, ident.SegmentID{}, func(ident.SegmentID, int64) {})
}

// scrubFrom is Scrub of the segments behind one; read hears of each.
func (s *Store) scrubFrom(ctx context.Context, rateBps int64, after ident.SegmentID, read func(ident.SegmentID, int64)) (rep ScrubReport, err error) {
	pace := &pacer{ctx: ctx, rateBps: rateBps, start: time.Now()}
	for _, id := range s.ids(ident.JournalID{}) {
		if err := ctx.Err(); err != nil {
			return rep, err
		}
		if after != (ident.SegmentID{}) && id.Compare(after) <= 0 {
			continue
		}
		r := s.replica(id)
		if r == nil || r.note.Load().State != wire.ReplicaSealed {
			continue
		}
		if err := s.begin(); err != nil {
			return rep, err
		}
		bad, err := s.scrubOne(r, pace)
		s.end()
		if err != nil {
			return rep, err
		}
		rep.Replicas++
		rep.Bytes += int64(r.note.Load().Length)
		if bad {
			rep.Bad = append(rep.Bad, id)
		}
		read(id, int64(r.note.Load().Length))
	}
	return rep, nil
}

func (s *Store) scrubOne(r *replica, pace *pacer) (bad bool, err error) {
	was := r.note.Load()
	if was.State != wire.ReplicaSealed {
		return false, nil
	}
	f, err := s.handles.acquire(r)
	if crowded(err) {
		return false, fmt.Errorf("scrub of %s: %w", r.id, err)
	}
	if err == nil {
		var x *journal.Index
		pace.File = f
		x, err = verifySealed(pace, r.id)
		s.handles.release(f)
		if err == nil && (x.End != was.End || x.Last != was.Last) {
			err = errors.New("the file is not the one that was sealed")
		}
	}
	if s.life.Err() != nil || pace.ctx.Err() != nil {
		return false, wire.Errorf(wire.CodeShutdown, "scrub of %s stopped", r.id)
	}
	s.metrics.scrubbed.Add(float64(r.note.Load().Length))
	if err == nil || err == errGone || s.replica(r.id) != r || r.note.Load() != was {
		return false, nil // good, or dropped or cut meanwhile: what was read need not be of one file
	}
	var offset uint32
	if w, ok := errors.AsType[*errWalk](err); ok {
		offset = w.offset
	}
	_ = s.foundCorrupt(r, offset, err)
	return true, nil
}

// pacer slows the reads of a file down to a rate.
type pacer struct {
	vfs.File
	ctx     context.Context
	rateBps int64
	start   time.Time
	read    int64
}

func (p *pacer) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.File.ReadAt(b, off)
	p.read += int64(n)
	if p.rateBps > 0 {
		due := time.Duration(float64(p.read) / float64(p.rateBps) * float64(time.Second))
		if wait := due - time.Since(p.start); wait > 0 {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-p.ctx.Done():
				return n, p.ctx.Err()
			}
		}
	}
	return n, err
}

// writeWhole replaces a small file in a store's directory.
func writeWhole(fsys vfs.FS, dir, name string, b []byte) error {
	tmp := dir + "/" + name + ".new"
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.SyncData()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := fsys.Rename(tmp, dir+"/"+name); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}
