package core

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// stuckStore is a store whose operations wait for a channel where it has one.
type stuckStore struct {
	journal.Store
	mu   sync.Mutex
	hold chan struct{}
	did  []string
}

func (s *stuckStore) ID() ident.StoreID { return ident.StoreID{7} }

func (s *stuckStore) sticks() (release func()) {
	c := make(chan struct{})
	s.mu.Lock()
	s.hold = c
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.hold = nil
		s.mu.Unlock()
		close(c)
	}
}

func (s *stuckStore) do(what string) {
	s.mu.Lock()
	c := s.hold
	s.mu.Unlock()
	if c != nil {
		<-c
	}
	s.mu.Lock()
	s.did = append(s.did, what)
	s.mu.Unlock()
}

func (s *stuckStore) done() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.did)
}

func (s *stuckStore) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	s.do("append " + string(rune('0'+m.Offset)))
	done(wire.AppendReply{End: m.Offset + 1}, nil)
}

func (s *stuckStore) OpenSegment(context.Context, *wire.OpenSegment) (wire.OpenReply, error) {
	s.do("open")
	return wire.OpenReply{}, nil
}

func (s *stuckStore) Sync(context.Context, *wire.Sync) (wire.SyncReply, error) {
	s.do("sync")
	return wire.SyncReply{}, nil
}

func (s *stuckStore) Seal(context.Context, *wire.Seal) (wire.SealReply, error) {
	s.do("seal")
	return wire.SealReply{}, nil
}

type boundedTest struct {
	*testing.T
	s *stuckStore
	b *Bounded
}

func bounded(t *testing.T) *boundedTest {
	s := &stuckStore{}
	return &boundedTest{t, s, NewBounded(s, 5*time.Second, slog.New(slog.NewTextHandler(io.Discard, nil)))}
}

// append gives what comes of an append.
func (t *boundedTest) append(number, at uint32) chan error {
	c := make(chan error, 2)
	t.b.Append(&wire.Append{Segment: ident.SegmentID{Number: number}, Offset: at}, func(r wire.AppendReply, err error) {
		if err == nil && r.End != at+1 {
			t.Errorf("the append at %d is answered with %d", at, r.End)
		}
		c <- err
	})
	return c
}

func refused(err error) bool {
	_, inUse := errors.AsType[*journal.InUse](err)
	return errors.Is(err, wire.ErrUnreached) && !inUse
}

func (t *boundedTest) refusesAll() {
	t.Helper()
	if err := <-t.append(9, 0); !refused(err) {
		t.Errorf("append: %v", err)
	}
	ctx := t.Context()
	_, open := t.b.OpenSegment(ctx, &wire.OpenSegment{})
	_, sync := t.b.Sync(ctx, &wire.Sync{})
	_, seal := t.b.Seal(ctx, &wire.Seal{})
	for _, err := range []error{open, sync, seal} {
		if !refused(err) {
			t.Errorf("not refused: %v", err)
		}
	}
}

// An append that hangs is answered when its time is over, those behind it are answered and not done, and until it has returned nothing else
// is begun. Then all is as before.
func TestAnAppendThatHangsIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := bounded(t)
		release := x.s.sticks()
		began := time.Now()
		first, second, third := x.append(1, 0), x.append(1, 1), x.append(1, 2)
		_, sync := x.b.Sync(t.Context(), &wire.Sync{Segments: []ident.SegmentID{{Number: 1}}}) // behind them
		if _, inUse := errors.AsType[*journal.InUse](<-first); !inUse {
			t.Error("who has sent the append that hangs is not told that its data are in use")
		}
		for _, err := range []error{<-second, <-third, sync} {
			if !refused(err) {
				t.Errorf("behind it: %v", err)
			}
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("after %v", took)
		}
		x.refusesAll()
		if time.Since(began) != 5*time.Second {
			t.Error("what is refused waited")
		}
		release()
		synctest.Wait()
		for _, c := range []chan error{first, second, third} {
			if len(c) > 0 {
				t.Error("answered twice")
			}
		}
		if err := <-x.append(1, 3); err != nil {
			t.Error(err)
		}
		x.b.Close()
		want := []string{"append 0", "append 3"}
		if got := slices.DeleteFunc(x.s.done(), func(s string) bool { return s == "sync" }); !slices.Equal(got, want) {
			t.Errorf("done: %v, want %v", got, want)
		}
	})
}

// Likewise whatever else writes, and a disk that is only slow is not taken for one that hangs.
func TestAnOperationThatHangsIsAnswered(t *testing.T) {
	for name, f := range map[string]func(*Bounded) error{
		"open": func(b *Bounded) error {
			_, err := b.OpenSegment(context.Background(), &wire.OpenSegment{})
			return err
		},
		"sync": func(b *Bounded) error {
			_, err := b.Sync(context.Background(), &wire.Sync{})
			return err
		},
		"seal": func(b *Bounded) error {
			_, err := b.Seal(context.Background(), &wire.Seal{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := bounded(t)
				release := x.s.sticks()
				time.AfterFunc(4900*time.Millisecond, release)
				if err := f(x.b); err != nil {
					t.Errorf("it has taken less than its time: %v", err)
				}
				release = x.s.sticks()
				if err := f(x.b); !refused(err) {
					t.Error(err)
				}
				x.refusesAll()
				release()
				synctest.Wait()
				if err := f(x.b); err != nil {
					t.Errorf("it has returned: %v", err)
				}
				x.b.Close()
			})
		})
	}
}

// Appends to a segment are made in the order in which they come, and what asks about them is asked behind them, as where a connection's
// reader makes them.
func TestBoundedKeepsTheOrderOfASegment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := bounded(t)
		release := x.s.sticks()
		var answers []chan error
		for at := range uint32(4) {
			answers = append(answers, x.append(1, at))
		}
		synced := make(chan error, 1)
		go func() {
			_, err := x.b.Sync(t.Context(), &wire.Sync{Segments: []ident.SegmentID{{Number: 1}}})
			synced <- err
		}()
		synctest.Wait()
		release()
		for _, c := range append(answers, synced) {
			if err := <-c; err != nil {
				t.Error(err)
			}
		}
		x.b.Close()
		if got, want := x.s.done(), []string{"append 0", "append 1", "append 2", "append 3", "sync"}; !slices.Equal(got, want) {
			t.Errorf("done: %v, want %v", got, want)
		}
	})
}
