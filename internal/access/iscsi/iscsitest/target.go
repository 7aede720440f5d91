package iscsitest

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
	"dozo/internal/ident"
)

// Provider serves disks in memory: one target for each name, its disks at LUN 0 and up. It is an
// iscsi.Provider; its fields are set before it is used.
type Provider struct {
	Disks map[string][]*Disk // by target name
	// Address is what SendTargets tells; Start sets it.
	Address string
	// Login, if set, may refuse.
	LoginHook func(p iscsi.Peer, target string) error
	// AdmitHook, if set, may refuse a connection that joins a session.
	AdmitHook func(p iscsi.Peer) error
	// Alias is what targets call themselves.
	Alias string
	// Auth, if set, says how peers prove themselves.
	Auth func(p iscsi.Peer, target string) iscsi.Credentials
	// AbortHook, if set, is called for every abort and reset; the answer waits for done.
	AbortHook func(what string, done func(error))

	mu        sync.Mutex
	barred    []uint64
	loggedOut []uint64
	sessions  map[*iscsi.Session]bool
	opened    int
	tick      atomic.Uint64
}

// Tick moves the clock of Stamps; it only moves so.
func (p *Provider) Tick() { p.tick.Add(1) }

// Sessions says how many sessions are open and how many ever were.
func (p *Provider) Sessions() (open, ever int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sessions), p.opened
}

// Seen gives the connections that were barred for, by their logins, and those whose sessions have logged out.
func (p *Provider) Seen() (barred, loggedOut []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.barred), slices.Clone(p.loggedOut)
}

// Targets lists all targets.
func (p *Provider) Targets(_ context.Context, peer iscsi.Peer) ([]iscsi.TargetInfo, error) {
	var all []iscsi.TargetInfo
	for name := range p.Disks {
		all = append(all, iscsi.TargetInfo{Name: name, Portals: []iscsi.Portal{{Address: p.Address, Group: peer.Group}}})
	}
	return all, nil
}

// Credentials asks for none unless Auth says so.
func (p *Provider) Credentials(_ context.Context, peer iscsi.Peer, target string) (iscsi.Credentials, error) {
	if p.Auth != nil {
		return p.Auth(peer, target), nil
	}
	return iscsi.Credentials{}, nil
}

// Login opens a target.
func (p *Provider) Login(_ context.Context, peer iscsi.Peer, name string, _ [6]byte) (iscsi.Target, error) {
	if p.LoginHook != nil {
		if err := p.LoginHook(peer, name); err != nil {
			return nil, err
		}
	}
	disks, ok := p.Disks[strings.ToLower(name)]
	if !ok {
		return nil, iscsi.ErrTargetNotFound
	}
	return &target{p: p, disks: disks}, nil
}

// Opened and Closed keep count.
func (p *Provider) Opened(s *iscsi.Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sessions == nil {
		p.sessions = map[*iscsi.Session]bool{}
	}
	p.sessions[s] = true
	p.opened++
}

// Closed forgets a session.
func (p *Provider) Closed(s *iscsi.Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s)
}

// target is one session's view.
type target struct {
	p     *Provider
	disks []*Disk
}

func (t *target) Admits(peer iscsi.Peer) error {
	if t.p.AdmitHook == nil {
		return nil
	}
	return t.p.AdmitHook(peer)
}

func (t *target) Units() []scsi.UnitConfig {
	units := make([]scsi.UnitConfig, len(t.disks))
	for i, d := range t.disks {
		units[i] = scsi.UnitConfig{LUN: uint16(i), Disk: d}
	}
	return units
}

func (t *target) Stamp() scsi.Stamp {
	return scsi.Stamp{Epoch: ident.Epoch{Number: 1}, Tick: t.p.tick.Load()}
}

func (t *target) Bar(_ context.Context, _ reserve.NexusID, conn uint64) error {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.p.barred = append(t.p.barred, conn)
	return nil
}

func (t *target) Logout(_ context.Context, _ reserve.NexusID, conn uint64) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.p.loggedOut = append(t.p.loggedOut, conn)
}

func (t *target) hook(what string, done func(error)) {
	if t.p.AbortHook != nil {
		t.p.AbortHook(what, done)
		return
	}
	done(nil)
}

func (t *target) AbortTask(_ scsi.RequestID, done func(error)) { t.hook("abort task", done) }
func (t *target) ResetLUN(_ reserve.NexusID, _ uint16, done func(error)) {
	t.hook("reset lun", done)
}
func (t *target) ClearTaskSet(_ reserve.NexusID, _ uint16, done func(error)) {
	t.hook("clear task set", done)
}
func (t *target) AbortTaskSet(_ reserve.NexusID, _ uint16, done func(error)) {
	t.hook("abort task set", done)
}
func (t *target) Close() {}

// Alias implements iscsi.Alias.
func (t *target) Alias() string { return t.p.Alias }

// Portal is a running server.
type Portal struct {
	Server   *iscsi.Server
	Provider *Provider
	Address  string
	done     chan struct{}
}

// Start serves a provider at an address of loopback (":0" picks a port). change, if not nil, may alter the
// server's configuration.
func Start(p *Provider, address string, log *slog.Logger, change func(*iscsi.Config)) (*Portal, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	p.Address = l.Addr().String()
	cfg := iscsi.Config{Provider: p, Log: log, Group: 1}
	if change != nil {
		change(&cfg)
	}
	portal := &Portal{Server: iscsi.New(cfg), Provider: p, Address: p.Address, done: make(chan struct{})}
	go func() {
		defer close(portal.done)
		_ = portal.Server.Serve(l) // ends with Close
	}()
	return portal, nil
}

// Close stops the server and waits for everything of it to end.
func (p *Portal) Close() {
	_ = p.Server.Close()
	<-p.done
}
