package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// The largest one that fits is taken; a larger one is cut, a smaller one grows.
func TestSparesOfOtherSizes(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, spareOptions(m, boot1))
	small := newOwner(t, segment(jA, 1, 1)).filled(s, 3)
	middle := small.after().filled(s, 20)
	large := middle.after().filled(s, 50)
	for _, o := range []*owner{small, middle, large} {
		o.drop(s)
	}
	last := large
	for i, want := range [][]ident.SegmentID{{small.seg, large.seg}, {large.seg}, {}} {
		o := last.after()
		o.seg.Number = 100 + uint32(i)
		if _, err := s.OpenSegment(bg, &wire.OpenSegment{Epoch: o.epoch, Segment: o.seg, Capacity: 400 << 10}); err != nil {
			t.Fatal(err)
		}
		if got := s.spareList(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("spares %v, want %v", got, want)
		}
		if size, _ := m.Size(s.Path(o.seg)); size != 400<<10 {
			t.Fatalf("%d bytes", size)
		}
		o.write(s, 3, 5)
		if out := inspected(t, m, s.Path(o.seg)); !strings.Contains(out, "not sealed") {
			t.Fatal(out)
		}
		o.seal(s)
		o.wantRecords(s, 1)
		last = o
	}
}

// At every step of dropping, recycling and writing, the power fails or the process is killed.
func TestRecycleIsCutOffAnywhere(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	s := openStore(t, spareOptions(faults, boot1))
	a := newOwner(t, segment(jA, 1, 1)).filled(s, 30)
	b := a.after()
	type cut struct {
		fs      *vfs.Mem
		boot    ident.BootID
		what    string
		dropped bool // answered
		opened  bool
		synced  int
		made    int
	}
	var mu sync.Mutex
	var cuts []cut
	now := cut{}
	stop := faults.Add(func(c vfs.Call) error {
		mu.Lock()
		defer mu.Unlock()
		if c.Op == vfs.OpRead || c.Op == vfs.OpOpen {
			return nil
		}
		for seed, percent := range []int{0, 20, 50, 80, 100} {
			x := now
			x.fs, x.boot, x.what = powerCut(m, percent, uint64(seed+len(cuts))), boot2, fmt.Sprintf("%v of %s, power cut %d %%", c.Op, c.Path, percent)
			cuts = append(cuts, x)
		}
		x := now
		x.fs, x.boot, x.what = powerCut(m, 100, 1), boot1, fmt.Sprintf("%v of %s, killed", c.Op, c.Path)
		cuts = append(cuts, x)
		return nil
	})
	step := func(do func(), after func()) {
		do()
		mu.Lock()
		after()
		mu.Unlock()
	}
	step(func() { a.drop(s) }, func() { now.dropped = true })
	step(func() { b.open(s) }, func() { now.opened = true })
	for i := range 3 {
		mu.Lock()
		now.made++
		mu.Unlock()
		b.write(s, i+1, byte(i))
		step(func() { b.sync(s) }, func() { now.synced++ })
	}
	stop()
	for _, c := range cuts {
		s := openStore(t, spareOptions(c.fs, c.boot))
		inv := inventory(t, s, jA)
		n := len(inv)
		ra, okA := inv[a.seg]
		if okA && (ra.State != wire.ReplicaSealed || ra.End != a.off) || okA && c.dropped {
			t.Fatalf("%s: the dropped one is %+v", c.what, ra)
		}
		if okA {
			a.wantRecords(s, len(a.ends))
		}
		rb, okB := inv[b.seg]
		if c.opened && !okB {
			t.Fatalf("%s: the new one is gone", c.what)
		}
		if okB {
			want := wire.ReplicaOpen
			if c.boot == boot2 {
				want = wire.ReplicaShort
			}
			held := 0
			for held < c.made && b.ends[held] <= rb.End {
				held++
			}
			if rb.State != want || held < c.synced || held > 0 && (rb.End != b.ends[held-1] || rb.Last != b.pos[held-1]) || held == 0 && rb.End > journal.SegmentHeaderSize {
				t.Fatalf("%s: the new one is %+v with %d records, %d were synced", c.what, rb, held, c.synced)
			}
			if held > 0 {
				b.wantRecords(s, held)
			}
		}
		wantFiles(t, c.fs, n)
		if s.Aside() != 0 {
			t.Fatalf("%s: a file was set aside", c.what)
		}
		// It goes on: whatever is missing is appended, and all is as if nothing had happened.
		if okA {
			a.drop(s)
		}
		b.open(s)
		from := uint32(0)
		if okB {
			from = rb.End
		}
		if _, err := appendAt(s, &wire.Append{Epoch: b.epoch, Segment: b.seg, Offset: from, Data: [][]byte{b.bytes[from:]}}); err != nil {
			t.Fatalf("%s: append the rest: %v", c.what, err)
		}
		b.seal(s)
		b.wantRecords(s, len(b.ends))
		if rep, err := s.Scrub(bg, 0); err != nil || rep.Replicas != 1 || len(rep.Bad) != 0 {
			t.Fatalf("%s: scrub %+v, %v", c.what, rep, err)
		}
		s.Close()
		wantFiles(t, c.fs, 1)
	}
	if len(cuts) < 60 {
		t.Fatalf("%d cuts only", len(cuts))
	}
}

