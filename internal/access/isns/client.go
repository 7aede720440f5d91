package isns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"
)

// Config is what a Client needs.
type Config struct {
	Server  string // host:port
	Entity  string // names the cluster among network entities
	Portals []Portal
	// Targets lists what there is to register, and Changed tells when that may have changed.
	Targets func() []Target
	Changed func() (events <-chan struct{}, cancel func())
	Log     *slog.Logger
}

// Chosen by us.
const (
	dialTimeout     = 5 * time.Second
	exchangeTimeout = 10 * time.Second
	goodbyeTimeout  = time.Second // of the deregistration when the node stops
	retryMin        = time.Second
	retryMax        = time.Minute
	// registerEvery registers everything anew: a server may have lost it, or have taken a portal out that was away.
	registerEvery = 5 * time.Minute
)

// Client keeps one iSNS server informed.
type Client struct {
	cfg         Config
	transaction uint16
	registered  map[string]string // aliases of targets by name, as the server knows them by this connection
}

// New makes a client; Run does everything.
func New(cfg Config) *Client { return &Client{cfg: cfg} }

// Run registers until the context ends, and then takes this node's portals out. It returns when all of its goroutines have
// ended.
func (c *Client) Run(ctx context.Context) {
	log := c.cfg.Log.With("server", c.cfg.Server)
	inquiries := startESI(ctx, c.cfg.Portals, log)
	defer inquiries.wait()
	events, cancel := c.cfg.Changed()
	defer cancel()
	delay := retryMin
	for ctx.Err() == nil {
		began := time.Now()
		err := c.connect(ctx, events, inquiries.portals)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > retryMax {
			delay = retryMin
		}
		log.Warn("iSNS", "err", err, "retry", delay)
		select {
		case <-ctx.Done():
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, retryMax)
	}
}

// connect is one connection, until it fails or the context ends.
func (c *Client) connect(ctx context.Context, events <-chan struct{}, portals []Portal) error {
	d := net.Dialer{Timeout: dialTimeout}
	nc, err := d.DialContext(ctx, "tcp", c.cfg.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Now().Add(goodbyeTimeout)) })
	defer stop()
	c.registered = nil
	anew := time.NewTicker(registerEvery)
	defer anew.Stop()
	full := true
	for {
		if err := c.update(ctx, nc, portals, full); err != nil {
			return err
		}
		full = false
		select {
		case <-ctx.Done():
			return c.goodbye(nc, portals)
		case <-events:
		case <-anew.C:
			full = true
		}
	}
}

// update tells the server what is new, or everything.
func (c *Client) update(ctx context.Context, nc net.Conn, portals []Portal, full bool) error {
	now := c.cfg.Targets()
	slices.SortFunc(now, func(a, b Target) int { return strings.Compare(a.Name, b.Name) })
	add, gone := changes(c.registered, now)
	if full {
		add = now
	}
	for _, m := range c.registration(portals, add) {
		if _, err := c.exchange(ctx, nc, &m); err != nil {
			return fmt.Errorf("registration: %w", err)
		}
	}
	for part := range slices.Chunk(gone, 100) {
		source := part[0]
		if len(now) > 0 {
			source = now[0].Name
		}
		m := c.deregistration(source, part, nil)
		if _, err := c.exchange(ctx, nc, &m); err != nil && !errors.Is(err, noSuchEntry) {
			return fmt.Errorf("deregistration: %w", err)
		}
	}
	if len(add) > 0 || len(gone) > 0 {
		c.cfg.Log.Info("iSNS registration", "server", c.cfg.Server, "targets", len(now), "registered", len(add), "gone", len(gone))
	}
	c.registered = make(map[string]string, len(now))
	for _, t := range now {
		c.registered[t.Name] = t.Alias
	}
	return nil
}

// goodbye takes the portals out. The targets are the other access servers' too, and stay until the server's registration
// period is over where nobody is left.
func (c *Client) goodbye(nc net.Conn, portals []Portal) error {
	for name := range c.registered {
		_ = nc.SetDeadline(time.Now().Add(goodbyeTimeout))
		m := c.deregistration(name, nil, portals)
		if err := c.roundTrip(nc, &m); err != nil {
			c.cfg.Log.Warn("iSNS: portals are still registered", "server", c.cfg.Server, "err", err)
			return err
		}
		return nil
	}
	return nil
}

// exchange sends a request and waits for its answer.
func (c *Client) exchange(ctx context.Context, nc net.Conn, m *message) (*message, error) {
	_ = nc.SetDeadline(time.Now().Add(exchangeTimeout))
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return m, c.roundTrip(nc, m)
}

func (c *Client) roundTrip(nc net.Conn, m *message) error {
	c.transaction++
	m.transaction = c.transaction
	if _, err := nc.Write(m.append(nil)); err != nil {
		return err
	}
	for {
		r, err := receive(nc)
		if err != nil {
			return err
		}
		if r.function != m.function|responseBit || r.transaction != m.transaction {
			continue // nothing else is asked for by this connection
		}
		if r.status != 0 {
			return StatusError(r.status)
		}
		return nil
	}
}

// receive reads one message.
func receive(r io.Reader) (*message, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	n, err := bodyLen(h[:])
	if err != nil {
		return nil, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return decode(h[:], body)
}
