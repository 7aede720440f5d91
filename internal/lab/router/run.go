package router

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dozo/internal/lab/wan"
)

const (
	// heapMax is what control connections may leave behind before the garbage collector runs.
	heapMax = 256 << 20
	// lineMax bounds a request: all paths of the largest lab in one.
	lineMax = 1 << 20
	// priority among real-time threads; anything above 0 is above all others.
	priority = 20
)

// hardened says in the environment that the process has been started anew by Harden.
const hardened = "DOZO_LAB_ROUTER_HARDENED"

// Harden starts this process anew with real-time priority for all threads that it will have, where it is permitted,
// and with a runtime that does not interrupt them. It returns at once in the process that was started anew.
func Harden() error {
	if os.Getenv(hardened) != "" {
		return os.Unsetenv(hardened)
	}
	// Priority passes through exec and on to each new thread. Without permission the router works, less exactly.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}, 0)
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "GODEBUG=") && !strings.HasPrefix(e, "GOGC=") && !strings.HasPrefix(e, "GOMAXPROCS=") {
			env = append(env, e)
		}
	}
	// The loop holds one of the runtime's processors all the time: the others need some.
	env = append(env, hardened+"=1", "GODEBUG=asyncpreemptoff=1", "GOGC=off", "GOMAXPROCS=4")
	return fmt.Errorf("start anew: %w", syscall.Exec("/proc/self/exe", os.Args, env))
}

// server answers control connections.
type server struct {
	loop  *loop
	cfg   Config
	index map[string]int
	log   *slog.Logger
	end   context.CancelFunc
}

// Run opens the devices, listens on the socket, calls ready, and carries packets until ctx ends or a client says so.
func Run(ctx context.Context, cfg Config, socket string, log *slog.Logger, ready func()) error {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapMax)
	l, err := newLoop(cfg)
	if err != nil {
		return err
	}
	defer l.close()
	if a, err := unix.SchedGetAttr(0, 0); err == nil {
		l.counts.RealTime = a.Policy == unix.SCHED_FIFO
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{loop: l, cfg: cfg, index: map[string]int{}, log: log, end: cancel}
	for i, site := range cfg.Sites {
		s.index[site.Name] = i
	}
	if err := s.apply(0, cfg.Changes); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer ln.Close()
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	ready()
	log.Info("router runs", "sites", len(cfg.Sites), "real_time", l.counts.RealTime, "memory", len(l.pool.mem))

	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan error, 1)
	wg.Go(func() { ended <- l.run(); cancel() })
	wg.Go(func() { s.accept(ctx, ln) })
	<-ctx.Done()
	_ = ln.Close()
	l.do(func() { l.stop = true })
	return <-ended
}

func (s *server) accept(ctx context.Context, ln net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error("no more control connections", "err", err)
			}
			return
		}
		wg.Go(func() {
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			defer c.Close()
			s.serve(c)
		})
	}
}

// serve answers the requests of one connection, a line each.
func (s *server) serve(c net.Conn) {
	lines := bufio.NewScanner(c)
	lines.Buffer(nil, lineMax)
	out := json.NewEncoder(c)
	for lines.Scan() {
		resp := s.answer(lines.Bytes())
		if err := out.Encode(resp); err != nil {
			return
		}
	}
}

func (s *server) answer(line []byte) Response {
	var req Request
	if err := json.Unmarshal(line, &req); err != nil {
		return Response{Error: "request: " + err.Error()}
	}
	switch req.Op {
	case OpState:
		st := s.newState()
		if !s.loop.do(func() { s.state(st) }) {
			return Response{Error: "the router ends"}
		}
		return Response{State: st}
	case OpApply:
		var err error
		if !s.loop.do(func() { err = s.apply(s.loop.now(), req.Changes) }) {
			return Response{Error: "the router ends"}
		}
		if err != nil {
			return Response{Error: err.Error(), Setting: errors.Is(err, ErrSetting)}
		}
		return Response{}
	case OpStop:
		s.end()
		return Response{}
	}
	return Response{Error: fmt.Sprintf("no operation %q", req.Op)}
}

// apply carries out changes on the loop's thread, at one moment.
func (s *server) apply(now wan.Time, changes []Change) error {
	n := s.loop.net
	// All are checked before the first is carried out. Later ones build upon earlier ones.
	type access struct{ up, down wan.Line }
	paths, links := map[[2]int]wan.Path{}, map[int]access{}
	for _, c := range changes {
		switch c.Kind {
		case KindPath:
			from, ok := s.index[c.From]
			to, ok2 := s.index[c.To]
			if !ok || !ok2 || from == to {
				return fmt.Errorf("%w: no path from %q to %q", ErrSetting, c.From, c.To)
			}
			p, seen := paths[[2]int{from, to}]
			if !seen {
				p = n.Path(from, to)
			}
			p, err := c.Patch.path(p)
			if err != nil {
				return err
			}
			paths[[2]int{from, to}] = p
		case KindUp, KindDown:
			site, ok := s.index[c.Site]
			if !ok {
				return fmt.Errorf("%w: no site %q", ErrSetting, c.Site)
			}
			if c.Patch.pathOnly() {
				return fmt.Errorf("%w: an access link has a rate and a buffer, all else is between two sites", ErrSetting)
			}
			a, seen := links[site]
			if !seen {
				a.up, a.down = n.Access(site)
			}
			line := &a.up
			if c.Kind == KindDown {
				line = &a.down
			}
			var err error
			if *line, err = c.Patch.line(*line); err != nil {
				return err
			}
			links[site] = a
		default:
			return fmt.Errorf("%w: kind %q", ErrSetting, c.Kind)
		}
	}
	for k, p := range paths {
		n.SetPath(now, k[0], k[1], p)
	}
	for site, a := range links {
		n.SetAccess(now, site, a.up, a.down)
	}
	return nil
}

// newState makes the room for a state, so that the loop's thread does not have to.
func (s *server) newState() *State {
	n := len(s.cfg.Sites)
	return &State{PID: os.Getpid(), Paths: make([]PathState, 0, n*n), Access: make([]AccessState, 0, n)}
}

func (s *server) state(st *State) {
	l := s.loop
	st.Up = time.Duration(l.now())
	st.Counts = l.counts
	st.Counts.BlocksFree = len(l.pool.free)
	for i := range s.cfg.Sites {
		a := AccessState{Site: s.cfg.Sites[i].Name}
		a.Up, a.Down = l.net.Access(i)
		a.UpQueue, a.DownQueue = l.net.AccessStats(i)
		st.Access = append(st.Access, a)
		for j := range s.cfg.Sites {
			if i == j {
				continue
			}
			p := PathState{From: s.cfg.Sites[i].Name, To: s.cfg.Sites[j].Name, Settings: l.net.Path(i, j)}
			p.Stats, p.Queue = l.net.Stats(i, j)
			p.Buffer = p.Settings.Buffer
			if p.Buffer == 0 {
				p.Buffer = wan.AutoBuffer(p.Settings.Rate, p.Settings.Delay)
			}
			st.Paths = append(st.Paths, p)
		}
	}
}