// Whatever fails on the way, the segment opens with a new file, or the store says that it has failed.
func TestRecycleFails(t *testing.T) {
	eio := syscall.EIO
	for _, c := range []struct {
		op     vfs.Op
		old    bool // the call names the old file
		err    error
		failed bool
	}{
		{vfs.OpOpen, true, eio, false}, {vfs.OpWrite, true, eio, false}, {vfs.OpPreallocate, true, syscall.ENOSPC, false},
		{vfs.OpSyncData, true, eio, true}, {vfs.OpRename, false, eio, false}, {vfs.OpOpen, false, syscall.EMFILE, false},
		{vfs.OpSyncDir, false, eio, true},
	} {
		m := vfs.NewMem(0)
		faults := vfs.NewFaults(m)
		s := openStore(t, spareOptions(faults, boot1))
		a := newOwner(t, segment(jA, 1, 1)).filled(s, 30)
		a.drop(s)
		b := a.after()
		pattern := b.seg.String()
		if c.old {
			pattern = a.seg.String()
		}
		if c.op == vfs.OpSyncDir {
			pattern = "0a"
		}
		remove := faults.Add(vfs.FailOn(c.op, pattern, c.err))
		_, err := s.OpenSegment(bg, &wire.OpenSegment{Epoch: b.epoch, Segment: b.seg, Capacity: testCapacity})
		remove()
		if c.failed {
			wantCode(t, err, wire.CodeIO)
			if s.Failed() == "" {
				t.Fatalf("%v: the store has not failed", c.op)
			}
			continue
		}
		if err != nil || s.Failed() != "" {
			t.Fatalf("%v: %v, %s", c.op, err, s.Failed())
		}
		wantFiles(t, m, 1)
		b.write(s, 3, 1)
		b.seal(s)
		s = openStore(t, spareOptions(killed(m, s), boot1))
		b.wantRecords(s, 1)
		wantFiles(t, m, 1)
	}
}

// openHook calls after behind an open that has succeeded.
type openHook struct {
	vfs.FS
	after atomic.Pointer[func(name string)]
}

func (o *openHook) OpenReadWrite(name string) (vfs.File, error) {
	f, err := o.FS.OpenReadWrite(name)
	if after := o.after.Load(); after != nil && err == nil {
		(*after)(name)
	}
	return f, err
}

