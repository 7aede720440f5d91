package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"dozo/internal/api/view"
	"dozo/internal/pki"
)

// How long things may take. Ready in under 10 s is the aim; a machine that is busy with other things is given
// more before it counts as failed.
const (
	readyTimeout = 90 * time.Second
	readyPoll    = 50 * time.Millisecond
	// StopGrace is how long a node may take to end before it is killed: what it gives itself to drain, and some.
	StopGrace = 25 * time.Second
)

// Options say what to start.
type Options struct {
	Dir  string
	Wish Wish
	// Program is the dozo that runs the nodes; empty: this one.
	Program string
	// Env is added to the nodes' environment.
	Env []string
	// Out gets the table and what happens afterwards.
	Out io.Writer
	// Command is how this program is called, for the commands that are proposed.
	Command string
	// Timeout until all nodes are ready; 0: 90 s.
	Timeout time.Duration
	// Served is how long to wait after that for volumes with data to be served; 0: 15 s.
	Served time.Duration
}

// member is a process of the system that runs.
type member struct {
	proc Process
	inst instance
	// cmd is our child; nil: it was running already.
	cmd *exec.Cmd
}

// System is a system that was started. It holds the directory's lock until Release or Follow ends.
type System struct {
	dir     string
	program string
	env     []string
	out     io.Writer
	command string
	timeout time.Duration
	served  time.Duration

	rec     record
	plan    []Process
	ca      *pki.CA
	lock    *os.File
	members map[string]*member // by name
}

