//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dozo/internal/initiator"
)

// numberedDisk is written by one writer, one write after the other: write i puts its number into every block of one of
// the slots, in turn. So the state after each write is known.
type numberedDisk struct {
	t *testing.T
	d *initiator.Disk
}

const (
	slotBytes = 64 << 10
	slots     = 128
)

func fill(p []byte, i uint64) {
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], i)
	}
}

func openNumbered(t *testing.T, s *system, site int, iqn, name string) *numberedDisk {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slow*20*time.Second)
	defer cancel()
	var err error
	for ctx.Err() == nil {
		var sess *initiator.Session
		if sess, err = initiator.Dial(ctx, initiator.Config{Portal: s.addr(site, 1) + ":3260", Target: iqn, Initiator: name, RetryLimit: 10000, LoginTimeout: time.Minute, NopInterval: -1}); err == nil {
			var d *initiator.Disk
			if d, err = initiator.OpenDisk(ctx, sess, initiator.FlatLUN(0)); err == nil {
				t.Cleanup(sess.Kill)
				return &numberedDisk{t, d}
			}
			sess.Kill()
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("log in at site %d: %v", site, err)
	return nil
}

func (n *numberedDisk) write(ctx context.Context, i uint64) error {
	p := make([]byte, slotBytes)
	fill(p, i)
	return n.d.WriteAt(ctx, p, int64(i%slots)*slotBytes, false)
}

// last reads everything and holds it to be the state after some write, which it gives.
func (n *numberedDisk) last(what string) uint64 {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slow*20*time.Second)
	defer cancel()
	image := make([]byte, slots*slotBytes)
	for at := 0; at < len(image); at += slotBytes {
		if err := n.d.ReadAt(ctx, image[at:at+slotBytes], int64(at)); err != nil {
			n.t.Fatalf("%s: read at %d: %v", what, at, err)
		}
	}
	return lastOf(n.t, what, image)
}

// lastOf is the write after which an image is the state.
func lastOf(t *testing.T, what string, image []byte) (last uint64) {
	t.Helper()
	got := make([]uint64, slots)
	for s := range got {
		slot := image[s*slotBytes : (s+1)*slotBytes]
		got[s] = binary.LittleEndian.Uint64(slot)
		want := make([]byte, 4096)
		for at := 0; at < slotBytes; at += 4096 {
			fill(want, got[s])
			if !bytes.Equal(slot[at:at+4096], want) {
				t.Fatalf("%s: slot %d is torn at %d", what, s, at)
			}
		}
		last = max(last, got[s])
	}
	for s, i := range got {
		want := last - (last-uint64(s))%slots // the newest write up to last that belongs here
		if uint64(s) > last {
			want = 0
		}
		if i != want {
			t.Fatalf("%s: slot %d has write %d, the state after write %d has %d there", what, s, i, last, want)
		}
	}
	return last
}

type forkList []struct {
	ID        string
	Writes    uint64
	SizeBytes uint64 `json:"size_bytes"`
}

type failedOver struct {
	Done    bool
	Alive   []string
	Volumes []struct {
		Volume, State, Message string
		OwnerSite              string `json:"owner_site"`
		Lost                   uint64 `json:"lost_records"`
		LastSeq                uint64 `json:"last_seq"`
		Proven                 bool
	}
}

func (s *system) signal(sig syscall.Signal, names ...string) {
	s.t.Helper()
	for _, name := range names {
		if pid := s.pid(name); pid != 0 {
			if err := syscall.Kill(pid, sig); err != nil {
				s.t.Fatalf("%v %s: %v", sig, name, err)
			}
		}
	}
}

