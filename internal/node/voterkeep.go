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
//	runs ──no room all the same──> died ──all of it ended──> as if paused
//	                                 ├── some of it did not ──room──> the process starts anew
//	                                 └── it died of something else: until somebody starts the node again
//
// What is left of a voter in the process must never vote beside the one that comes after it, and nothing in the process can end
// it. So the process takes itself out of the way: it ends in order, and executes its program again. To everybody else that is a
// node that was restarted.
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
	// times is how often in a row the process was started anew for its voter's sake.
	times int
	// say tells people: action is what has happened (control.voter-...), problem why the voter does not run, empty if it does.
	say func(action, problem string, err error)
}

// errStartAnew is what a process ends by whose voter has died and can only come back in a new one.
var errStartAnew = errors.New("the voter comes back in a new process")

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
		case !errors.Is(err, control.ErrVoterDied) || !k.lives && !diskFull(err):
			return err
		case !diskFull(err):
			k.say("control.voter-died", "it has died: start the node again once its disk is well: "+err.Error(), err)
			<-ctx.Done()
			return nil
		case !v.Ended():
			k.say("control.voter-died", "it has died, and its node starts anew when there is room: "+err.Error(), err)
			return k.anew(ctx, err)
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
	for k.room(ctx, pause) {
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
	return nil
}

// anew is what the process ends by once there is room, if a voter that died of err can only come back in a new one. It waits for
// longer each time in a row.
func (k *voterKeeper) anew(ctx context.Context, err error) error {
	if !k.room(ctx, min(voterAgainMin<<min(k.times, 8), voterAgainMax)) {
		return nil
	}
	return fmt.Errorf("%w: %w", errStartAnew, err)
}

// room waits for about as long as pause, and until there is room on the disk; false if ctx ended.
func (k *voterKeeper) room(ctx context.Context, pause time.Duration) bool {
	for {
		// Voters that share a disk do not start in the same moment.
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause/2 + rand.N(pause)):
		}
		if free, err := k.free(); err == nil && free >= voterRoomBack { // cheap to ask
			return true
		}
	}
}

// diskFull reports that a voter died because there was no room.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
