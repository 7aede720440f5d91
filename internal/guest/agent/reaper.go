package agent

import (
	"errors"
	"os/exec"
	"sync"
	"syscall"
)

// reaper starts processes and tells how they ended. As process 1 it waits for whatever ends, so that orphans do not
// stay; then nobody else may wait for a process.
type reaper struct {
	all bool
	mu  sync.Mutex // held across starting one, so that its end can not be seen before it is in waiting
	// waiting has a channel for each process that runs; it takes one status.
	waiting map[int]chan syscall.WaitStatus
	started chan struct{} // room for one: there is a child again
	once    sync.Once
}

func newReaper(all bool) *reaper {
	return &reaper{all: all, waiting: map[int]chan syscall.WaitStatus{}, started: make(chan struct{}, 1)}
}

func (r *reaper) start(cmd *exec.Cmd) (int, <-chan syscall.WaitStatus, error) {
	ended := make(chan syscall.WaitStatus, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	pid := cmd.Process.Pid
	if !r.all {
		go func() { ended <- wait(pid) }()
		return pid, ended, cmd.Process.Release()
	}
	r.waiting[pid] = ended
	select {
	case r.started <- struct{}{}:
	default:
	}
	// Process 1 never ends, and neither does this.
	r.once.Do(func() { go r.run() })
	return pid, ended, cmd.Process.Release()
}

// wait waits for one child.
func wait(pid int) syscall.WaitStatus {
	var st syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &st, 0, nil); !errors.Is(err, syscall.EINTR) {
			return st
		}
	}
}

func (r *reaper) run() {
	for {
		var st syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &st, 0, nil)
		if errors.Is(err, syscall.ECHILD) {
			// Nothing can be orphaned before something is started.
			<-r.started
			continue
		}
		if err != nil {
			continue
		}
		r.mu.Lock()
		if ended := r.waiting[pid]; ended != nil {
			ended <- st
			delete(r.waiting, pid)
		}
		r.mu.Unlock()
	}
}
