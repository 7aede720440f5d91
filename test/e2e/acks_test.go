//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// silence stops nodes and waits until each of their threads has: on a busy machine a process runs on for a while.
func (s *system) silence(names ...string) {
	s.t.Helper()
	s.signal(syscall.SIGSTOP, names...)
	for _, name := range names {
		until(s.t, name+" is stopped", 20*time.Second, func() (bool, string) {
			tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.pid(name)))
			for _, f := range tasks {
				text, err := os.ReadFile(f)
				if _, rest, ok := strings.Cut(string(text), ") "); err != nil || !ok || !strings.HasPrefix(rest, "T") {
					return false, fmt.Sprintf("%s: %s, %v", f, text, err)
				}
			}
			return len(tasks) > 0, "no threads"
		})
	}
}

// TestAcknowledgedAtTwoSites is of two sites and volumes with --ack site:1. While the other site is silent, writes wait, and go
// on when it is back. Then the whole of site 1 is killed right behind acknowledged writes, of one writer and of 32 at a time:
// site 2 has each of them after the failover, says so, and is read at once. Its writes wait in turn, until site 1 is back.
func TestAcknowledgedAtTwoSites(t *testing.T) {
	begun := time.Now()
	s := start(t, 2, 2)
	ledger := s.create("ledger", "16M", "--ack", "site:1")
	deep := s.create("deep", "64M", "--ack", "site:1")
	w := openNumbered(t, s, 1, ledger, "iqn.2026-11.test:old")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	acked := uint64(0)
	for acked < 50 {
		if err := w.write(ctx, acked+1); err != nil {
			t.Fatal(err)
		}
		acked++
	}
	// waits has a write wait, as the volume says; what it returns waits for its answer.
	waits := func(what string, d *numberedDisk, node, behind string, i uint64) func() {
		t.Helper()
		answer := make(chan error, 1)
		go func() { answer <- d.write(ctx, i) }()
		until(t, what+": the volume says that it waits", 60*time.Second, func() (bool, string) {
			var v struct {
				Volume struct {
					State  string
					Reason string `json:"state_reason"`
				}
			}
			err := s.tryAsk(node, &v, "volume", "show", "ledger")
			why := v.Volume.Reason
			return err == nil && v.Volume.State == "waiting" && strings.HasPrefix(why, "waiting for other sites") && strings.Contains(why, behind), fmt.Sprint(v.Volume, err)
		})
		time.Sleep(500 * time.Millisecond)
		if len(answer) > 0 {
			t.Fatalf("%s: write %d is answered: %v", what, i, <-answer)
		}
		return func() {
			t.Helper()
			select {
			case err := <-answer:
				if err != nil {
					t.Fatalf("%s: write %d, once the other site is back: %v", what, i, err)
				}
			case <-time.After(60 * time.Second):
				t.Fatalf("%s: write %d is not answered, and the other site is back", what, i)
			}
		}
	}
	s.silence("s2n1", "s2n2")
	goesOn := waits("site 2 is silent", w, "s1n1", "site-2", acked+1)
	s.signal(syscall.SIGCONT, "s2n1", "s2n2")
	goesOn()
	acked++
	t.Logf("%v: writes waited for site 2, and went on", time.Since(begun))

	log := filepath.Join(s.dir, "deep.log")
	many := s.crashWriter(s.url(1, 1, deep), log, "--size", "32M", "--reconnect", "1s")
	enough := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; w.write(ctx, acked+1) == nil; n++ {
			if acked++; n == 100 {
				close(enough)
			}
		}
	}()
	select {
	case <-enough:
	case <-done:
		t.Fatalf("the writer ended after write %d", acked)
	case <-time.After(60 * time.Second):
		t.Fatal("no 100 writes in a minute")
	}
	until(t, "the other volume is written", 60*time.Second, func() (bool, string) {
		v := s.show("deep")
		return v.Placement.Commit != nil && v.Placement.Commit.Seq > 200, fmt.Sprint(v.Placement.Commit)
	})
	s.kill("s1n1", "s1n2")
	cancel()
	<-done
	ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	<-many.done // its server does not come back; the log has what was acknowledged
	t.Logf("%v: site 1 is gone, %d writes were acknowledged to the one writer", time.Since(begun), acked)

	var r struct {
		Volumes []struct {
			Volume, State, Message string
			Kept                   bool
		}
	}
	until(t, "failover", 90*time.Second, func() (bool, string) {
		r.Volumes = nil
		err := s.tryAsk("s2n1", &r, "site", "failover", "site-1", "--yes")
		for _, v := range r.Volumes {
			if v.State == "serving" && !v.Kept {
				t.Errorf("%s: %+v", v.Volume, v)
			}
		}
		var ledger, deep volumeShow
		if err := errors.Join(s.tryAsk("s2n1", &ledger, "volume", "show", "ledger"), s.tryAsk("s2n1", &deep, "volume", "show", "deep")); err != nil {
			return false, err.Error()
		}
		return strings.HasPrefix(ledger.Volume.Owner, "s2") && strings.HasPrefix(deep.Volume.Owner, "s2"), fmt.Sprint(ledger.Volume, deep.Volume, err)
	})
	n := openNumbered(t, s, 2, ledger, "iqn.2026-11.test:new")
	if at := n.last("after the failover"); at != acked && at != acked+1 {
		t.Fatalf("the state after write %d is there; %d were acknowledged", at, acked)
	} else {
		acked = at
	}
	var c struct {
		Checked    uint64 `json:"checked_blocks"`
		Violations uint64
	}
	s.ask("s2n1", &c, "bench", "crash-check", s.url(2, 1, deep), "--log", log)
	if c.Checked == 0 || c.Violations > 0 {
		t.Errorf("of the volume that was written 32 at a time: %+v", c)
	}
	events := s.must(exec.Command(dozoBin, "events", "--endpoint", "unix://"+filepath.Join(s.dir, "nodes", "s2n1", "api.sock")))
	if strings.Count(events, "volume.kept") != 2 || strings.Contains(events, "volume.unproven") {
		t.Errorf("not of both volumes it is said that nothing acknowledged is missing:\n%s", events)
	}
	t.Logf("%v: every acknowledged write is at site 2", time.Since(begun))

	goesOn = waits("site 1 is gone", n, "s2n1", "site-1 can not be reached", acked+1)
	if out, err := run(exec.Command(dozoBin, "volume", "set", "deep", "--ack", "local", "--dir", s.dir)); err != nil {
		t.Errorf("the policy of the other volume is lowered: %v\n%s", err, out)
	}
	s.up()
	goesOn()
	if at := n.last("with site 1 back"); at != acked+1 {
		t.Errorf("the state after write %d is there, want %d", at, acked+1)
	}
	t.Logf("%v: writes waited for site 1, and went on", time.Since(begun))
}
