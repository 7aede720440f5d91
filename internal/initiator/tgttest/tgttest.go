// Package tgttest runs tgt, the target that Debian packages, for tests that need somebody else's reading of the
// standard. A machine without tgtd fails such a test: whoever asked for it with the e2e tag wants it run.
//
// Start at Start; the target lives as long as the test.
package tgttest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Target is a running tgtd with one target, whose LUN 1 is a file.
type Target struct {
	Portal string // host:port
	Target string
	PID    int
	File   string
	ctl    string
	cmd    *exec.Cmd
}

// startTimeout is for a loaded machine; tgtd needs some milliseconds.
const startTimeout = 2 * time.Minute

// Start runs tgtd with a LUN of size bytes and its write cache on.
func Start(t testing.TB, size int64) *Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	// The control number names a socket in /var/run/tgtd; the port is as unique as anything.
	x := &Target{
		Portal: fmt.Sprintf("127.0.0.1:%d", port), Target: "iqn.2026-01.dozo:tgt",
		File: filepath.Join(t.TempDir(), "lun1"), ctl: strconv.Itoa(port % 32768),
	}
	f, err := os.Create(x.File)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	x.run(t)
	t.Cleanup(func() {
		x.kill()
		os.Remove("/var/run/tgtd/socket." + x.ctl)
		os.Remove("/var/run/tgtd/socket." + x.ctl + ".lock")
	})
	return x
}

// Restart kills tgtd, as a crash does, and starts it again on the same file and port. It is called from one goroutine
// at a time; a failure is an error of the test, so that it may be another than the test's own.
func (x *Target) Restart(t testing.TB) {
	t.Helper()
	x.kill()
	x.run(t)
}

func (x *Target) kill() {
	_ = x.cmd.Process.Kill()
	_ = x.cmd.Wait() // ends by the signal
}

func (x *Target) run(t testing.TB) {
	t.Helper()
	x.cmd = exec.Command("tgtd", "-f", "-d", "0", "-C", x.ctl, "--iscsi", "portal="+x.Portal)
	if err := x.cmd.Start(); err != nil {
		t.Errorf("tgtd (Debian package tgt) is needed: %v", err)
		return
	}
	x.PID = x.cmd.Process.Pid
	deadline := time.Now().Add(startTimeout)
	for {
		out, err := x.admin("--op", "new", "--mode", "target", "--tid", "1", "-T", x.Target)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("tgtd does not start: %v: %s", err, out)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	x.Admin(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", x.File)
	x.Admin(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
}

func (x *Target) admin(args ...string) ([]byte, error) {
	return exec.Command("tgtadm", append([]string{"-C", x.ctl, "--lld", "iscsi"}, args...)...).CombinedOutput()
}

// Admin runs tgtadm.
func (x *Target) Admin(t testing.TB, args ...string) {
	t.Helper()
	if out, err := x.admin(args...); err != nil {
		t.Errorf("tgtadm %v: %v: %s", args, err, out)
	}
}

// URL names the unit.
func (x *Target) URL() string { return fmt.Sprintf("iscsi://%s/%s/1", x.Portal, x.Target) }
