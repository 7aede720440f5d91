package isns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// inquiries answers entity status inquiries (RFC 4171 5.6.5.13): as long as it does, the server keeps the portals.
type inquiries struct {
	portals []Portal // with the ports at which inquiries are answered
	wg      sync.WaitGroup
}

const (
	esiConnectionsMax = 16
	esiIdle           = 2 * time.Minute
)

// startESI listens at the address of every portal, at a port of its own. Where that fails there are no inquiries.
func startESI(ctx context.Context, portals []Portal, log *slog.Logger) *inquiries {
	q := &inquiries{portals: slices.Clone(portals)}
	ports := map[netip.Addr]uint16{}
	slots := make(chan struct{}, esiConnectionsMax)
	for i := range q.portals {
		p := &q.portals[i]
		if port, ok := ports[p.Addr.Addr()]; ok {
			p.esi = port
			continue
		}
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.Addr.Addr(), 0)))
		if err != nil {
			log.Warn("iSNS: no status inquiries", "portal", p.Addr, "err", err)
			continue
		}
		p.esi = l.Addr().(*net.TCPAddr).AddrPort().Port()
		ports[p.Addr.Addr()] = p.esi
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		q.wg.Go(func() {
			defer stop()
			q.accept(ctx, l, slots, log)
		})
	}
	return q
}

func (q *inquiries) wait() { q.wg.Wait() }

func (q *inquiries) accept(ctx context.Context, l net.Listener, slots chan struct{}, log *slog.Logger) {
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second): // out of descriptors, most likely
				continue
			}
		}
		select {
		case slots <- struct{}{}:
		default: // a server needs one at a time
			_ = nc.Close()
			continue
		}
		q.wg.Go(func() {
			defer func() { <-slots }()
			defer nc.Close()
			defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
			log.Debug("iSNS status inquiries end", "peer", nc.RemoteAddr(), "err", serveESI(nc))
		})
	}
}

// serveESI answers on one connection, until it ends, and says why it did.
func serveESI(nc net.Conn) error {
	for {
		_ = nc.SetDeadline(time.Now().Add(esiIdle))
		m, err := receive(nc)
		if err != nil {
			return err
		}
		if _, err := nc.Write(answerESI(m).append(nil)); err != nil {
			return err
		}
	}
}

// answerESI repeats the inquiry's attributes (RFC 4171 5.7.5.13). Anything else is not supported.
func answerESI(m *message) *message {
	const notSupported = 15
	r := &message{function: m.function | responseBit, flags: flagClient, transaction: m.transaction, status: notSupported}
	if m.function == fnESI {
		r.status, r.attrs = 0, m.attrs
	}
	return r
}
