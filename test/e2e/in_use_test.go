//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/initiator"
)

// TestKillWithManyInUse is an experiment, not a part of make test: of a site of three nodes one dies that owns E2E_IN_USE volumes,
// each of which was just written. It says how long until the others serve them all, what that costs, what a client of one of them
// sees, and what the node's return and the deletion of them all cost. `make many-in-use VOLUMES=3000`.
func TestKillWithManyInUse(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("E2E_IN_USE"))
	if err != nil {
		t.Skip("E2E_IN_USE says how many volumes: make many-in-use")
	}
	s := start(t, 1, 3)
	ctx := context.Background()
	c, err := api.Dial(api.ClientOptions{Endpoints: []string{"unix://" + filepath.Join(s.dir, "nodes", "s1n1", "api.sock")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	const victim = "s1n3"
	load := func() string {
		text, _ := os.ReadFile("/proc/loadavg")
		return strings.TrimSpace(string(text))
	}
	revision := func() (rev int64) {
		until(t, "the control store answers", time.Minute, func() (bool, string) {
			r, err := c.Control.Status(ctx, &dozov1.ControlStoreStatusRequest{})
			rev = r.GetRevision()
			return err == nil, fmt.Sprint(err)
		})
		return rev
	}
	memory := func(when string) {
		for _, name := range s.names() {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid(name)))
			for line := range strings.Lines(string(text)) {
				if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
					t.Logf("%s: %s has %s resident", when, name, strings.TrimSpace(rest))
				}
			}
		}
	}
	// How many volumes the victim owns, and how many others serve.
	state := func() (here, served int) {
		r, err := c.Volumes.List(ctx, &dozov1.ListVolumesRequest{})
		if err != nil {
			return -1, 0
		}
		for _, v := range r.GetVolumes() {
			if v.GetOwner() == victim {
				here++
			} else if v.GetState() == "serving" && v.GetOwner() != "" {
				served++
			}
		}
		return here, served
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("v%05d", i)
	}
	for made := 0; made < n; {
		r, err := c.Volumes.CreateMany(ctx, &dozov1.CreateVolumesRequest{Like: &dozov1.CreateVolumeRequest{SizeBytes: 1 << 30}, Names: names})
		if err != nil {
			t.Fatal(err)
		}
		for r.Receive() {
			made += len(r.Msg().GetVolumes())
		}
		if err := errors.Join(r.Err(), r.Close()); err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.Volumes.List(ctx, &dozov1.ListVolumesRequest{})
	if err != nil || len(list.GetVolumes()) != n {
		t.Fatalf("%d volumes, %v", len(list.GetVolumes()), err)
	}
	// Written by way of the victim, which takes those that have no owner, and asked to take the others.
	began := time.Now()
	portal := fmt.Sprintf("127.%d.1.3", s.net)
	touch := func(iqn string) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		x, err := initiator.Dial(ctx, initiator.Config{Portal: portal, Target: iqn})
		if err != nil {
			return err
		}
		defer x.Kill()
		disk, err := initiator.OpenDisk(ctx, x, initiator.FlatLUN(0))
		if err != nil {
			return err
		}
		return errors.Join(disk.WriteAt(ctx, make([]byte, 64<<10), 0, true), x.Close(ctx))
	}
	var next, moved atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for !t.Failed() {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				v := list.Volumes[i]
				for tried := 0; ; tried++ {
					err := touch(v.GetIqn())
					if err == nil {
						break
					}
					if tried == 20 {
						t.Errorf("volume %s: %v", v.GetName(), err)
						return
					}
				}
				if g, err := c.Volumes.Get(ctx, &dozov1.GetVolumeRequest{Volume: v.GetName()}); err == nil && g.GetVolume().GetOwner() != victim {
					moved.Add(1)
					if r, err := c.Volumes.Move(ctx, &dozov1.MoveVolumeRequest{Volume: v.GetName(), To: victim}); err == nil {
						for r.Receive() {
						}
						_ = r.Close()
					}
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	here, _ := state()
	t.Logf("%d volumes written in %v, %d of them moved; %s owns %d; load %s", n, time.Since(began).Round(time.Millisecond), moved.Load(), victim, here, load())
	memory("in use")
	w := s.crashWriter(s.url(1, 1, list.Volumes[0].GetIqn()), filepath.Join(s.dir, "writer.log"), "--size", "64M", "--rate", "100")
	time.Sleep(3 * time.Second)

	rev, was := revision(), s.usage()
	gone, began := s.cpuOf(victim), time.Now()
	s.kill(victim)
	var claimed time.Duration
	until(t, "the volumes are served by others", 20*time.Minute, func() (bool, string) {
		left, served := state()
		if left == 0 && claimed == 0 {
			claimed = time.Since(began)
		}
		return left == 0 && served == n, fmt.Sprintf("%d are left, %d served", left, served)
	})
	took := time.Since(began)
	t.Logf("%s died and owned %d: claimed after %v, all served after %v, in %d transactions, %.1f s of processor time; load %s", victim, here, claimed.Round(time.Millisecond),
		took.Round(time.Millisecond), revision()-rev, (s.usage().cpu + gone - was.cpu).Seconds(), load())
	memory("after the takeovers")
	time.Sleep(3 * time.Second)
	r := w.finish(t)
	t.Logf("the writer to one of them: %d acknowledged, %d failed, longest gap %v", r.Acked, r.Failed, time.Duration(r.LongestNS).Round(time.Millisecond))

	rev, began, was = revision(), time.Now(), s.usage()
	s.up()
	until(t, "all is well", 20*time.Minute, func() (bool, string) {
		r, err := c.Cluster.Status(ctx, &dozov1.StatusRequest{})
		if err != nil || len(r.GetProblems()) == 0 {
			return err == nil, fmt.Sprint(err)
		}
		return false, fmt.Sprintf("%d problems, the first %v", len(r.GetProblems()), r.GetProblems()[0])
	})
	t.Logf("the node's return: all is well after %v, %d transactions, %.1f s of processor time; load %s", time.Since(began).Round(time.Millisecond), revision()-rev, (s.usage().cpu - was.cpu).Seconds(), load())

	rev, began = revision(), time.Now()
	d, err := c.Volumes.DeleteMany(ctx, &dozov1.DeleteVolumesRequest{Volumes: names, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	for d.Receive() {
	}
	if err := errors.Join(d.Err(), d.Close()); err != nil {
		t.Fatal(err)
	}
	deleted := time.Since(began)
	until(t, "no tombstone is left", 20*time.Minute, func() (bool, string) {
		r, err := c.Volumes.List(ctx, &dozov1.ListVolumesRequest{Deleted: true})
		return err == nil && len(r.GetVolumes()) == 0, fmt.Sprintf("%d, %v", len(r.GetVolumes()), err)
	})
	t.Logf("deleted in %v, removed from all stores after %v, in %d transactions; load %s", deleted.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), revision()-rev, load())
}

// cpuOf is the processor time of one node.
func (s *system) cpuOf(name string) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid(name)))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.ParseUint(f[11], 10, 64)
	sys, _ := strconv.ParseUint(f[12], 10, 64)
	return time.Duration(user+sys) * 10 * time.Millisecond
}
