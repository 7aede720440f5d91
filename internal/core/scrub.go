package core

import (
	"context"
	"errors"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// ScrubReport is what one pass over a store found.
type ScrubReport struct {
	Replicas int
	Bytes    int64
	Bad      []ident.SegmentID
}

// Scrub reads every sealed replica once, whole, and verifies every checksum, the chain and the index. It reads
// rateBps bytes a second, as fast as it can if that is 0. What is bad is reported through Options.OnCorrupt
// as it is found. It ends with the pass or with ctx.
func (s *Store) Scrub(ctx context.Context, rateBps int64) (rep ScrubReport, err error) {
	pace := &pacer{ctx: ctx, rateBps: rateBps, start: time.Now()}
	for _, id := range s.ids(ident.JournalID{}) {
		if err := ctx.Err(); err != nil {
			return rep, err
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
	}
	return rep, nil
}

func (s *Store) scrubOne(r *replica, pace *pacer) (bad bool, err error) {
	f, err := s.handles.acquire(r)
	if err == nil {
		var x *journal.Index
		pace.File = f
		x, err = verifySealed(pace, r.id)
		s.handles.release(f)
		if n := r.note.Load(); err == nil && (x.End != n.End || x.Last != n.Last) {
			err = errors.New("the file is not the one that was sealed")
		}
	}
	if s.life.Err() != nil || pace.ctx.Err() != nil {
		return false, wire.Errorf(wire.CodeShutdown, "scrub of %s stopped", r.id)
	}
	s.metrics.scrubbed.Add(float64(r.note.Load().Length))
	if err == nil || err == errGone || s.replica(r.id) != r {
		return false, nil // good, or dropped meanwhile
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
