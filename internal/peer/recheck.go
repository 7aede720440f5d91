package peer

import (
	"fmt"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Recheck asks Options.Identify again for every accepted connection and ends those that it refuses now: to
// be called when certificates have been revoked. A connection without TLS stays only beside one with TLS of
// the same process that was found good.
func (s *Server) Recheck() {
	type process struct {
		node     ident.NodeName
		instance uint64
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	good := make(map[process]bool)
	for l := range s.mu.links {
		if l.recheck(&s.opt) {
			good[process{l.from.Node, l.from.Instance}] = true
		}
	}
	for l := range s.mu.links {
		if l.sock.tls == nil && !s.opt.Insecure && !good[process{l.from.Node, l.from.Instance}] {
			l.fail(fmt.Errorf("no encrypted connection of %s vouches for this one any more", l.from.Node))
		}
	}
}

// Recheck does the same for connections that were dialled.
func (p *Pool) Recheck() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.mu.peers {
		control := q.slots[wire.ClassControl][0].link.Load()
		good := control != nil && control.recheck(&p.opt)
		for _, slots := range q.slots {
			for i := range slots {
				c := slots[i].link.Load()
				if c == nil || c == control || c.recheck(&p.opt) || p.opt.Insecure {
					continue
				}
				if c.sock.tls == nil && !good {
					c.fail(fmt.Errorf("no encrypted connection to %s vouches for this one any more", q.addr().Node))
				}
			}
		}
	}
}

// recheck reports that the link has TLS and that its certificate still counts; if not, it ends the link.
func (l *link) recheck(o *Options) bool {
	if l.sock.tls == nil {
		return false
	}
	if _, err := o.Identify(l.sock.tls.ConnectionState()); err != nil {
		l.fail(fmt.Errorf("certificate: %w", err))
		return false
	}
	return true
}