// Start makes or completes the system in the directory, starts every process of it that does not run, and
// returns when all are ready. If one fails, those that this call has started are stopped again. A
// RunningError says that there is nothing to start, or that another dozo up looks after the directory.
func Start(ctx context.Context, o Options) (_ *System, err error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &System{dir: dir, program: o.Program, env: o.Env, out: o.Out, command: o.Command, timeout: o.Timeout, served: o.Served, members: map[string]*member{}}
	if s.program == "" {
		if s.program, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	if s.out == nil {
		s.out = io.Discard
	}
	if s.timeout == 0 {
		s.timeout = readyTimeout
	}
	if s.served == 0 {
		s.served = servedTimeout
	}
	// A newer directory is refused before anything in it is touched, and a wish that can not be before there is one.
	if _, err := loadRecord(dir); errors.Is(err, ErrNoSystem) {
		// Nor is a shape put down for ever that this machine has no ports for: another one may be wished next.
		plan, err := Plan(o.Wish.shape())
		if err != nil {
			return nil, err
		}
		if err := portsFree(plan); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if s.lock, err = lock(dir); err != nil {
		if re, ok := errors.AsType[*RunningError](err); ok {
			re.Nodes = runningNames(dir)
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Release()
		}
	}()
	if s.rec, s.plan, s.ca, err = prepare(dir, o.Wish, time.Now()); err != nil {
		return nil, err
	}
	var gone []Process
	if s.plan, gone, err = staying(dir, s.plan); err != nil {
		return nil, err
	}
	for _, p := range gone {
		fmt.Fprintf(s.out, "%s was taken out of the cluster, and is not started\n", p.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	started, err := s.startMissing()
	if err == nil {
		if len(started) == 0 {
			return nil, &RunningError{Dir: dir, Nodes: s.names()}
		}
		err = s.ready(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.stop(started))
	}
	return s, nil
}

// startMissing starts what does not run, and notes what does. It returns those that it started, also with an
// error.
func (s *System) startMissing() ([]*member, error) {
	var missing []Process
	for _, p := range s.plan {
		if i, ok := running(s.dir, p); ok {
			if m := s.members[string(p.Name)]; m == nil || m.inst != i {
				s.members[string(p.Name)] = &member{proc: p, inst: i}
			}
			continue
		}
		missing = append(missing, p)
	}
	if err := portsFree(missing); err != nil {
		return nil, err
	}
	var started []*member
	for _, p := range missing {
		cmd, i, err := s.start(p)
		if err != nil {
			return started, err
		}
		m := &member{proc: p, inst: i, cmd: cmd}
		s.members[string(p.Name)] = m
		started = append(started, m)
	}
	return started, nil
}

// ready waits until all nodes are, and then makes what clients need.
func (s *System) ready(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, m := range s.members {
		g.Go(func() error { return s.waitReady(gctx, m) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.ensureToken(ctx); err != nil {
		return fmt.Errorf("make an API token: %w", err)
	}
	if err := writeContext(s.dir, s.plan); err != nil {
		return err
	}
	missing, err := s.waitServed(ctx)
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if err != nil {
		// The nodes are up, and the operator can ask them: that is no reason to stop them again.
		fmt.Fprintf(s.out, "whether the volumes are served can not be asked: %v\n", err)
	}
	if n := len(missing); n > 0 {
		list := strings.Join(missing[:min(n, 5)], ", ")
		if n > 5 {
			list += ", ..."
		}
		fmt.Fprintf(s.out, "volumes that are not served yet: %s (%d); see dozo status\n", list, n)
	}
	return nil
}

// stop ends members and reaps those that are our children.
func (s *System) stop(members []*member) error {
	procs := map[string]instance{}
	for _, m := range members {
		procs[string(m.proc.Name)] = m.inst
	}
	err := stop(procs, StopGrace, func(string, bool) {})
	for _, m := range members {
		if m.inst.alive() {
			continue
		}
		if m.cmd != nil {
			_ = m.cmd.Wait() // how it ended was asked for by us
		}
		err = errors.Join(err, removePid(s.dir, m.proc))
		delete(s.members, string(m.proc.Name))
	}
	return err
}

// Release gives the lock back and leaves the nodes running.
func (s *System) Release() {
	if s.lock != nil {
		_ = s.lock.Close()
		s.lock = nil
	}
}

// watchPoll is how often the supervisor looks whether its nodes run. Not all are its children, so there is
// nothing that it could wait for.
const watchPoll = 200 * time.Millisecond

// Follow reports nodes that end, until ctx ends: then it stops all. What has ended stays so until restart
// gets a value, or dozo up is run again. It returns when nothing runs any more.
func (s *System) Follow(ctx context.Context, restart <-chan os.Signal) error {
	defer s.Release()
	tick := time.NewTicker(watchPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			fmt.Fprintln(s.out, "stopping")
			return s.stop(s.all())
		case <-restart:
			s.restart(ctx)
		case <-tick.C:
		}
		for name, m := range s.members {
			if m.inst.alive() {
				continue
			}
			how := "ended"
			if m.cmd != nil {
				_ = m.cmd.Wait()
				how = "ended: " + m.cmd.ProcessState.String()
			}
			delete(s.members, name)
			fmt.Fprintf(s.out, "%s (pid %d) %s; log: %s; to start it again: kill -HUP %d\n", name, m.inst.pid, how, filepath.Join(nodeDir(s.dir, m.proc.Name), logFile), os.Getpid())
		}
		if len(s.members) == 0 {
			fmt.Fprintln(s.out, "no node runs any more")
			return nil
		}
	}
}

// restart starts what has ended. Nodes that do not become ready are left as they are, for the operator to look
// at.
func (s *System) restart(ctx context.Context) {
	started, err := s.startMissing()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, s.timeout)
		defer cancel()
		err = s.ready(ctx)
	}
	if err != nil {
		fmt.Fprintf(s.out, "start again: %v\n", err)
		return
	}
	for _, m := range started {
		fmt.Fprintf(s.out, "%s runs again (pid %d)\n", m.proc.Name, m.inst.pid)
	}
}

// all gives the members in the plan's order.
func (s *System) all() []*member {
	var out []*member
	for _, p := range s.plan {
		if m := s.members[string(p.Name)]; m != nil {
			out = append(out, m)
		}
	}
	return out
}

func (s *System) names() []string {
	var out []string
	for _, m := range s.all() {
		out = append(out, named(m.proc, m.inst))
	}
	return out
}

func named(p Process, i instance) string { return fmt.Sprintf("%s (pid %d)", p.Name, i.pid) }

// runningNames lists what runs in a directory that somebody else may be working on.
func runningNames(dir string) []string {
	r, err := loadRecord(dir)
	if err != nil {
		return nil
	}
	plan, err := Plan(r.Shape)
	if err != nil {
		return nil
	}
	var out []string
	for _, p := range plan {
		if i, ok := running(dir, p); ok {
			out = append(out, named(p, i))
		}
	}
	return out
}

// Print writes the table of what runs, and what to try next.
func (s *System) Print() error {
	g := view.NewGrid("SITE", "NODE", "ROLES", "ISCSI", "API", "PID", "STARTED")
	for _, m := range s.all() {
		p := m.proc
		iscsi, roles, started := "", "", "now"
		for i, r := range p.roles() {
			if i > 0 {
				roles += ","
			}
			roles += string(r)
		}
		if p.Kind == kindServe {
			iscsi = p.Addr.String() + ":3260"
		}
		if m.cmd == nil {
			started = "before"
		}
		g.Row(p.Site, string(p.Name), roles, iscsi, apiURL(p), strconv.Itoa(m.inst.pid), started)
	}
	if err := g.Write(s.out); err != nil {
		return err
	}
	cmd := s.command
	if cmd == "" {
		cmd = "dozo"
	}
	_, err := fmt.Fprintf(s.out, `
Data, keys and logs are in %s. Next, try:

  %[2]s volume create disk1 10G%[3]s
  %[2]s volume targets disk1%[3]s
  %[2]s status%[3]s
`, s.dir, cmd, s.dirFlag())
	return err
}

// dirFlag is what a command needs to find this system.
func (s *System) dirFlag() string {
	if def, err := filepath.Abs(defaultDir); err == nil && def == s.dir {
		return ""
	}
	return " --dir " + s.dir
}

// Down stops every process of the system in dir. It is no error if none runs.
func Down(dir string, out io.Writer) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	r, err := loadRecord(dir)
	if err != nil {
		return err
	}
	plan, err := Plan(r.Shape)
	if err != nil {
		return err
	}
	procs := map[string]instance{}
	for _, p := range plan {
		if i, ok := running(dir, p); ok {
			procs[string(p.Name)] = i
		}
	}
	if len(procs) == 0 {
		fmt.Fprintf(out, "nothing runs in %s\n", dir)
	}
	err = stop(procs, StopGrace, func(name string, killed bool) {
		how := "stopped"
		if killed {
			how = "did not end in time and was killed"
		}
		fmt.Fprintf(out, "%s (pid %d) %s\n", name, procs[name].pid, how)
	})
	for _, p := range plan {
		if _, ok := running(dir, p); ok {
			continue
		}
		if rerr := removePid(dir, p); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
