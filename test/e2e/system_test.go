//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// dozoBin is the program under test.
var dozoBin string

func TestMain(m *testing.M) {
	dozoBin = os.Getenv("DOZO_BIN")
	if dozoBin == "" {
		dir, err := os.MkdirTemp("", "dozo-bin")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		dozoBin = filepath.Join(dir, "dozo")
		if out, err := exec.Command("go", "build", "-o", dozoBin, "dozo/cmd/dozo").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			os.Exit(1)
		}
		code := m.Run()
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func long() bool { return os.Getenv("E2E_LONG") != "" }

// need fails the test if a command is missing: whoever asked for these tests wants them run.
func need(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if _, err := exec.LookPath(c); err != nil {
			t.Fatalf("%v; test/deps.sh installs what the tests need", err)
		}
	}
}

// system is one dozo up.
type system struct {
	t            *testing.T
	dir          string
	net          int
	sites, nodes int
	lock         net.Listener
}

// node is an element of `dozo node list -o json`.
type node struct {
	Name    string `json:"name"`
	Site    string `json:"site"`
	Address string `json:"address"`
	PID     int    `json:"pid"`
	State   string `json:"state"`
}

// reserveNet finds a 127.N.0.0/16 that nobody uses, and holds it by a listener, which the kernel closes with us.
func reserveNet(t *testing.T) (int, net.Listener) {
	t.Helper()
	for n := 100 + os.Getpid()%100; n < 254; n++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.%d.0.250:7999", n))
		if err != nil {
			continue
		}
		if probe, err := net.Listen("tcp", fmt.Sprintf("127.%d.1.1:7070", n)); err == nil {
			probe.Close()
			return n, l
		}
		l.Close()
	}
	t.Fatal("no free 127.N.0.0/16")
	return 0, nil
}

// start makes a system and waits until it is ready.
func start(t *testing.T, sites, nodes int, flags ...string) *system {
	t.Helper()
	base := os.Getenv("E2E_DIR")
	dir, err := os.MkdirTemp(base, "sys")
	if err != nil {
		t.Fatal(err)
	}
	s := &system{t: t, dir: dir, sites: sites, nodes: nodes}
	s.net, s.lock = reserveNet(t)
	t.Cleanup(s.end)
	args := append([]string{"up", "--detach", "--dir", dir, "--net", strconv.Itoa(s.net), "--sites", strconv.Itoa(sites), "--nodes", strconv.Itoa(nodes)}, flags...)
	begun := time.Now()
	s.must(exec.Command(dozoBin, args...))
	t.Logf("%d sites of %d nodes at 127.%d.0.0/16 in %s were ready after %v", sites, nodes, s.net, dir, time.Since(begun).Round(time.Millisecond))
	return s
}

// end stops every process by the pid files, however the test ended, and shows logs if it failed.
func (s *system) end() {
	if s.t.Failed() {
		s.logs(8)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, dozoBin, "down", "--dir", s.dir).CombinedOutput(); err != nil {
		s.t.Errorf("dozo down: %v\n%s", err, out)
		for _, name := range s.names() {
			s.kill(name)
		}
	}
	s.lock.Close()
	if os.Getenv("E2E_KEEP") == "" {
		if err := os.RemoveAll(s.dir); err != nil {
			s.t.Error(err)
		}
	}
}

// logs shows the end of each node's log.
func (s *system) logs(lines int) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "nodes", "*", "log"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		all := strings.Split(strings.TrimSpace(string(text)), "\n")
		// What somebody should look at, from anywhere in the log, and its end.
		end := max(0, len(all)-lines)
		var show []string
		for _, l := range all[:end] {
			if strings.Contains(l, "level=WARN") || strings.Contains(l, "level=ERROR") || !strings.HasPrefix(l, "time=") {
				show = append(show, l)
			}
		}
		show = append(show[max(0, len(show)-10*lines):], all[end:]...)
		s.t.Logf("%s: warnings and end:\n%s", f, strings.Join(show, "\n"))
	}
}

// names lists the processes: sites' nodes and witness.
func (s *system) names() []string {
	dirs, _ := filepath.Glob(filepath.Join(s.dir, "nodes", "*"))
	for i := range dirs {
		dirs[i] = filepath.Base(dirs[i])
	}
	return dirs
}