// TestFailover loses a site under a writer, with writes that no other site has. Another site goes on from a prefix of what was
// acknowledged; the site returns, what it had beyond is a fork, whole; and the volume goes home.
func TestFailover(t *testing.T) {
	begun := time.Now()
	s := start(t, 3, 2)
	iqn := s.create("v", "16M")
	w := openNumbered(t, s, 1, iqn, "iqn.2026-11.test:old")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	acked := uint64(0)
	for acked < 200 {
		if err := w.write(ctx, acked+1); err != nil {
			t.Fatal(err)
		}
		acked++
	}
	s.dozo("volume", "wait", "v", "--replicated", "--timeout", "120s")
	var r failedOver
	if err := s.tryAsk("s2n1", &r, "site", "failover", "site-1", "--yes"); err == nil || !bytes.Contains([]byte(err.Error()), []byte("is alive")) {
		t.Fatalf("failover of a site that is alive: %+v, %v", r, err)
	}
	// The other sites hear nothing any more, while the writer goes on; then its site is lost.
	others := []string{"s2n1", "s2n2", "s3n1", "s3n2"}
	s.signal(syscall.SIGSTOP, others...)
	for end := time.Now().Add(1200 * time.Millisecond); time.Now().Before(end); {
		if err := w.write(ctx, acked+1); err != nil {
			t.Fatal(err)
		}
		acked++
	}
	s.kill("s1n1", "s1n2")
	s.signal(syscall.SIGCONT, others...)
	until(t, "the site counts as lost", 20*time.Second, func() (bool, string) {
		r = failedOver{}
		err := s.tryAsk("s2n1", &r, "site", "failover", "site-1", "--dry-run")
		return err == nil && len(r.Alive) == 0 && len(r.Volumes) == 1 && r.Volumes[0].State == "planned", fmt.Sprint(r, err)
	})
	t.Logf("%v: %d writes acknowledged; planned: %+v", time.Since(begun), acked, r.Volumes)
	until(t, "failover", 30*time.Second, func() (bool, string) {
		r = failedOver{}
		err := s.tryAsk("s2n1", &r, "site", "failover", "site-1", "--yes")
		return err == nil && r.Done && len(r.Volumes) == 1 && r.Volumes[0].State == "serving", fmt.Sprint(r, err)
	})
	if v := r.Volumes[0]; v.OwnerSite == "site-1" || v.Proven {
		t.Errorf("%+v", v)
	}
	// Run again, there is nothing left to do.
	var again failedOver
	s.ask("s2n1", &again, "site", "failover", "site-1", "--yes")
	if len(again.Volumes) != 0 {
		t.Errorf("again: %+v", again)
	}
	n := openNumbered(t, s, 2, iqn, "iqn.2026-11.test:new")
	at := n.last("after the failover")
	if at < 200 || at > acked+1 {
		t.Fatalf("the state after write %d is there; %d were acknowledged, 200 were everywhere", at, acked)
	}
	t.Logf("%v: served with the state after write %d: %d acknowledged writes are left behind", time.Since(begun), at, acked-min(at, acked))
	now := at
	for range 300 {
		if err := n.write(ctx, now+1); err != nil {
			t.Fatal(err)
		}
		now++
	}
	// The site returns.
	s.up()
	if at < acked {
		var forks forkList
		until(t, "the fork is there", 30*time.Second, func() (bool, string) {
			forks = nil
			err := s.tryAsk("s2n1", &forks, "fork", "list", "v")
			return err == nil && len(forks) == 1 && forks[0].Writes > 0, fmt.Sprint(forks, err)
		})
		if got := forks[0].Writes; got != acked-at && got != acked-at+1 { // the last one may not have been answered
			t.Errorf("the fork has %d writes, %d were acknowledged beyond write %d", got, acked-at, at)
		}
		file := filepath.Join(s.dir, "fork.img")
		s.dozo("fork", "export", "v", "--file", file)
		image, err := os.ReadFile(file)
		if err != nil || len(image) != 16<<20 {
			t.Fatalf("image of %d bytes, %v", len(image), err)
		}
		if got := lastOf(t, "the fork", image[:slots*slotBytes]); got != acked && got != acked+1 {
			t.Errorf("the fork is the state after write %d, %d were acknowledged", got, acked)
		}
		var diff struct {
			Ranges    []struct{ Offset, Length uint64 }
			Differing uint64 `json:"differing_bytes"`
		}
		s.ask("s2n1", &diff, "fork", "diff", "v", "--base")
		if want := min(acked-at, slots) * slotBytes; diff.Differing != want && diff.Differing != min(acked+1-at, slots)*slotBytes {
			t.Errorf("%d bytes differ from where the two part, want %d", diff.Differing, want)
		}
		s.ask("s2n1", &diff, "fork", "diff", "v")
		if diff.Differing == 0 {
			t.Error("nothing differs from the volume as it is now")
		}
		s.dozo("fork", "clone", "v", "--name", "saved", "--timeout", "120s")
		if got := openNumbered(t, s, 2, s.show("saved").Volume.IQN, "iqn.2026-11.test:saved").last("the clone"); got != acked && got != acked+1 {
			t.Errorf("the clone is the state after write %d, %d were acknowledged", got, acked)
		}
		s.dozo("fork", "delete", "v", forks[0].ID, "--yes")
		forks = nil
		if s.ask("s2n1", &forks, "fork", "list", "v"); len(forks) != 0 {
			t.Errorf("after it was deleted: %+v", forks)
		}
		t.Logf("%v: fork looked at and deleted", time.Since(begun))
	}
	var back struct {
		Done    bool
		Volumes []struct{ Volume, State, Message string }
	}
	s.ask("s2n1", &back, "site", "failback", "site-1", "--yes", "--timeout", "360s")
	if !back.Done || len(back.Volumes) == 0 || slices.ContainsFunc(back.Volumes, func(v struct{ Volume, State, Message string }) bool { return v.State != "home" }) {
		t.Errorf("failback: %+v", back)
	}
	if owner := s.show("v").Volume.Owner; owner != "s1n1" && owner != "s1n2" {
		t.Errorf("the owner is %s", owner)
	}
	if got := n.last("at home"); got != now {
		t.Errorf("the state after write %d is there, want %d", got, now)
	}
	t.Logf("%v: home again", time.Since(begun))
}

