package core

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// The next owner ends a sealed replica earlier, since it has the last records in a segment of its own, while the scrubber reads it. What is read of
// two files is nothing to be healed.
func TestAReplicaIsCutWhileItIsScrubbed(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	opts := testOptions(faults, boot1)
	opts.OnCorrupt = func(s ident.SegmentID, _ uint32, err error) { t.Errorf("%s is said to be corrupt: %v", s, err) }
	s := openStore(t, opts)
	a := newOwner(t, segment(jA, 1, 1)).filled(s, 3)
	begun, release := make(chan struct{}), make(chan struct{})
	var reads atomic.Int32
	faults.Add(func(c vfs.Call) error {
		if c.Op == vfs.OpRead && strings.Contains(c.Path, "segments") && reads.Add(1) == 1 {
			close(begun)
			<-release
		}
		return nil
	})
	type scrubbed struct {
		rep ScrubReport
		err error
	}
	done := make(chan scrubbed)
	go func() {
		rep, err := s.Scrub(bg, 0)
		done <- scrubbed{rep, err}
	}()
	<-begun
	start := wire.EpochStart{At: ident.Position{Epoch: epoch(2), Seq: a.pos[1].Seq + 1}, Before: a.pos[1], Proven: true}
	_, err := s.Seal(bg, &wire.Seal{Epoch: epoch(2), Segment: a.seg, End: a.ends[1], Last: a.pos[1], Start: start, Proven: true})
	close(release)
	if err != nil {
		t.Error(err)
	}
	if x := <-done; x.err != nil || len(x.rep.Bad) != 0 || len(s.Damaged()) != 0 {
		t.Errorf("%+v, damaged %v", x, s.Damaged())
	}
	a.wantRecords(s, 2)
}

// The same with its index, which is at another place when it is read.
func TestAReplicaIsCutWhileItsIndexIsRead(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	opts := testOptions(faults, boot1)
	opts.OnCorrupt = func(s ident.SegmentID, _ uint32, err error) { t.Errorf("%s is said to be corrupt: %v", s, err) }
	s := openStore(t, opts)
	a := newOwner(t, segment(jA, 1, 1)).filled(s, 3)
	start := wire.EpochStart{At: ident.Position{Epoch: epoch(2), Seq: a.pos[1].Seq + 1}, Before: a.pos[1], Proven: true}
	var reads atomic.Int32
	faults.Add(func(c vfs.Call) error {
		if c.Op == vfs.OpRead && reads.Add(1) == 1 {
			if _, err := s.Seal(bg, &wire.Seal{Epoch: epoch(2), Segment: a.seg, End: a.ends[1], Last: a.pos[1], Start: start, Proven: true}); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	_, err := s.ReadIndex(bg, &wire.ReadIndex{Segment: a.seg})
	wantCode(t, err, wire.CodeBusy)
	if _, err := s.ReadIndex(bg, &wire.ReadIndex{Segment: a.seg}); err != nil || len(s.Damaged()) != 0 {
		t.Errorf("%v, damaged %v", err, s.Damaged())
	}
}

// The last pass was noted by a clock that was years ahead.
func TestScrubbingAfterAClockThatWasAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, testOptions(vfs.NewMem(0), boot1))
		newOwner(t, segment(jA, 1, 1)).filled(s, 3)
		ahead := time.Now().AddDate(10, 0, 0)
		s.scrub.mu.Began, s.scrub.mu.Passed = ahead, ahead
		ctx, cancel := context.WithCancel(bg)
		done := make(chan struct{})
		go func() {
			s.KeepScrubbed(ctx, time.Hour)
			close(done)
		}()
		time.Sleep(time.Hour)
		if x := s.Scrubbing(); !x.Passed.Before(ahead) {
			t.Errorf("nothing was read in an hour: %+v", x)
		}
		cancel()
		<-done
		s.Close()
	})
}
