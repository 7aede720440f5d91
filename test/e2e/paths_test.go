//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"dozo/internal/initiator"
)

// path is a session of dozo's initiator at one node.
type path struct {
	t    *testing.T
	s    *initiator.Session
	node string
}

// dial logs in at a node's portal.
func (s *system) dial(site, n int, target, name string) *path {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), slow*30*time.Second)
	defer cancel()
	x, err := initiator.Dial(ctx, initiator.Config{Portal: s.addr(site, n) + ":3260", Target: target, Initiator: name, LoginTimeout: time.Minute, NopInterval: -1})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(x.Kill)
	return &path{s.t, x, fmt.Sprintf("s%dn%d", site, n)}
}

// run sends a command, again while the answer is BUSY, and says how it ended: good, a status, or key/ASC and ASCQ.
func (p *path) run(lun int, cdb, out []byte, in int) (data []byte, outcome string) {
	p.t.Helper()
	c := &initiator.Command{LUN: initiator.FlatLUN(lun), Out: out}
	copy(c.CDB[:], cdb)
	if in > 0 {
		c.In = make([]byte, in)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), slow*30*time.Second)
	defer cancel()
	for {
		if err := p.s.Do(ctx, c); err != nil && c.Err != nil {
			return nil, err.Error()
		}
		if c.Status != initiator.StatusBusy {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if s, ok := initiator.ParseSense(c.Sense); ok && c.Status == initiator.StatusCheckCondition {
		return nil, fmt.Sprintf("%x/%02x%02x", s.Key, s.ASC, s.ASCQ)
	}
	if c.Status != initiator.StatusGood {
		return nil, c.Status.String()
	}
	return c.In[:c.InLen], "good"
}

// told sends a command, again where the answer is a unit attention, and says how it ended.
func (p *path) told(lun int, cdb, out []byte, in int) (data []byte, outcome string) {
	p.t.Helper()
	for range 100 {
		if data, outcome = p.run(lun, cdb, out, in); !strings.HasPrefix(outcome, "6/") {
			break
		}
	}
	return data, outcome
}

// settle takes the unit attentions that wait.
func (p *path) settle(lun int) {
	p.t.Helper()
	until(p.t, p.node+" says nothing new", 20*time.Second, func() (bool, string) {
		_, got := p.run(lun, make([]byte, 6), nil, 0)
		return got == "good" || strings.HasPrefix(got, "2/040"), got // standby is an answer, too
	})
}

// states is REPORT TARGET PORT GROUPS (SPC-4 6.37): the state of each group, by its number.
func (p *path) states() map[uint16]byte {
	p.t.Helper()
	d, got := p.told(0, []byte{0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 4, 0}, nil, 1024)
	if got != "good" || len(d) < 4 {
		p.t.Fatalf("REPORT TARGET PORT GROUPS at %s: %s, %x", p.node, got, d)
	}
	list := map[uint16]byte{}
	for d = d[4:]; len(d) >= 8 && len(d) >= 8+4*int(d[7]); d = d[8+4*int(d[7]):] {
		list[binary.BigEndian.Uint16(d[2:])] = d[0] & 0x0f
	}
	return list
}

// group is the target port group of the path (SPC-4 7.8.6.8).
func (p *path) group() uint16 {
	p.t.Helper()
	d, got := p.told(0, []byte{0x12, 1, 0x83, 2, 0}, nil, 512)
	for d = d[min(4, len(d)):]; len(d) >= 8 && len(d) >= 4+int(d[3]); d = d[4+int(d[3]):] {
		if d[1]&0x0f == 5 {
			return binary.BigEndian.Uint16(d[6:])
		}
	}
	p.t.Fatalf("page 83h at %s: %s, no target port group", p.node, got)
	return 0
}

// take asks for the volume by SET TARGET PORT GROUPS (SPC-4 6.45).
func (p *path) take() string {
	p.t.Helper()
	g := p.group()
	_, got := p.told(0, []byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8}, []byte{0, 0, 0, 0, 0, 0, byte(g >> 8), byte(g)}, 0)
	return got
}