// TestSiteThatStopsIsTakenOver: a volume is told to stop when its site is cut off, and then its site hears and says nothing any
// more. Another one takes it over without anybody asking, and what comes back acknowledges nothing.
func TestSiteThatStopsIsTakenOver(t *testing.T) {
	s := start(t, 3, 2)
	iqn := s.create("v", "16M")
	w := openNumbered(t, s, 1, iqn, "iqn.2026-11.test:old")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	acked := uint64(0)
	write := func(n int) {
		t.Helper()
		for range n {
			if err := w.write(ctx, acked+1); err != nil {
				t.Fatal(err)
			}
			acked++
		}
	}
	write(50)
	s.dozo("volume", "set", "v", "--partition", "stop") // it answers once the owner goes by it
	write(50)
	s.dozo("volume", "wait", "v", "--replicated", "--timeout", "120s")
	begun := time.Now()
	s.signal(syscall.SIGSTOP, "s1n1", "s1n2")
	var v volumeShow
	until(t, "another site serves it", 40*time.Second, func() (bool, string) {
		v = volumeShow{}
		err := s.tryAsk("s2n1", &v, "volume", "show", "v")
		return err == nil && v.Volume.Owner != "" && !strings.HasPrefix(v.Volume.Owner, "s1") && v.Volume.State == "serving", fmt.Sprint(v.Volume, err)
	})
	t.Logf("served at %s after %v", v.Volume.Owner, time.Since(begun).Round(time.Millisecond))
	n := openNumbered(t, s, 2, iqn, "iqn.2026-11.test:new")
	if at := n.last("at the other site"); at != acked {
		t.Errorf("the state after write %d is there, and %d were acknowledged and everywhere", at, acked)
	}
	if err := n.write(ctx, acked+1); err != nil {
		t.Fatal(err)
	}
	s.signal(syscall.SIGCONT, "s1n1", "s1n2")
	late, end := context.WithTimeout(ctx, 2*time.Second)
	defer end()
	if err := w.write(late, acked+7); err == nil {
		t.Error("a write by a port that was attached before the takeover is acknowledged")
	}
	if at := n.last("once the site is back"); at != acked+1 {
		t.Errorf("the state after write %d is there, want %d", at, acked+1)
	}
	until(t, "an event says that it was taken over", 10*time.Second, func() (bool, string) {
		out := s.dozo("events", "--endpoint", "unix://"+filepath.Join(s.dir, "nodes", "s2n1", "api.sock"))
		return strings.Contains(out, "volume.failover"), out
	})
}
