//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

// manyDiskMax is what the experiment may take of the disk.
const manyDiskMax = 8 << 30

// diskTaken is what a directory takes of its file system, and in how many files.
func diskTaken(t *testing.T, dir string) (bytes int64, files int) {
	t.Helper()
	out, err := exec.Command("du", "-s", "--block-size=1", dir).Output()
	if err != nil {
		if len(out) == 0 { // a file that went meanwhile is no error
			t.Fatal(err)
		}
	}
	if _, err := fmt.Sscan(string(out), &bytes); err != nil {
		t.Fatal(err)
	}
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
		}
		return nil
	})
	return bytes, files
}

var dataSegs = regexp.MustCompile(`data_segs_(?:out|in):(\d+)`)

// frames is how many TCP segments with data have passed between the nodes so far, as the kernel counts them for the
// connections that there are.
func (s *system) frames() (n int64) {
	s.t.Helper()
	out, err := exec.Command("ss", "-tinOH", fmt.Sprintf("src 127.%d.0.0/16 and sport = :7071", s.net)).Output()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, m := range dataSegs.FindAllStringSubmatch(string(out), -1) {
		k, _ := strconv.ParseInt(m[1], 10, 64)
		n += k
	}
	return n
}

// TestVolumesAtThreeSites is an experiment, not a part of make test: E2E_MANY volumes on three sites of two nodes. It says how
// long they take to be made, what they cost at rest, what happens when a node dies under I/O to one of them, and how
// long everything takes to start. `make many VOLUMES=10000`.
func TestVolumesAtThreeSites(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("E2E_MANY"))
	if err != nil {
		t.Skip("E2E_MANY says how many volumes: make many")
	}
	s := start(t, 3, 2)
	dial := func(node string) *api.Client {
		c, err := api.Dial(api.ClientOptions{Endpoints: []string{"unix://" + filepath.Join(s.dir, "nodes", node, "api.sock")}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	ctx := context.Background()
	c := dial("s1n1")
	sum := func() (owned map[string]int, none int) {
		r, err := c.Volumes.List(ctx, &dozov1.ListVolumesRequest{})
		if err != nil {
			return nil, n
		}
		owned = map[string]int{}
		for _, v := range r.GetVolumes() {
			if v.GetOwner() == "" {
				none++
			} else {
				owned[v.GetOwner()]++
			}
		}
		return owned, none
	}
	revision := func() int64 {
		var rev int64
		until(t, "the control store answers", time.Minute, func() (bool, string) {
			r, err := c.Control.Status(ctx, &dozov1.ControlStoreStatusRequest{})
			rev = r.GetRevision()
			return err == nil, fmt.Sprint(err)
		})
		return rev
	}
	disk := func(when string) {
		t.Helper()
		bytes, files := diskTaken(t, s.dir)
		t.Logf("%s: %d MiB on disk in %d files", when, bytes>>20, files)
		if bytes > manyDiskMax {
			t.Fatalf("that is more than %d MiB", manyDiskMax>>20)
		}
	}
	memory := func(when string) {
		t.Helper()
		for _, name := range s.names() {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid(name)))
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(text)) {
				if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
					t.Logf("%s: %s resident %s", when, name, strings.TrimSpace(rest))
				}
			}
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	t.Logf("load when it began: %s", load)
	disk("before")

	begun, was, rev := time.Now(), s.usage(), revision()
	var wg sync.WaitGroup
	var next atomic.Int64
	var slowest, refused atomic.Int64
	const atOnce = 8
	for range atOnce {
		wg.Go(func() {
			for !t.Failed() {
				i := next.Add(1)
				if i > int64(n) {
					return
				}
				one := time.Now()
				at := fmt.Sprintf("site-%d", 1+i%3)
				for {
					_, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: fmt.Sprintf("v%05d", i), SizeBytes: 1 << 30, AtSite: at})
					code := connect.CodeOf(err)
					if err == nil || code == connect.CodeAlreadyExists && refused.Load() > 0 {
						break
					}
					if code != connect.CodeUnavailable && code != connect.CodeUnknown || time.Since(one) > 5*time.Minute {
						t.Error(err)
						return
					}
					refused.Add(1) // a busy machine: the control store did not answer in time
				}
				for took := int64(time.Since(one)); ; {
					if old := slowest.Load(); took <= old || slowest.CompareAndSwap(old, took) {
						break
					}
				}
				if i%1000 == 0 {
					t.Logf("%d volumes after %v", i, time.Since(begun).Round(time.Second))
				}
				if i%500 == 0 {
					if bytes, _ := diskTaken(t, s.dir); bytes > manyDiskMax {
						t.Errorf("%d volumes take %d MiB", i, bytes>>20)
					}
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	made := time.Since(begun)
	t.Logf("%d volumes made in %v, %.1f ms each with %d at a time, the slowest %v, %d tries refused; %d writes to the control store; %.1f ms of processor time each", n, made.Round(time.Millisecond),
		made.Seconds()*1000/float64(n), atOnce, time.Duration(slowest.Load()).Round(time.Millisecond), refused.Load(), revision()-rev, float64((s.usage().cpu-was.cpu).Microseconds())/1000/float64(n))
	// A node takes new volumes that nobody uses up to a bound; one that is moved has an owner for good.
	for i := range n {
		until(t, "a volume has an owner", 5*time.Minute, func() (bool, string) {
			stream, err := c.Volumes.Move(ctx, &dozov1.MoveVolumeRequest{Volume: fmt.Sprintf("v%05d", i+1), To: fmt.Sprintf("site-%d", 1+(i+1)%3)})
			if err != nil {
				return false, err.Error()
			}
			defer stream.Close()
			for stream.Receive() {
			}
			return stream.Err() == nil, fmt.Sprint(stream.Err())
		})
	}
	until(t, "all volumes have an owner", 20*time.Minute, func() (bool, string) {
		_, none := sum()
		return none == 0, fmt.Sprintf("%d have none", none)
	})
	t.Logf("all are owned after %v", time.Since(begun).Round(time.Millisecond))
	disk("all made")
	memory("all made")
	// Tails that are idle for a minute are sealed, twice: the first seal is followed by records of its own.
	time.Sleep(150 * time.Second)
	disk("at rest")
	memory("at rest")
	rest := func(when string) {
		t.Helper()
		const watch = 20 * time.Second
		load, _ := os.ReadFile("/proc/loadavg")
		rev, was, frames := revision(), s.usage(), s.frames()
		time.Sleep(watch)
		now := s.usage()
		t.Logf("%s: %.3f processors for %d processes, %.0f segments of TCP a second between nodes, %.2f writes to the control store a second, %d MiB of memory; load of the machine %s", when,
			float64(now.cpu-was.cpu)/float64(watch), len(s.names()), float64(s.frames()-frames)/watch.Seconds(), float64(revision()-rev)/watch.Seconds(), now.rss>>20, strings.TrimSpace(string(load)))
	}
	rest("at rest")

	// A node dies, under a writer to a volume that it owns, by way of the other node of its site.
	victim := ""
	iqn := s.create("written", "256M")
	owned, _ := sum()
	victim = s.show("written").Volume.Owner
	other := map[string]string{"s1n1": "s1n2", "s1n2": "s1n1"}[victim]
	if other == "" {
		t.Fatalf("the volume is owned by %q", victim)
	}
	c = dial(other)
	node := 1
	if other == "s1n2" {
		node = 2
	}
	log := filepath.Join(s.dir, "writer.log")
	w := s.crashWriter(s.url(1, node, iqn), log, "--size", "64M", "--rate", "300")
	time.Sleep(3 * time.Second)
	rev, begun, was = revision(), time.Now(), s.usage()
	s.kill(victim)
	until(t, "the volumes of "+victim+" are owned by others", 20*time.Minute, func() (bool, string) {
		left, none := sum()
		return left != nil && none == 0 && left[victim] == 0, fmt.Sprintf("%d are left, %d have none", left[victim], none)
	})
	claimed := time.Since(begun)
	txns := revision() - rev
	until(t, "all are served", 20*time.Minute, func() (bool, string) {
		r, err := c.Cluster.Status(ctx, &dozov1.StatusRequest{})
		unserved := 0
		for _, v := range r.GetVolumes() {
			if v.GetState() != "serving" {
				unserved++
			}
		}
		return err == nil && unserved == 0, fmt.Sprintf("%d are not served, %v", unserved, err)
	})
	t.Logf("%s died and had %d volumes: claimed by others after %v in %d transactions, all served after %v; %.1f s of processor time", victim, owned[victim], claimed.Round(time.Millisecond), txns,
		time.Since(begun).Round(time.Millisecond), (s.usage().cpu - was.cpu).Seconds())
	time.Sleep(5 * time.Second)
	r := w.finish(t)
	t.Logf("the writer to one of them: %d acknowledged, %d failed, longest gap %v", r.Acked, r.Failed, time.Duration(r.LongestNS).Round(time.Millisecond))
	if r.Failed > 0 {
		t.Errorf("%d writes failed", r.Failed)
	}
	disk("after the takeovers")
	rest("after the takeovers")
	s.check(log, s.url(1, node, iqn))

	// Everything starts anew.
	s.kill(s.names()...)
	begun = time.Now()
	s.up()
	up := time.Since(begun)
	c = dial("s1n1")
	until(t, "all are served again", 30*time.Minute, func() (bool, string) {
		r, err := c.Cluster.Status(ctx, &dozov1.StatusRequest{})
		unserved := n + 1 - len(r.GetVolumes())
		for _, v := range r.GetVolumes() {
			if v.GetState() != "serving" {
				unserved++
			}
		}
		return err == nil && unserved == 0, fmt.Sprintf("%d are not served, %v", unserved, err)
	})
	t.Logf("all killed and started: dozo up returned after %v, all served after %v", up.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
	memory("started anew")
	disk("started anew")
}
