package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
)

// fakeVoter is a voter that ends when it is told to.
type fakeVoter struct {
	failed chan error
	ended  bool
	closed atomic.Int32
}

func (v *fakeVoter) Failed() <-chan error { return v.failed }
func (v *fakeVoter) Close() error         { v.closed.Add(1); return nil }
func (v *fakeVoter) Ended() bool          { return v.ended && v.closed.Load() > 0 }

func newFakeVoter(ended bool) *fakeVoter {
	return &fakeVoter{failed: make(chan error, 1), ended: ended}
}

// TestVoterComesBack: a voter is stopped before its disk is full, or dies of that, and runs again once there is room: in a new
// process, if something of it is left. One that has died of something else does not.
func TestVoterComesBack(t *testing.T) {
	full := fmt.Errorf("%w: %w", control.ErrVoterDied, syscall.ENOSPC)
	broken := fmt.Errorf("%w: %w", control.ErrVoterDied, syscall.EIO)
	removed := errors.New("it was removed from the voters")
	for _, x := range []struct {
		name  string
		ended bool
		lives bool
		fail  error // nil: there is no room
		says  []string
		back  bool
		fatal error
	}{
		{"short of room", true, true, nil, []string{"control.voter-paused", "control.voter-waits", "control.voter-back"}, true, nil},
		{"a witness short of room", true, false, nil, []string{"control.voter-paused", "control.voter-waits", "control.voter-back"}, true, nil},
		{"died of a full disk", true, true, full, []string{"control.voter-died", "control.voter-waits", "control.voter-back"}, true, nil},
		{"died of a full disk and did not end", false, true, full, []string{"control.voter-died"}, false, errStartAnew},
		{"a witness that did not end", false, false, full, []string{"control.voter-died"}, false, errStartAnew},
		{"died of a bad disk", true, true, broken, []string{"control.voter-died"}, false, nil},
		{"a witness that died of a full disk", true, false, full, []string{"control.voter-died", "control.voter-waits", "control.voter-back"}, true, nil},
		{"a witness that died of a bad disk", true, false, broken, nil, false, broken},
		{"removed", true, true, removed, nil, false, removed},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var free atomic.Uint64
				free.Store(1 << 30)
				var starts atomic.Int32
				var mu sync.Mutex // of says and problem
				var says []string
				problem := ""
				said := func() ([]string, string) {
					mu.Lock()
					defer mu.Unlock()
					return slices.Clone(says), problem
				}
				first, second := newFakeVoter(x.ended), newFakeVoter(true)
				k := voterKeeper{lives: x.lives,
					free: func() (uint64, error) { return free.Load(), nil },
					say: func(action, p string, _ error) {
						mu.Lock()
						defer mu.Unlock()
						says, problem = append(says, action), p
					},
					start: func(context.Context) (runningVoter, error) {
						if starts.Add(1) == 1 {
							return nil, errors.New("no majority")
						}
						return second, nil
					}}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- k.keep(ctx, first) }()
				time.Sleep(time.Minute)
				if says, _ := said(); len(says) > 0 || first.closed.Load() > 0 {
					t.Fatalf("while it was well: %v", says)
				}
				if x.fail != nil {
					first.failed <- x.fail
					synctest.Wait()
				}
				free.Store(voterRoomMin - 1)
				time.Sleep(10 * time.Minute)
				anew := errors.Is(x.fatal, errStartAnew) // only once there is room
				if x.fatal != nil && !anew {
					if err := <-done; !errors.Is(err, x.fatal) {
						t.Fatalf("it ended with %v", err)
					}
					cancel()
					return
				}
				if says, problem := said(); first.closed.Load() == 0 || starts.Load() > 0 || problem == "" {
					t.Fatalf("without room: closed %d, started %d, says %v %q", first.closed.Load(), starts.Load(), says, problem)
				}
				free.Store(voterRoomBack - 1)
				time.Sleep(10 * time.Minute)
				if starts.Load() > 0 {
					t.Fatal("it was started where it would be stopped soon")
				}
				if len(done) > 0 {
					t.Fatalf("without room it ended with %v", <-done)
				}
				free.Store(voterRoomBack)
				time.Sleep(10 * time.Minute)
				now, why := said()
				if !slices.Equal(now, x.says) {
					t.Errorf("it says %v, want %v", now, x.says)
				}
				if back := starts.Load() == 2 && why == ""; back != x.back {
					t.Errorf("it runs again: %v, want %v; started %d, problem %q", back, x.back, starts.Load(), why)
				}
				cancel()
				if err := <-done; !errors.Is(err, x.fatal) || x.fatal == nil && err != nil || anew && !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("it ended with %v", err)
				}
				if x.back && second.closed.Load() != 1 {
					t.Errorf("the second one was closed %d times", second.closed.Load())
				}
			})
		})
	}
}
