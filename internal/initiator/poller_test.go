package initiator

import (
	"errors"
	"sync"
	"testing"
	"time"
)

func newPoller(t *testing.T) *Poller {
	t.Helper()
	p, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close) // after the sessions that are opened later
	return p
}

// TestPoller has one goroutine read sessions of all shapes at once.
func TestPoller(t *testing.T) {
	p := newPoller(t)
	x := newScriptedTarget(t)
	odd := newScriptedTarget(t)
	odd.dataInSize = 10001
	var disks []*Disk
	for range 3 {
		disks = append(disks, open(t, x, Config{Poller: p}))
		disks = append(disks, open(t, x, Config{Poller: p, Connections: 3}))
		disks = append(disks, open(t, odd, Config{Poller: p, Offer: offer(func(o *Offer) { o.HeaderDigest, o.DataDigest = "CRC32C", "CRC32C" })}))
		disks = append(disks, open(t, odd, Config{Poller: p, Offer: offer(func(o *Offer) { o.ImmediateData, o.InitialR2T = false, true })}))
	}
	for _, d := range disks[:4] {
		roundTrip(t, d)
	}
	// Each pair of disks has a target of its own, so the floods don't meet.
	var wg sync.WaitGroup
	wg.Go(func() { flood(t, disks[1], 2000, 20) })
	wg.Go(func() { flood(t, disks[2], 2000, 20) })
	wg.Wait()
}

// TestPollerLostConnections has connections end and begin anew below a Poller, while another session goes on.
func TestPollerLostConnections(t *testing.T) {
	p := newPoller(t)
	other := open(t, newScriptedTarget(t), Config{Poller: p})
	var wg sync.WaitGroup
	wg.Go(func() { flood(t, other, 4000, 8) })

	x := newScriptedTarget(t)
	d := open(t, x, Config{Poller: p, Connections: 2, ReconnectTimeout: 20 * time.Second, ReconnectDelay: time.Millisecond})
	for range 5 {
		before := d.S.Stats().Reconnects
		x.dropAll()
		flood(t, d, 100, 8)
		for d.S.Stats().Reconnects == before {
			time.Sleep(time.Millisecond)
		}
	}
	wg.Wait()

	x = newScriptedTarget(t)
	x.script = func(c *targetConn, p *PDU) bool {
		if p.BHS.Op() == OpSCSICommand && p.BHS[32] == 0x88 {
			c.c.Close()
			return true
		}
		return false
	}
	d = open(t, x, Config{Poller: p})
	if err := d.ReadAt(testContext(t), make([]byte, 4096), 0); !errors.Is(err, ErrConnectionLost) {
		t.Fatalf("read: %v", err)
	}
	<-d.S.Done()
}

// TestPollerBadInput: a target that sends nonsense ends its own connection only.
func TestPollerBadInput(t *testing.T) {
	p := newPoller(t)
	good := open(t, newScriptedTarget(t), Config{Poller: p})
	x := newScriptedTarget(t)
	x.script = func(c *targetConn, p *PDU) bool {
		if p.BHS.Op() == OpSCSICommand && p.BHS[32] == 0x88 {
			c.c.Write(make([]byte, 200<<10)) // NOP-Outs, which no target sends
			return true
		}
		return false
	}
	d := open(t, x, Config{Poller: p})
	if err := d.ReadAt(testContext(t), make([]byte, 4096), 0); err == nil {
		t.Fatal("read from a target that sends nonsense")
	}
	roundTrip(t, good)
}