// A segment that is opened again while its old file is a spare, or about to become another's.
func TestSegmentOfASpareComesBack(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	s := openStore(t, spareOptions(faults, boot1))
	a := newOwner(t, segment(jA, 1, 1)).filled(s, 30)
	put := func() {
		t.Helper()
		if _, err := s.OpenSegment(bg, &wire.OpenSegment{Epoch: a.epoch, Segment: a.seg, Capacity: testCapacity, Copy: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Data: [][]byte{a.bytes}}); err != nil {
			t.Fatal(err)
		}
		a.seal(s)
	}
	a.drop(s)
	put()
	if got := s.spareList(); len(got) != 0 {
		t.Fatalf("spares %v", got)
	}
	s.notes.putStore(s.notes.mu.image.store).wait(bg)
	s = openStore(t, spareOptions(killed(m, s), boot1))
	a.wantRecords(s, 30)

	s.Close()
	s = openStore(t, spareOptions(faults, boot1))
	a.drop(s)
	b := a.after()
	var back sync.WaitGroup
	began := make(chan struct{})
	remove := faults.Add(func(c vfs.Call) error {
		if c.Op == vfs.OpRename {
			back.Go(func() {
				close(began)
				put()
			})
			<-began
			time.Sleep(5 * time.Millisecond) // long enough for it to do harm, if it could
		}
		return nil
	})
	b.open(s)
	back.Wait()
	remove()
	b.write(s, 3, 9)
	check := func() {
		t.Helper()
		wantFiles(t, m, 2)
		a.wantRecords(s, 30)
		b.wantRecords(s, 1)
	}
	check()
	s.notes.putStore(s.notes.mu.image.store).wait(bg)
	s = openStore(t, spareOptions(killed(m, s), boot1))
	check()
}

// Readers of all kinds run while segments come and go; whatever they get is of the segment that they asked for.
func TestReadersWhileFilesAreRecycled(t *testing.T) {
	dir := t.TempDir()
	opts := spareOptions(vfs.Default, boot1)
	opts.Dir, opts.FailMarkDir, opts.OpenFiles = dir+"/store", dir+"/marks", 2
	opts.OnCorrupt = func(id ident.SegmentID, _ uint32, err error) { t.Errorf("%s reported as corrupt: %v", id, err) }
	s := openStore(t, opts)
	const alive, rounds, records = 4, 60, 8
	var mu sync.Mutex
	var now []*owner
	some := func(i int) *owner {
		mu.Lock()
		defer mu.Unlock()
		if len(now) == 0 {
			return nil
		}
		return now[i%len(now)]
	}
	ctx, cancel := context.WithCancel(bg)
	var readers sync.WaitGroup
	check := func(o *owner, what string, err error, same func() bool) {
		if e, ok := errors.AsType[*wire.Error](err); ok && e.Code == wire.CodeAbsent {
			return
		}
		if err != nil || !same() {
			t.Errorf("%s of %s: %v, or bytes of another segment", what, o.seg, err)
			cancel()
		}
	}
	for k := range 2 {
		readers.Go(func() {
			for i := k; ctx.Err() == nil; i++ {
				o := some(i)
				if o == nil {
					continue
				}
				n := i % records
				at := uint32(4096)
				if n > 0 {
					at = o.ends[n-1]
				}
				data, err := read(s, jA, wire.ReadPiece{Segment: o.seg, Record: at, Blocks: 1})
				check(o, "read", err, func() bool { return bytes.Equal(data, bytes.Repeat([]byte{byte(o.seg.Number)}, 4096)) })
				raw, err := s.ReadRaw(bg, &wire.ReadRaw{Segment: o.seg, Len: o.off})
				check(o, "raw read", err, func() bool { return bytes.Equal(raw.Data, o.bytes) })
				releaseReply(raw)
			}
		})
	}
	readers.Go(func() {
		for ctx.Err() == nil {
			if rep, err := s.Scrub(ctx, 0); err == nil && len(rep.Bad) > 0 {
				t.Errorf("scrub: %+v", rep)
			}
		}
	})
	last := newOwner(t, segment(jA, 1, 0))
	for range rounds {
		o := last.after()
		o.open(s)
		for range records {
			o.write(s, 4, byte(o.seg.Number))
		}
		o.seal(s)
		last = o
		mu.Lock()
		now = append(now, o)
		var old *owner
		if len(now) > alive {
			old, now = now[0], now[1:]
		}
		mu.Unlock()
		if old != nil {
			old.drop(s)
		}
		if ctx.Err() != nil {
			break
		}
	}
	cancel()
	readers.Wait()
	if s.Failed() != "" {
		t.Fatal(s.Failed())
	}
}
