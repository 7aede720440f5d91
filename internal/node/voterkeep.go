package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"dozo/internal/control"
)

// A voter of the control store can not go on without room on its disk, and what it was in the middle of then may never end,
// locks held, until the process does. So it is stopped in order before there is none, and started again once there is:
//
//	runs ──short of room──> paused ──room──> starts ──> runs
//	runs ──no room all the same──> died ──did all of it end?──> as if paused
//	                                 └── it did not, or died of something else: until the node is started again
//
// A voter that is stopped is to the others what one is whose process was stopped: it has promised nothing that it does not
// keep, and goes on from its directory.

const (
	voterRoomMin  = 24 << 20 // below it is stopped: its database grows by up to 16 MiB at once
	voterRoomBack = 96 << 20 // started again from here on: a file of its log is 64 MB
	voterGlance   = 5 * time.Second
	voterAgainMin = 10 * time.Second // between two attempts to start it; doubles
	voterAgainMax = 5 * time.Minute
	voterStarting = time.Minute // an attempt that has no majority by then is given up
)

// runningVoter is control.Embedded, as far as it is looked after.
type runningVoter interface {
	Failed() <-chan error
	Close() error
	Ended() bool
}

// voterKeeper looks after the voter that runs in this process.
type voterKeeper struct {
	start func(context.Context) (runningVoter, error)
	free  func() (uint64, error) // bytes on its disk
	// lives says that the node has more to do than to vote, so that it goes on without a voter that has died.
	lives bool
	// say tells people: action is what has happened (control.voter-...), problem why the voter does not run, empty if it does.
	say func(action, problem string, err error)
}

var errVoterRoom = fmt.Errorf("fewer than %d MiB are free on its disk", voterRoomMin>>20)

// keep returns when ctx ends, or with what the whole process has to end by. It closes the voter that runs then.
func (k *voterKeeper) keep(ctx context.Context, v runningVoter) error {
	for {
		err := k.attend(ctx, v)
		_ = v.Close() // its listeners too, so that nobody waits for its answers
		room := errors.Is(err, errVoterRoom)
		switch {
		case ctx.Err() != nil:
			return nil
		case room:
			k.say("control.voter-paused", "it is stopped until there is room: "+err.Error(), err)
		case !errors.Is(err, control.ErrVoterDied) || !k.lives:
			return err
		case !v.Ended() || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT):
			k.say("control.voter-died", "it has died: start the node again once its disk is well: "+err.Error(), err)
			<-ctx.Done()
			return nil
		default:
			k.say("control.voter-died", "it has died, and comes back when there is room: "+err.Error(), err)
		}
		if v = k.revive(ctx); v == nil {
			return nil
		}
		k.say("control.voter-back", "", nil)
	}
}

// attend waits until the voter can not go on, or should not.
func (k *voterKeeper) attend(ctx context.Context, v runningVoter) error {
	t := time.NewTicker(voterGlance)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-v.Failed():
			return err
		case <-t.C:
		}
		if free, err := k.free(); err == nil && free < voterRoomMin {
			return errVoterRoom
		}
	}
}

// revive starts the voter again once there is room; nil if ctx ended.
func (k *voterKeeper) revive(ctx context.Context) runningVoter {
	pause := voterAgainMin
	for {
		// Voters that share a disk do not start in the same moment.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause/2 + rand.N(pause)):
		}
		if free, err := k.free(); err != nil || free < voterRoomBack {
			continue // cheap to ask
		}
		sctx, cancel := context.WithTimeout(ctx, voterStarting)
		v, err := k.start(sctx)
		cancel()
		if err == nil && ctx.Err() == nil {
			return v
		}
		if err == nil {
			_ = v.Close()
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		k.say("control.voter-waits", "it could not be started again yet: "+err.Error(), err)
		pause = min(2*pause, voterAgainMax)
	}
}
