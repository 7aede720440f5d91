package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// notesLog writes the notes. Generation g lies in file notes.<g modulo 2>; when it is full, everything still
// true is written to the other file as generation g+1. Both files are written full of zeroes when they are
// made, so that a full disk can still fence (R6); only a replica more can need them to grow, and that is
// refused beforehand.
//
// One goroutine writes: whatever is put while an fdatasync is under way shares the next.
type notesLog struct {
	fs    vfs.FS
	dir   string
	store ident.StoreID

	mu struct {
		sync.Mutex
		image   *noteImage
		pending []byte
		batch   *noteBatch // that pending belongs to
		failed  error      // notes can't be written any more
		size    int64      // of the smaller file
		closing bool
	}
	growing sync.Mutex // held while zeroes are written behind a file's end, so that only one does
	kick    chan struct{}
	done    chan struct{}

	// Of the writing goroutine:
	files      [2]vfs.File
	sizes      [2]int64
	generation uint64
	next       uint64 // the next one is no lower; of its parity
	number     uint64 // of the last batch
	at         int64
	frame      []byte
}

// noteBatch is what one fdatasync makes durable.
type noteBatch struct {
	done chan struct{}
	err  error
}

// wait waits until the batch is durable. A context that ends stops the waiting only.
func (b *noteBatch) wait(ctx context.Context) error {
	if b == nil {
		return nil
	}
	select {
	case <-b.done:
		return b.err
	default:
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func notesName(dir string, i int) string { return fmt.Sprintf("%s/notes.%d", dir, i) }

// createNotes makes both files; the first generation is valid when it returns.
func createNotes(fsys vfs.FS, dir string, store ident.StoreID, size int64) error {
	for i := range 2 {
		name := notesName(dir, i)
		if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f, err := fsys.Create(name)
		if err != nil {
			return err
		}
		err = growNotes(f, 0, size)
		if err == nil && i == 1 {
			h := notesHeader{Store: store, Generation: 1, Snapshot: notesHeaderSize}
			if _, err = f.WriteAt(h.encode(), 0); err == nil {
				err = f.SyncData()
			}
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return fsys.SyncDir(dir)
}

// growNotes writes zeroes from the file's end on: space that is written can be written again.
func growNotes(f vfs.File, from, to int64) error {
	zeroes := make([]byte, max(0, min(256<<10, to-from)))
	for from < to {
		n := min(int64(len(zeroes)), to-from)
		if _, err := f.WriteAt(zeroes[:n], from); err != nil {
			return err
		}
		from += n
	}
	return f.SyncData()
}

// openNotes reads what is noted and starts the next generation, so that what a crash tore lies in a file that
// is not appended to again.
func openNotes(fsys vfs.FS, dir string, store ident.StoreID) (*notesLog, error) {
	l := &notesLog{fs: fsys, dir: dir, store: store, kick: make(chan struct{}, 1), done: make(chan struct{})}
	var best *noteImage
	var bestErr error
	var content [2][]byte
	for i := range 2 {
		b, err := readWhole(fsys, notesName(dir, i), 1<<32)
		if err != nil {
			return nil, err
		}
		l.sizes[i], content[i] = int64(len(b)), b
		h, m, err := decodeNotes(b)
		if errors.Is(err, errNoNotes) || err == nil && h.Store != store {
			continue // being written when the power failed, or not ours
		}
		// The lower generation may be half overwritten by what was to become the next: only the highest
		// counts, and it must be whole.
		if h.Generation%2 == uint64(i) && h.Generation > l.generation {
			l.generation, best = h.Generation, m
			if bestErr = nil; err != nil {
				bestErr = fmt.Errorf("%s: %w", notesName(dir, i), err)
			}
		}
	}
	switch {
	case bestErr != nil:
		return nil, bestErr
	case best == nil:
		return nil, fmt.Errorf("%s: %w: neither file is valid", dir, errNotes)
	case best.superseded > l.generation:
		return nil, fmt.Errorf("%s: %w: generation %d is gone", dir, errNotes, best.superseded)
	}
	for i := range 2 {
		f, err := fsys.OpenReadWrite(notesName(dir, i))
		if err != nil {
			l.closeFiles()
			return nil, err
		}
		l.files[i] = f
	}
	// A compaction that a crash has interrupted is not made again under its number: what it has written may be longer, and would be
	// found behind the end of the shorter one.
	l.next = l.generation + 1
	if left := lastGeneration(content[l.next%2], store); left >= l.next {
		l.next = left + 2 - (left-l.next)%2
	}
	l.mu.image = best
	l.mu.image.superseded = 0
	l.mu.size = min(l.sizes[0], l.sizes[1])
	return l, nil
}

// start runs the writer, whose first act is the next generation.
func (l *notesLog) start() error {
	if err := l.compact(); err != nil {
		close(l.done)
		l.closeFiles()
		return err
	}
	go l.run()
	return nil
}

// refuse runs no writer: every put fails with err.
func (l *notesLog) refuse(err error) {
	l.mu.failed = err
	close(l.done)
}

// put queues a change and applies it to the image. The change is durable when the batch is.
func (l *notesLog) put(encode func(b []byte) []byte, apply func(m *noteImage)) *noteBatch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.failed != nil || l.mu.closing {
		err := l.mu.failed
		if err == nil {
			err = wire.Errorf(wire.CodeShutdown, "store is closing")
		}
		b := &noteBatch{done: make(chan struct{}), err: err}
		close(b.done)
		return b
	}
	if l.mu.batch == nil {
		l.mu.batch = &noteBatch{done: make(chan struct{})}
	}
	l.mu.pending = encode(l.mu.pending)
	apply(l.mu.image)
	select {
	case l.kick <- struct{}{}:
	default:
	}
	return l.mu.batch
}

func (l *notesLog) putReplica(n *replicaNote) *noteBatch {
	return l.put(n.append, func(m *noteImage) { m.replicas[n.Segment] = n })
}

func (l *notesLog) putJournal(n *journalNote) *noteBatch {
	return l.put(n.append, func(m *noteImage) { m.journals[n.Journal] = n })
}

func (l *notesLog) putGone(s ident.SegmentID) *noteBatch {
	return l.put(func(b []byte) []byte { return appendGone(b, s) }, func(m *noteImage) { delete(m.replicas, s) })
}

func (l *notesLog) putStore(n storeNote) *noteBatch {
	return l.put(n.append, func(m *noteImage) { m.store = n })
}

// room reports whether a replica more fits. A quarter of a file is kept free of them: fences of journals that
// are not known yet must find room on a full disk.
func (l *notesLog) room() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.image.size()+replicaNoteSize <= l.mu.size-l.mu.size/4
}

// grow doubles both files. It is called by OpenSegment only, which may fail.
func (l *notesLog) grow(ctx context.Context) error {
	l.growing.Lock()
	defer l.growing.Unlock()
	if l.room() {
		return nil // somebody else was here
	}
	l.mu.Lock()
	want := 2 * l.mu.size
	l.mu.Unlock()
	for i := range 2 {
		f, err := l.fs.OpenReadWrite(notesName(l.dir, i))
		if err != nil {
			return err
		}
		size, err := f.Size()
		if err == nil && size < want {
			err = growNotes(f, size, want)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.mu.size = max(l.mu.size, want)
	l.mu.Unlock()
	return ctx.Err()
}

func (l *notesLog) run() {
	defer close(l.done)
	for range l.kick {
		l.mu.Lock()
		payload, batch, closing := l.mu.pending, l.mu.batch, l.mu.closing
		l.mu.pending, l.mu.batch = nil, nil
		l.mu.Unlock()
		if batch != nil {
			err := l.write(payload)
			if err != nil {
				err = fmt.Errorf("write notes: %w", err)
				l.mu.Lock()
				l.mu.failed = err
				l.mu.Unlock()
			}
			batch.err = err
			close(batch.done)
		}
		if closing {
			return
		}
	}
}

// write makes one batch durable. After an error nothing is written any more: what is on disk is not known.
func (l *notesLog) write(payload []byte) error {
	l.mu.Lock()
	failed := l.mu.failed
	l.mu.Unlock()
	if failed != nil {
		return failed
	}
	cur := l.generation % 2
	if l.at+int64(len(payload))+batchHeadSize+8+batchesReserve > l.sizes[cur] {
		return l.compact() // the image has the payload already
	}
	l.number++
	l.frame = appendBatch(l.frame[:0], l.store, l.generation, l.number, payload)
	if _, err := l.files[cur].WriteAt(l.frame, l.at); err != nil {
		return err
	}
	l.at += int64(len(l.frame))
	return l.files[cur].SyncData()
}

// compact writes the image as the next generation: the snapshot first, then, once it is stable, the header
// that makes it valid, and at last the word in the old file that a newer one exists. A crash in between
// leaves the old generation valid and complete.
func (l *notesLog) compact() error {
	next := max(l.generation+1, l.next)
	f := l.files[next%2]
	var err error
	if l.sizes[next%2], err = f.Size(); err != nil { // OpenSegment may have made it larger
		return err
	}

	l.mu.Lock()
	var snapshot, payload []byte
	var number uint64
	flush := func(more int) {
		if len(payload)+more > batchPayloadMax || more == 0 {
			number++
			snapshot = appendBatch(snapshot, l.store, next, number, payload)
			payload = payload[:0]
		}
	}
	payload = l.mu.image.store.append(payload)
	for _, n := range l.mu.image.journals {
		flush(journalNoteSize)
		payload = n.append(payload)
	}
	for _, n := range l.mu.image.replicas {
		flush(replicaNoteSize)
		payload = n.append(payload)
	}
	flush(0)
	l.mu.Unlock()

	end := int64(notesHeaderSize + len(snapshot))
	if end+batchesReserve > l.sizes[next%2] {
		want := 2 * end
		l.growing.Lock()
		if l.sizes[next%2], err = f.Size(); err == nil {
			err = growNotes(f, l.sizes[next%2], want)
		}
		l.growing.Unlock()
		if err != nil {
			return err
		}
		l.sizes[next%2] = max(l.sizes[next%2], want)
	}
	if _, err := f.WriteAt(snapshot, notesHeaderSize); err != nil {
		return err
	}
	if err := f.SyncData(); err != nil {
		return err
	}
	h := notesHeader{Store: l.store, Generation: next, Snapshot: uint64(end)}
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		return err
	}
	if err := f.SyncData(); err != nil {
		return err
	}
	// Should the new file be lost, the old one must not be believed. Every file keeps room for this batch.
	if l.at > 0 {
		old := l.files[l.generation%2]
		l.frame = appendBatch(l.frame[:0], l.store, l.generation, l.number+1, appendSuperseded(nil, next))
		if l.at+int64(len(l.frame)) <= l.sizes[l.generation%2] {
			if _, err := old.WriteAt(l.frame, l.at); err != nil {
				return err
			}
			if err := old.SyncData(); err != nil {
				return err
			}
		}
	}
	l.generation, l.number, l.at = next, number, end
	return nil
}

// close writes what is pending and ends the writer.
func (l *notesLog) close() {
	l.mu.Lock()
	again := l.mu.closing
	l.mu.closing = true
	l.mu.Unlock()
	if !again {
		select {
		case l.kick <- struct{}{}:
		default:
		}
	}
	<-l.done
	if !again {
		l.closeFiles()
	}
}

func (l *notesLog) closeFiles() {
	for _, f := range l.files {
		if f != nil {
			_ = f.Close()
		}
	}
}
