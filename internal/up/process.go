package up

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dozo/internal/pki"
	"dozo/internal/sysmon"
)

// instance is one process as the kernel knows it: a pid means nothing alone, as it is given out again.
type instance struct {
	pid   int
	start uint64 // clock ticks after boot, field 22 of /proc/PID/stat
	boot  string // boot ID of the kernel
}

func (i instance) String() string { return fmt.Sprintf("%d %d %s\n", i.pid, i.start, i.boot) }

func parseInstance(text string) (instance, error) {
	var i instance
	if n, err := fmt.Sscanf(text, "%d %d %s\n", &i.pid, &i.start, &i.boot); err != nil || n != 3 || i.pid <= 1 {
		return instance{}, fmt.Errorf("pid file: want pid, start time and boot ID, not %q", text)
	}
	return i, nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// startOf reads when a process started, and whether it is more than a zombie: one that nobody has reaped yet
// runs no more.
func startOf(pid int) (start uint64, running bool, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, err
	}
	return parseStat(string(text))
}

// parseStat takes /proc/PID/stat. The command's name, in parentheses, may itself have any characters: fields
// are counted from the last parenthesis.
func parseStat(text string) (start uint64, running bool, err error) {
	end := strings.LastIndexByte(text, ')')
	if end < 0 {
		return 0, false, fmt.Errorf("stat %q: no command", text)
	}
	fields := strings.Fields(text[end+1:]) // from field 3, the state
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("stat: %d fields after the command", len(fields))
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0] != "Z" && fields[0] != "X", err
}

// newInstance describes a process that runs now and is ours, so that its pid can not be given out meanwhile.
func newInstance(pid int) (instance, error) {
	boot, err := bootID()
	if err != nil {
		return instance{}, err
	}
	start, _, err := startOf(pid)
	return instance{pid: pid, start: start, boot: boot}, err
}

// alive reports whether the very process still runs.
func (i instance) alive() bool {
	boot, err := bootID()
	if err != nil || boot != i.boot {
		return false
	}
	start, running, err := startOf(i.pid)
	return err == nil && running && start == i.start
}

// signal sends a signal to the very process and to no other: the handle is taken first and the start time
// compared afterwards, so that it can not be exchanged in between.
func (i instance) signal(sig os.Signal) error {
	p, err := os.FindProcess(i.pid) // a pidfd, where the kernel has them
	if err != nil {
		return err
	}
	defer func() { _ = p.Release() }()
	if !i.alive() {
		return os.ErrProcessDone
	}
	return p.Signal(sig)
}

// running gives the process of a node if it runs.
func running(dir string, p Process) (instance, bool) {
	text, err := os.ReadFile(filepath.Join(nodeDir(dir, p.Name), pidFile))
	if err != nil {
		return instance{}, false
	}
	i, err := parseInstance(string(text))
	if err != nil || !i.alive() {
		return instance{}, false
	}
	return i, true
}

// start runs a node's process in a process group of its own, so that ctrl-C at the terminal reaches only
// the supervisor, which then stops the nodes in order. Its output goes to its log.
func (s *System) start(p Process) (*exec.Cmd, instance, error) {
	nd := nodeDir(s.dir, p.Name)
	log, err := os.OpenFile(filepath.Join(nd, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, instance{}, err
	}
	defer log.Close()
	cmd := exec.Command(s.program, p.Kind, "--config", filepath.Join(nd, configFile))
	// Earlier ones give way to later ones: whoever sets it gets what was set.
	cmd.Env = append([]string{"GOMAXPROCS=" + strconv.Itoa(threads(runtime.NumCPU(), len(s.plan)))}, os.Environ()...)
	cmd.Env = sysmon.Env(append(cmd.Env, s.env...))
	cmd.Dir = nd
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, instance{}, fmt.Errorf("start %s: %w", p.Name, err)
	}
	i, err := newInstance(cmd.Process.Pid)
	if err == nil {
		err = pki.WriteFileAtomic(filepath.Join(nd, pidFile), []byte(i.String()))
	}
	if err != nil {
		// Nobody would find it again.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, instance{}, fmt.Errorf("start %s: %w", p.Name, err)
	}
	return cmd, i, nil
}

// threads is how many processors a process of the system uses at once. All are on one machine: were each to believe
// that it has the machine for itself, their schedulers would look for work on processors that the others need.
func threads(processors, processes int) int { return max(1, processors/max(1, processes)) }

// stopPoll is how often a process that was told to end is looked at.
const stopPoll = 20 * time.Millisecond

// stop ends processes: all are asked at once, and those that have not ended after grace are killed.
func stop(procs map[string]instance, grace time.Duration, report func(name string, killed bool)) error {
	var errs []error
	left := make(map[string]instance, len(procs))
	for name, i := range procs {
		if err := i.signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("stop %s, pid %d: %w", name, i.pid, err))
		}
		// One that is stopped by a signal must run to see the other.
		_ = i.signal(syscall.SIGCONT)
		left[name] = i
	}
	killed := map[string]bool{}
	deadline := time.Now().Add(grace)
	tick := time.NewTicker(stopPoll)
	defer tick.Stop()
	for ; len(left) > 0; <-tick.C {
		for name, i := range left {
			if !i.alive() {
				delete(left, name)
				report(name, killed[name])
			}
		}
		if time.Now().Before(deadline) || len(left) == 0 {
			continue
		}
		if len(killed) > 0 {
			for name, i := range left {
				errs = append(errs, fmt.Errorf("%s, pid %d, does not end, not even when killed", name, i.pid))
			}
			return errors.Join(errs...)
		}
		for name, i := range left {
			if err := i.signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
				errs = append(errs, fmt.Errorf("kill %s, pid %d: %w", name, i.pid, err))
			}
			killed[name] = true
		}
		deadline = time.Now().Add(grace)
	}
	return errors.Join(errs...)
}

// logTailMax bounds what of a log is shown when a node does not start.
const logTailMax = 2 << 10

// logTail gives the last lines of a node's log.
func logTail(dir string, p Process) string {
	f, err := os.Open(filepath.Join(nodeDir(dir, p.Name), logFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	from := max(0, end-logTailMax)
	buf := make([]byte, end-from)
	if _, err := f.ReadAt(buf, from); err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(buf), "\n"), "\n")
	if from > 0 && len(lines) > 1 {
		lines = lines[1:] // the first is cut
	}
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// lock takes the directory's lock; ErrRunning if somebody has it. It ends with the file, so also when its
// holder is killed.
func lock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		return nil, &RunningError{Dir: dir, Supervisor: strings.TrimSpace(string(holder))}
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func writeAt(f *os.File, text string) error { _, err := f.WriteAt([]byte(text), 0); return err }

// RunningError says that the system runs already.
type RunningError struct {
	Dir        string
	Supervisor string   // pid of the dozo up that watches it; empty: there is none
	Nodes      []string // NAME (pid N)
}

func (e *RunningError) Error() string {
	nodes := strings.Join(e.Nodes, ", ")
	if e.Supervisor != "" {
		return fmt.Sprintf("the system in %s is looked after by dozo up, pid %s; running: %s. To start its dead nodes again: kill -HUP %s", e.Dir, e.Supervisor, nodes, e.Supervisor)
	}
	return fmt.Sprintf("the system in %s runs already: %s; dozo down stops it", e.Dir, nodes)
}

// removePid forgets a process that has ended.
func removePid(dir string, p Process) error {
	err := os.Remove(filepath.Join(nodeDir(dir, p.Name), pidFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