// TestPaths: access states of four paths to two sites, as the owner and the policy make them, SET TARGET PORT GROUPS, a
// takeover, LUN maps and redirected logins, between real nodes.
func TestPaths(t *testing.T) {
	s := start(t, 2, 2)
	const (
		optimized, nonOptimized, standby = 0x0, 0x1, 0x2

		read10, write10 = 0x28, 0x2a
	)
	iqn := s.create("v", "64M")
	var all []*path
	groups := map[string]uint16{}
	for site := 1; site <= 2; site++ {
		for n := 1; n <= 2; n++ {
			p := s.dial(site, n, iqn, fmt.Sprintf("iqn.2026-11.test:s%dn%d", site, n))
			p.settle(0)
			groups[p.node] = p.group()
			all = append(all, p)
		}
	}
	at := func(name string) *path {
		return all[slices.IndexFunc(all, func(p *path) bool { return p.node == name })]
	}
	// holds waits until a path reports the states that follow from who owns the volume: on a machine that stalls, another
	// server of the site may have taken it over.
	holds := func(by *path, remote byte) {
		t.Helper()
		until(t, "states as "+by.node+" reports them", 20*time.Second, func() (bool, string) {
			by.settle(0)
			owner, got := s.show("v").Volume.Owner, by.states()
			for name, g := range groups {
				want := byte(nonOptimized)
				switch {
				case name == owner:
					want = optimized
				case siteOf(name) != siteOf(owner):
					want = remote
				}
				if got[g] != want {
					return false, fmt.Sprintf("owner %s, groups %v: %v", owner, groups, got)
				}
			}
			return len(got) == len(groups), fmt.Sprint(got)
		})
	}
	for _, p := range all {
		holds(p, nonOptimized)
	}
	block := bytes.Repeat([]byte("path"), 128)
	write := func(lba byte) []byte { return []byte{write10, 0, 0, 0, 0, lba, 0, 0, 1} }
	read := func(lba byte) []byte { return []byte{read10, 0, 0, 0, 0, lba, 0, 0, 1} }
	for i, p := range all {
		if _, got := p.told(0, write(byte(i)), block, 0); got != "good" {
			t.Errorf("write at %s: %s", p.node, got)
		}
	}

	// Standby at the other site: initiators are told (SPC-4 5.16.2.5), and commands but a few end (5.16.2.4.4).
	for _, p := range all {
		p.settle(0)
	}
	s.dozo("volume", "set", "v", "--alua-remote", "standby")
	for _, p := range all {
		until(t, p.node+" is told of the states", 20*time.Second, func() (bool, string) {
			_, got := p.run(0, make([]byte, 6), nil, 0)
			return got == "6/2a06", got
		})
		holds(p, standby)
	}
	owner := s.show("v").Volume.Owner
	far := all[slices.IndexFunc(all, func(p *path) bool { return siteOf(p.node) != siteOf(owner) })]
	if _, got := far.told(0, read(0), nil, 512); got != "2/040b" {
		t.Errorf("read at a standby path: %s", got)
	}
	// The standby path asks for the volume: it comes to the other site, and what was there is there.
	if got := far.take(); got != "good" {
		t.Fatalf("SET TARGET PORT GROUPS at %s: %s", far.node, got)
	}
	for again := 0; s.show("v").Volume.Owner != far.node; again++ { // twice would be no accident
		if got := far.take(); got != "good" || again > 1 {
			t.Fatalf("the owner is %s, %s has asked: %s", s.show("v").Volume.Owner, far.node, got)
		}
	}
	for _, p := range all {
		holds(p, standby)
	}
	if got, how := far.told(0, read(3), nil, 512); how != "good" || !bytes.Equal(got, block) {
		t.Errorf("read after the hand-over: %s", how)
	}
	if _, got := at(owner).told(0, write(0), block, 0); got != "2/040b" {
		t.Errorf("write at the former owner, which is standby: %s", got)
	}

	// The owner dies: its neighbour is optimized, and says so.
	s.kill(far.node)
	all = slices.DeleteFunc(all, func(p *path) bool { return p == far })
	near := all[slices.IndexFunc(all, func(p *path) bool { return siteOf(p.node) == siteOf(far.node) })]
	until(t, near.node+" is the owner", 20*time.Second, func() (bool, string) { now := s.show("v").Volume.Owner; return now == near.node, now })
	holds(near, standby)
	if got, how := near.told(0, read(3), nil, 512); how != "good" || !bytes.Equal(got, block) {
		t.Errorf("read after the takeover: %s", how)
	}

	// Logins are sent to the owner where the policy says so (RFC 7143 11.13.5).
	s.dozo("volume", "set", "v", "--redirect", "owner", "--alua-remote", "nonoptimized")
	until(t, "a login at another site is served by the owner", 20*time.Second, func() (bool, string) {
		p := s.dial(1, 1, iqn, "iqn.2026-11.test:sent")
		defer p.s.Kill()
		p.settle(0)
		text := s.dozo("session", "list", "--volume", "v")
		for line := range strings.Lines(text) {
			if strings.Contains(line, "iqn.2026-11.test:sent") {
				return strings.Contains(line, near.node), line
			}
		}
		return false, text
	})

	// LUNs of a host: what is mapped is there, read-only where it is to be, and a change brings the attention.
	s.create("lun", "16M")
	const host = "iqn.2026-11.test:host"
	s.dozo("host", "add", "h", "--initiator", host)
	var m struct{ IQN string }
	s.ask("", &m, "volume", "map", "v", "h", "--lun", "3")
	h := s.dial(1, 2, m.IQN, host)
	h.settle(3)
	if got, how := h.told(3, read(3), nil, 512); how != "good" || !bytes.Equal(got, block) {
		t.Errorf("read of LUN 3: %s", how)
	}
	s.dozo("volume", "map", "lun", "h", "--lun", "5", "--read-only")
	until(t, "the host is told of LUN 5", 20*time.Second, func() (bool, string) {
		_, got := h.run(3, make([]byte, 6), nil, 0)
		return got == "6/3f0e", got
	})
	h.settle(5)
	if _, got := h.told(5, write(0), block, 0); got != "7/2700" {
		t.Errorf("write of a LUN that is mapped read-only: %s", got)
	}
	s.dozo("volume", "unmap", "v", "h")
	until(t, "LUN 3 is gone", 20*time.Second, func() (bool, string) {
		_, got := h.told(3, read(3), nil, 512)
		return got == "5/2500", got
	})
	if _, got := h.told(5, read(0), nil, 512); got != "good" {
		t.Errorf("read of the LUN that stays: %s", got)
	}
}
