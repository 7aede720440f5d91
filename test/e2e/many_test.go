//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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

// usage is what processes have used: processor time and memory.
type usage struct {
	cpu time.Duration
	rss uint64
}

func (s *system) usage() (u usage) {
	s.t.Helper()
	for _, name := range s.names() {
		pid := s.pid(name)
		if pid == 0 {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			s.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		user, _ := strconv.ParseUint(f[11], 10, 64)
		sys, _ := strconv.ParseUint(f[12], 10, 64)
		pages, _ := strconv.ParseUint(f[21], 10, 64)
		u.cpu += time.Duration(user+sys) * 10 * time.Millisecond
		u.rss += pages * uint64(os.Getpagesize())
	}
	return u
}

// warm is up to how many volumes a node takes new ones that nobody uses (access.Limits.Warm).
const warm = 64

// TestManyVolumes: many volumes on a small cluster are no storm: the control store is nearly still while nothing happens, an
// idle volume costs little, and when a node dies its volumes go to the others in few transactions. E2E_VOLUMES is how many.
func TestManyVolumes(t *testing.T) {
	n := 100
	if long() {
		n = 2000
	}
	if v := os.Getenv("E2E_VOLUMES"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, 1, 3)
	c, err := api.Dial(api.ClientOptions{Endpoints: []string{"unix://" + filepath.Join(s.dir, "nodes", "s1n1", "api.sock")}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	empty := s.usage()
	begun := time.Now()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 16 {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(n) {
					return
				}
				for one, tried := time.Now(), false; ; tried = true {
					_, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: fmt.Sprintf("v%05d", i), SizeBytes: 1 << 30})
					code := connect.CodeOf(err)
					if err == nil || tried && code == connect.CodeAlreadyExists {
						break
					}
					// A busy machine: the control store did not answer in time.
					if code != connect.CodeUnavailable && code != connect.CodeUnknown || time.Since(one) > 5*time.Minute {
						t.Error(err)
						return
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
	owners := func(at *api.Client) (owned map[string]int, none int) {
		r, err := at.Volumes.List(ctx, &dozov1.ListVolumesRequest{})
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
		return owned, none + n - len(r.GetVolumes())
	}
	// A node takes new volumes that nobody uses up to a bound: what is left has no owner until somebody uses it.
	until(t, "all volumes have an owner, or all nodes as many as they take", 10*time.Minute, func() (bool, string) {
		owned, none := owners(c)
		least := n
		for _, node := range s.names() {
			least = min(least, owned[node])
		}
		return none == 0 || least >= warm, fmt.Sprintf("%d have none, a node has %d", none, least)
	})
	t.Logf("%d volumes: made in %v, owned after %v", n, made.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
	revision := func(at *api.Client) (rev int64) {
		until(t, "the control store answers", time.Minute, func() (bool, string) {
			r, err := at.Control.Status(ctx, &dozov1.ControlStoreStatusRequest{})
			rev = r.GetRevision()
			return err == nil, fmt.Sprint(err)
		})
		return rev
	}
	// Until the owners' clocks have slowed down and old ensembles are off the lists.
	time.Sleep(15 * time.Second)
	// A machine that stalls has them take each other for dead: then it is watched again.
	const watch = 10 * time.Second
	for again := 0; ; again++ {
		rev, was := revision(c), s.usage()
		time.Sleep(watch)
		now := s.usage()
		idle := revision(c) - rev
		cpu := float64(now.cpu-was.cpu) / float64(watch)
		t.Logf("idle: %d writes to the control store in %v; %.2f processors for %d processes; %d KiB a volume", idle, watch, cpu, len(s.names()), (now.rss-min(now.rss, empty.rss))/uint64(n)/1024)
		if idle <= 20 {
			break
		}
		if again == 9 {
			t.Fatalf("%d writes to the control store while nothing happens, and more than 20 each time before", idle)
		}
	}

	// A node dies; if its volumes took too many transactions, once more, the other one.
	for _, victim := range []string{"s1n3", "s1n2"} {
		if s.dies(t, c, victim, owners, revision) {
			return
		}
		s.up()
	}
	t.Error("too many transactions each time")
}

// dies kills a node, and says whether its volumes went to the others in few transactions.
func (s *system) dies(t *testing.T, c *api.Client, victim string, owners func(*api.Client) (map[string]int, int), revision func(*api.Client) int64) bool {
	t.Helper()
	owned, without := owners(c)
	rev, begun := revision(c), time.Now()
	s.kill(victim)
	until(t, "the volumes of "+victim+" are owned by others", 10*time.Minute, func() (bool, string) {
		left, none := owners(c)
		return none <= without && left != nil && left[victim] == 0, fmt.Sprintf("%d are left, %d have none", left[victim], none)
	})
	took := time.Since(begun)
	txns := revision(c) - rev
	t.Logf("%s died and had %d volumes: all are owned by others after %v, with %d transactions", victim, owned[victim], took.Round(time.Millisecond), txns)
	return txns <= int64(owned[victim])/2+30
}
