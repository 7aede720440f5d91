package export

import (
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/scsi"
	"dozo/internal/wire"
)

// stampBook is rule R9's bookkeeping of a session with several volumes. What the initiator was told at a moment is one
// number; the book knows the stamps that all volumes had then, or a little earlier. Earlier is safe: a command can only
// seem older than it is, and then its initiator is asked to send it again.
type stampBook struct {
	mu      sync.Mutex
	at      time.Time                // of the newest page
	page    uint64                   // its number; the first is stampCoarse
	pages   [stampPages][]wire.Stamp // in the order of volumes; one that came later is not on it
	coarse  [stampCoarsePages][]wire.Stamp
	volumes []*access.Volume
	// latest commands and where they went
	sent [sentKept]struct {
		id scsi.RequestID
		v  *access.Volume
	}
	next int
}

const (
	stampEvery = 20 * time.Millisecond
	// stampPages at least reach back further than any stamp that an owner takes (3 s).
	stampPages = 256
	// Every stampCoarse-th page, of 5 s or more, is kept longer: commands that take minutes are held to refusals by the
	// stamp with which they began.
	stampCoarse      = 250
	stampCoarsePages = 128
	sentKept         = 1024 // more than a session has outstanding, by far
)

func newStampBook() *stampBook { return &stampBook{page: stampCoarse - 1} }

// add makes a volume one whose stamps are kept.
func (b *stampBook) add(v *access.Volume) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.volumes {
		if x == v {
			return
		}
	}
	b.volumes = append(b.volumes, v)
	b.at = time.Time{}
}

// now is the newest page.
func (b *stampBook) now() scsi.Stamp {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t := time.Now(); b.at.IsZero() || t.Sub(b.at) >= stampEvery {
		b.at = t
		b.page++
		p := &b.pages[b.page%stampPages]
		*p = (*p)[:0]
		for _, v := range b.volumes {
			*p = append(*p, v.Stamp())
		}
		if b.page%stampCoarse == 0 {
			c := &b.coarse[b.page/stampCoarse%stampCoarsePages]
			*c = append((*c)[:0], *p...)
		}
	}
	return scsi.Stamp{Tick: b.page}
}

// stamp is what a volume had on a page; the zero Stamp, older than all, where that is not known any more.
func (b *stampBook) stamp(v *access.Volume, s scsi.Stamp) wire.Stamp {
	b.mu.Lock()
	defer b.mu.Unlock()
	var p []wire.Stamp
	switch coarse := s.Tick / stampCoarse; {
	case coarse == 0 || s.Tick > b.page:
	case s.Tick+stampPages > b.page:
		p = b.pages[s.Tick%stampPages]
	case coarse+stampCoarsePages > b.page/stampCoarse:
		p = b.coarse[coarse%stampCoarsePages]
	}
	for i, x := range b.volumes[:min(len(p), len(b.volumes))] {
		if x == v {
			return p[i]
		}
	}
	return wire.Stamp{}
}

// went notes to which volume a command went.
func (b *stampBook) went(id scsi.RequestID, v *access.Volume) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent[b.next].id, b.sent[b.next].v = scsi.RequestID{Conn: id.Conn, Seq: id.Seq}, v
	b.next = (b.next + 1) % sentKept
}

// volumeOf says where a command went; nil if that is not known.
func (b *stampBook) volumeOf(id scsi.RequestID) *access.Volume {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.sent {
		if x := &b.sent[i]; x.id.Conn == id.Conn && x.id.Seq == id.Seq && x.v != nil {
			return x.v
		}
	}
	return nil
}

// ready is a LUN's state: whether its owner has barred what came before the session.
type ready struct{ done atomic.Bool }

func (r *ready) is() bool { return r == nil || r.done.Load() }
func (r *ready) set()     { r.done.Store(true) }
