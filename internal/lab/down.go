package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Grace is how long processes in the sites may take to end before they are killed: what a node gives itself to
	// drain, and some.
	Grace = 25 * time.Second
	// killWait is how long a killed process may take to be gone: it may sit in a disk's queue.
	killWait = 10 * time.Second
	stopPoll = 10 * time.Millisecond
)

// Process is a process that belongs to a lab.
type Process struct {
	PID  int    `json:"pid"`
	Site string `json:"site,omitempty"` // empty: the router
	Name string `json:"name"`
}

// remains are what of a lab exists.
type remains struct {
	netns  []string // names
	procs  []Process
	router []Process
	state  bool
}

func (r remains) any() bool { return len(r.netns)+len(r.procs)+len(r.router) > 0 || r.state }

func (r remains) String() string {
	return fmt.Sprintf("%d namespaces, %d processes in them, %d routers", len(r.netns), len(r.procs), len(r.router))
}

// find looks for everything that belongs to a lab.
func find(name string) (remains, error) {
	var r remains
	entries, err := os.ReadDir(netnsRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	inodes := map[string]string{} // "net:[N]" -> site
	for _, e := range entries {
		site, ok := strings.CutPrefix(e.Name(), netnsPrefix(name))
		if !ok {
			continue
		}
		r.netns = append(r.netns, e.Name())
		var st unix.Stat_t
		if unix.Stat(filepath.Join(netnsRoot, e.Name()), &st) == nil {
			inodes[fmt.Sprintf("net:[%d]", st.Ino)] = site
		}
	}
	_, err = os.Stat(stateDir(name))
	r.state = err == nil
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return r, err
	}
	for _, e := range procs {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if link, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net")); err == nil {
			if site, ok := inodes[link]; ok {
				comm, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
				r.procs = append(r.procs, Process{PID: pid, Site: site, Name: strings.TrimSpace(string(comm))})
				continue
			}
		}
		if isRouter(pid, name) {
			r.router = append(r.router, Process{PID: pid, Name: "router"})
		}
	}
	return r, nil
}

// isRouter reports that a process is the lab's router: its command line ends so, and no other command's does.
func isRouter(pid int, name string) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return false
	}
	args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	return len(args) >= 5 && slices.Equal(args[len(args)-4:], []string{"lab", "router", "--name", name})
}

// Down ends every process in the lab's sites, then its router, and removes all that belongs to it, from whatever
// state it is in. It is ErrNoLab if there is nothing.
func Down(name string, grace time.Duration, out io.Writer) error {
	if err := needRoot(); err != nil {
		return err
	}
	if !nameForm.MatchString(name) {
		return fmt.Errorf("lab %q: %w", name, ErrNoLab)
	}
	lock, err := lockLab(name)
	if err != nil {
		return err
	}
	defer lock.Close()
	left, err := find(name)
	if err != nil {
		return err
	}
	if !left.any() {
		return fmt.Errorf("lab %s: %w", name, ErrNoLab)
	}
	return remove(name, grace, out)
}

func remove(name string, grace time.Duration, out io.Writer) error {
	// Nodes drain while they still reach each other; whoever starts processes meanwhile is caught by the
	// second look.
	var errs []error
	for _, step := range []struct {
		grace  time.Duration
		router bool
	}{{grace, false}, {0, false}, {grace, true}} {
		left, err := find(name)
		if err != nil {
			return err
		}
		procs := left.procs
		if step.router {
			procs = left.router
		}
		errs = append(errs, end(procs, step.grace, out))
	}
	left, err := find(name)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, ns := range left.netns {
		path := netnsPath(ns)
		// EINVAL: nothing is mounted there, as after a crash between making the file and mounting.
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
			continue
		}
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(append(errs, os.RemoveAll(stateDir(name)))...)
}

// end asks processes to end, and kills those that have not after grace; 0: at once. A pid is held by a handle while it
// is looked at, so that a new process of that number is left alone.
func end(procs []Process, grace time.Duration, out io.Writer) error {
	type held struct {
		Process
		fd int
	}
	var left []held
	for _, p := range procs {
		fd, err := unix.PidfdOpen(p.PID, 0)
		if err != nil {
			continue // gone
		}
		defer unix.Close(fd)
		left = append(left, held{p, fd})
	}
	signal := unix.SIGTERM
	if grace == 0 {
		signal = unix.SIGKILL
	}
	for {
		for _, h := range left {
			_ = unix.PidfdSendSignal(h.fd, signal, nil, 0)
			_ = unix.PidfdSendSignal(h.fd, unix.SIGCONT, nil, 0)
		}
		deadline := time.Now().Add(grace)
		if signal == unix.SIGKILL {
			deadline = time.Now().Add(killWait)
		}
		for len(left) > 0 && time.Now().Before(deadline) {
			left = slices.DeleteFunc(left, func(h held) bool {
				// A handle can be read once the process has ended, reaped or not.
				poll := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
				n, err := unix.Poll(poll, 0)
				return err == nil && n == 1
			})
			if len(left) > 0 {
				time.Sleep(stopPoll)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if signal == unix.SIGKILL {
			return fmt.Errorf("%s, pid %d, does not end, not even when killed", left[0].Name, left[0].PID)
		}
		for _, h := range left {
			fmt.Fprintf(out, "%s (pid %d) did not end in time and is killed\n", h.Name, h.PID)
		}
		signal = unix.SIGKILL
	}
}