func (s *system) addr(site, n int) string { return fmt.Sprintf("127.%d.%d.%d", s.net, site, n) }

// must runs a command, fails the test if it fails, and gives its standard output.
func (s *system) must(c *exec.Cmd) string {
	s.t.Helper()
	out, err := run(c)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// run runs a command; the error has its standard error and, if that is short, its output.
func run(c *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		tail := out.String()
		tail = tail[max(0, len(tail)-2000):]
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(c.Args, " "), err, errs.String(), tail)
	}
	return out.String(), nil
}

// Exit codes of the program that tests look at.
const (
	exitConflict    = 4
	exitUnreachable = 5 // it can not be answered now: ask again
)

func exitCode(err error) int {
	if x, ok := errors.AsType[*exec.ExitError](err); ok {
		return x.ExitCode()
	}
	return -1
}

// answered does what asks the cluster again while it can not answer now, as it says itself: on a machine that stalls, the
// control store may be without a leader for moments. Each time is in the test's log.
func (s *system) answered(do func() error) {
	s.t.Helper()
	for deadline := time.Now().Add(slow * 20 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		err := do()
		if err == nil {
			return
		}
		if exitCode(err) != exitUnreachable || time.Now().After(deadline) {
			s.t.Fatal(err)
		}
		s.t.Logf("again: %v", err)
	}
}

// dozo runs a command of the program on this system. What was made although the answer was that it could not be is made.
func (s *system) dozo(args ...string) (out string) {
	s.t.Helper()
	tried := false
	s.answered(func() (err error) {
		out, err = run(exec.Command(dozoBin, append(args, "--dir", s.dir)...))
		if tried && exitCode(err) == exitConflict && slices.Contains(args, "create") {
			err = nil
		}
		tried = true
		return err
	})
	return out
}

// creates tries to make a volume, for until: one that was made although the last answer was that it could not be counts.
func (s *system) creates(name string) func() (bool, string) {
	tried := false
	return func() (bool, string) {
		_, err := run(exec.Command(dozoBin, "volume", "create", name, "1G", "--dir", s.dir))
		made := err == nil || tried && exitCode(err) == exitConflict
		tried = true
		return made, fmt.Sprint(err)
	}
}

// ask runs a command with -o json at one node, by its socket, or by the system's endpoints if node is empty.
func (s *system) ask(node string, into any, args ...string) {
	s.t.Helper()
	s.answered(func() error { return s.tryAsk(node, into, args...) })
}

func (s *system) tryAsk(node string, into any, args ...string) error {
	at := []string{"--dir", s.dir}
	if node != "" {
		at = []string{"--endpoint", "unix://" + filepath.Join(s.dir, "nodes", node, "api.sock")}
	}
	out, err := run(exec.Command(dozoBin, append(append(args, "-o", "json"), at...)...))
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("%s: %w in:\n%.2000s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (s *system) nodeList() []node {
	s.t.Helper()
	var list []node
	s.ask("", &list, "node", "list")
	return list
}

// pid is the process of a node by its pid file, 0 if it does not run.
func (s *system) pid(name string) int {
	text, err := os.ReadFile(filepath.Join(s.dir, "nodes", name, "pid"))
	if err != nil {
		return 0
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil || !alive(pid) {
		return 0
	}
	// The pid may have been given to somebody else since.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(cmdline, []byte(s.dir+"/")) {
		return 0
	}
	return pid
}

// alive says whether a process runs. A zombie does not, unless threads of it are still on their way out: they hold
// its sockets.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	if !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X") {
		return true
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && len(threads) > 1
}

// kill ends nodes by SIGKILL and waits until they are gone.
func (s *system) kill(names ...string) {
	s.t.Helper()
	pids := make([]int, len(names))
	for i, name := range names {
		if pids[i] = s.pid(name); pids[i] != 0 {
			if err := syscall.Kill(pids[i], syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				s.t.Errorf("kill %s: %v", name, err)
			}
		}
	}
	for i, pid := range pids {
		for deadline := time.Now().Add(slow * 10 * time.Second); pid != 0 && alive(pid); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				s.t.Fatalf("%s, pid %d, survives SIGKILL", names[i], pid)
			}
		}
	}
}

