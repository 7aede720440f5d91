package core

import (
	"errors"
	"sync"

	"dozo/internal/vfs"
)

// handles keeps files of replicas open, the longest unused ones not beyond a number. A handle in use is never
// closed; a replica with unsynced bytes keeps using its own, because the kernel reports a failed write to the
// handles that are open then.
type handles struct {
	fs  vfs.FS
	max int

	mu struct {
		sync.Mutex
		count int
		// Idle and used handles in one ring; head.next is the one used last.
		head handle
	}
}

type handle struct {
	vfs.File
	r          *replica
	refs       int
	gone       bool // no longer in the ring: closed by the last user
	prev, next *handle
}

func newHandles(fsys vfs.FS, most int) *handles {
	h := &handles{fs: fsys, max: most}
	h.mu.head.prev, h.mu.head.next = &h.mu.head, &h.mu.head
	return h
}

func (h *handles) unlinkLocked(f *handle) {
	f.prev.next, f.next.prev = f.next, f.prev
	h.mu.count--
}

func (h *handles) pushLocked(f *handle) {
	f.prev, f.next = &h.mu.head, h.mu.head.next
	f.prev.next, f.next.prev = f, f
	h.mu.count++
}

// errGone says that a replica was dropped: what lies under its name may be another's by now.
var errGone = errors.New("the replica was dropped")

// acquire gives the replica's file, opened if need be; errGone once it is forgotten.
func (h *handles) acquire(r *replica) (*handle, error) {
	if f := h.opened(r); f != nil {
		return f, nil
	}
	file, err := h.fs.OpenReadWrite(r.path)
	if err != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		if r.gone {
			return nil, errGone
		}
		return nil, err
	}
	if f := h.adopt(r, file); f != nil {
		return f, nil
	}
	return nil, errGone
}

// opened gives the replica's file if it is open.
func (h *handles) opened(r *replica) *handle {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := r.file
	if f != nil {
		f.refs++
		if h.mu.head.next != f {
			h.unlinkLocked(f)
			h.pushLocked(f)
		}
	}
	return f
}

// adopt takes a file that was just opened, or closes it if another one was quicker. It gives nil if the replica was
// forgotten meanwhile: then the file may be on its way to another replica.
func (h *handles) adopt(r *replica, file vfs.File) *handle {
	f := &handle{File: file, r: r, refs: 1}
	var spare []*handle
	h.mu.Lock()
	if r.gone {
		h.mu.Unlock()
		_ = file.Close()
		return nil
	}
	if r.file != nil {
		spare = append(spare, f)
		f = r.file
		f.refs++
	} else {
		r.file = f
		h.pushLocked(f)
		for last := h.mu.head.prev; h.mu.count > h.max && last != &h.mu.head; {
			prev := last.prev
			if last.refs == 0 {
				h.evictLocked(last)
				spare = append(spare, last)
			}
			last = prev
		}
	}
	h.mu.Unlock()
	for _, s := range spare {
		_ = s.File.Close()
	}
	return f
}

func (h *handles) evictLocked(f *handle) {
	h.unlinkLocked(f)
	f.r.file = nil
	f.gone = true
}

func (h *handles) release(f *handle) {
	h.mu.Lock()
	f.refs--
	if f.refs == 0 && !f.gone && h.mu.count > h.max { // more were in use than may stay
		h.evictLocked(f)
	}
	closing := f.gone && f.refs == 0
	h.mu.Unlock()
	if closing {
		_ = f.File.Close()
	}
}

// forget closes the replica's handle once nobody uses it, and lets nobody open another one. It says whether nobody
// uses it now: then nobody ever will.
func (h *handles) forget(r *replica) (idle bool) {
	h.mu.Lock()
	idle = !r.gone && (r.file == nil || r.file.refs == 0)
	r.gone = true
	f := r.file
	closing := false
	if f != nil {
		h.evictLocked(f)
		closing = f.refs == 0
	}
	h.mu.Unlock()
	if closing {
		_ = f.File.Close()
	}
	return idle
}

// closeAll closes everything; nothing may be in use.
func (h *handles) closeAll() {
	for {
		h.mu.Lock()
		f := h.mu.head.next
		if f == &h.mu.head {
			h.mu.Unlock()
			return
		}
		h.evictLocked(f)
		h.mu.Unlock()
		_ = f.File.Close()
	}
}
