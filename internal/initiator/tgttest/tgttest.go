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
}

// startTimeout is for a loaded machine; tgtd needs some milliseconds.
const startTimeout = 20 * time.Second

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
	cmd := exec.Command("tgtd", "-f", "-d", "0", "-C", x.ctl, "--iscsi", "portal="+x.Portal)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("tgtd (Debian package tgt) is needed: %v", err)
	}
	x.PID = cmd.Process.Pid
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.Remove("/var/run/tgtd/socket." + x.ctl)
		os.Remove("/var/run/tgtd/socket." + x.ctl + ".lock")
	})
	deadline := time.Now().Add(startTimeout)
	for {
		out, err := x.admin("--op", "new", "--mode", "target", "--tid", "1", "-T", x.Target)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("tgtd does not start: %v: %s", err, out)
		}
		time.Sleep(20 * time.Millisecond)
	}
	x.Admin(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", x.File)
	x.Admin(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	return x
}

func (x *Target) admin(args ...string) ([]byte, error) {
	return exec.Command("tgtadm", append([]string{"-C", x.ctl, "--lld", "iscsi"}, args...)...).CombinedOutput()
}

// Admin runs tgtadm.
func (x *Target) Admin(t testing.TB, args ...string) {
	t.Helper()
	if out, err := x.admin(args...); err != nil {
		t.Fatalf("tgtadm %v: %v: %s", args, err, out)
	}
}

// URL names the unit.
func (x *Target) URL() string { return fmt.Sprintf("iscsi://%s/%s/1", x.Portal, x.Target) }