// up starts what does not run.
func (s *system) up() {
	s.t.Helper()
	s.dozo("up", "--detach")
}

// create makes a volume, waits until somebody owns it, and gives its IQN.
func (s *system) create(name, size string, flags ...string) string {
	s.t.Helper()
	s.dozo(append([]string{"volume", "create", name, size, "--at", "site-1"}, flags...)...)
	var v volumeShow
	until(s.t, name+" has an owner", 20*time.Second, func() (bool, string) {
		v = s.show(name)
		return v.Volume.Owner != "", ""
	})
	return v.Volume.IQN
}

func (s *system) url(site, n int, iqn string) string {
	return fmt.Sprintf("iscsi://%s:3260/%s/0", s.addr(site, n), iqn)
}

// volumeShow is what `dozo volume show -o json` prints, as far as the tests look.
type volumeShow struct {
	Volume struct {
		IQN       string `json:"iqn"`
		SizeBytes uint64 `json:"size_bytes"`
		Owner     string `json:"owner"`
		State     string `json:"state"`
	} `json:"volume"`
	Placement struct {
		Commit *struct {
			Seq uint64 `json:"seq"`
		} `json:"commit"`
		Copies []struct {
			Site      string `json:"site"`
			State     string `json:"state"`
			Watermark uint64 `json:"watermark_seq"`
		} `json:"copies"`
		Degraded     uint64 `json:"segments_degraded"`
		SiteReplicas []struct {
			Site     string `json:"site"`
			Segments uint64 `json:"segments"`
			Replicas uint64 `json:"replicas"`
		} `json:"site_replicas"`
		Ensembles []struct {
			Number uint32 `json:"number"`
		} `json:"ensembles"`
		Segments []segment `json:"segments"`
		Unheard  []string  `json:"unheard"`
	} `json:"placement"`
}

type segment struct {
	ID       string    `json:"id"`
	Kind     string    `json:"kind"`
	State    string    `json:"state"`
	FirstSeq uint64    `json:"first_seq"`
	LastSeq  uint64    `json:"last_seq"`
	Replicas []replica `json:"replicas"`
}

type replica struct {
	Store struct {
		ID   string `json:"id"`
		Node string `json:"node"`
		Site string `json:"site"`
	} `json:"store"`
	State   string `json:"state"`
	LastSeq uint64 `json:"last_seq"`
	Path    string `json:"path"`
}

func (s *system) show(name string) volumeShow {
	s.t.Helper()
	var v volumeShow
	s.ask("", &v, "volume", "show", name)
	return v
}

// slow is how many times as long as a quiet machine a loaded one may take for anything.
const slow = 6

// until asks again and again until something holds; it fails the test after a time that only a broken system needs: within
// is ample for a quiet machine.
func until(t *testing.T, what string, within time.Duration, holds func() (bool, string)) {
	t.Helper()
	within *= slow
	for deadline := time.Now().Add(within); ; time.Sleep(200 * time.Millisecond) {
		ok, why := holds()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v: %s", what, within, why)
		}
	}
}

// background runs a command beside the test; wait gives its output and error. It is killed with the test.
type background struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
	err  error
	once sync.Once
}

func (s *system) background(c *exec.Cmd) *background {
	s.t.Helper()
	b := &background{cmd: c, done: make(chan struct{})}
	c.Stdout, c.Stderr = &b.out, &b.out
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		b.err = c.Wait()
		close(b.done)
	}()
	s.t.Cleanup(func() { b.stop(os.Kill) })
	return b
}

func (b *background) running() bool {
	select {
	case <-b.done:
		return false
	default:
		return true
	}
}

func (b *background) wait(t *testing.T, within time.Duration) string {
	t.Helper()
	select {
	case <-b.done:
	case <-time.After(slow * within):
		t.Fatalf("%s: still running after %v", strings.Join(b.cmd.Args, " "), slow*within)
	}
	if b.err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(b.cmd.Args, " "), b.err, b.out.String())
	}
	return b.out.String()
}

// stop sends a signal, once, and waits.
func (b *background) stop(sig os.Signal) {
	b.once.Do(func() {
		if b.running() {
			_ = b.cmd.Process.Signal(sig)
		}
	})
	<-b.done
}
