package sim

// A session is what a client and an access server have of each other: a stream each way, by which everything arrives in order or
// not at all, and the book that the target keeps of what the client has had (R9).

import (
	"context"
	"fmt"
	"sync"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/iscsi/proof"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
	"dozo/internal/wire"
)

// session is one login of a client by one path, as both sides know it.
type session struct {
	c     *client
	node  *Node
	proc  *Proc
	id    uint64
	nexus wire.Nexus
	vol   *access.Volume
	in    bool
	stamp wire.Stamp // of the newest message from the target that the client has
	exp   uint32     // ExpStatSN: what the client has of what has a number
	there target
	lost  chan struct{} // closed when the client knows that the session is over
	out   time.Duration // when the last message to the target arrives
	back  time.Duration
	n     uint64
	last  uint64        // number of the newest command's request
	stuck time.Duration // until when nothing gets to the target; guarded by network.mu
}

// target is what the access server keeps of a session.
type target struct {
	mu     sync.Mutex
	stream proof.Stream
	pings  uint32
	over   bool // the client's end of it has been read
}

// told notes a message with a number that the target makes now.
func (t *target) told(at wire.Stamp) (statSN uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stream.Told(scsi.Stamp(at))
}

// proved is the stamp of a command that comes with an ExpStatSN.
func (t *target) proved(exp uint32) wire.Stamp {
	t.mu.Lock()
	defer t.mu.Unlock()
	return wire.Stamp(t.stream.Expects(exp))
}

// clientMessage is what a client has sent. f runs where the process has read it.
type clientMessage struct {
	s *session
	f func(*Proc)
}

// clientDelay is how long a message of a session is under way.
func (w *World) clientDelay(s *session) time.Duration {
	s.n++
	d := 60*time.Microsecond + time.Duration(fraction(w.plan.Seed, s.id, s.n, 7)*float64(200*time.Microsecond))
	if s.c.site != s.node.site {
		d += w.plan.Distance
	}
	return d
}

// toTarget has f run at the target once the message has arrived and its process has read it; never, if it dies before.
func (w *World) toTarget(s *session, f func(*Proc)) {
	w.net.mu.Lock()
	s.out = max(s.out+time.Microsecond, w.now()+w.clientDelay(s))
	at := s.out
	w.net.mu.Unlock()
	m := &clientMessage{s, f}
	w.at(at, func() { w.arriveAtTarget(m) })
}

func (w *World) arriveAtTarget(m *clientMessage) {
	w.net.mu.Lock()
	p := m.s.proc
	switch {
	case p.dead:
		w.net.mu.Unlock()
		return
	case w.now() < m.s.stuck:
		at := m.s.stuck
		w.net.mu.Unlock()
		w.at(at, func() { w.arriveAtTarget(m) })
		return
	case w.clientBlocked(m.s):
		w.net.mu.Unlock()
		w.after(200*time.Millisecond, func() { w.arriveAtTarget(m) }) // sent again by the kernel
		return
	case p.paused:
		p.callers = append(p.callers, m)
		w.net.mu.Unlock()
		return
	}
	w.net.mu.Unlock()
	w.serveClient(p, m)
}

func (w *World) serveClient(p *Proc, m *clientMessage) {
	w.trace.add(w.now(), "cmd", m.s.id, m.s.n, 0)
	w.wg.Go(func() { m.f(p) })
}

// toClient has f run at the client. What a paused process says goes out when it wakes.
func (w *World) toClient(s *session, p *Proc, f func()) {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	if p.dead {
		return
	}
	if p.paused {
		p.replies = append(p.replies, func() { w.toClient(s, p, f) })
		return
	}
	s.back = max(s.back+time.Microsecond, w.now()+w.clientDelay(s))
	var arrive func()
	arrive = func() {
		w.net.mu.Lock()
		blocked := w.clientBlocked(s)
		w.net.mu.Unlock()
		if blocked {
			w.after(200*time.Millisecond, arrive)
			return
		}
		f()
	}
	w.at(s.back, arrive)
}

// clientBlocked reports that no message gets from the session's one end to the other.
func (w *World) clientBlocked(s *session) bool { return w.clientCuts[[2]int{s.c.id, s.node.index}] > 0 }

// clientsLost tells clients that the process of their session is gone, if its host says so.
func (w *World) clientsLost(n *Node, says bool) {
	if !says {
		return
	}
	for _, c := range w.clients {
		for _, s := range c.paths {
			if s.node == n {
				w.after(w.clientDelay(s), func() { s.end() })
			}
		}
	}
}

// end is the client's knowledge that the session is over.
func (s *session) end() {
	s.c.w.net.mu.Lock()
	was := s.isLost()
	if !was {
		close(s.lost)
	}
	s.c.w.net.mu.Unlock()
	if !was && s.proc != nil {
		s.c.w.toTarget(s, func(*Proc) {
			s.there.mu.Lock()
			s.there.over = true
			s.there.mu.Unlock()
		})
	}
}

func (s *session) isLost() bool {
	select {
	case <-s.lost:
		return true
	default:
		return false
	}
}

// login begins a session by path i; false if that did not work out.
func (c *client) login(i int) bool {
	w := c.w
	old := c.paths[i]
	p := old.node.running()
	if p == nil || p.srv == nil {
		return false
	}
	c.number++
	s := &session{c: c, node: old.node, proc: p, id: uint64(c.id+1)<<48 | uint64(i)<<40 | c.number, lost: make(chan struct{})}
	s.nexus = access.NexusOf(reserve.NexusID{Initiator: fmt.Sprintf("iqn.2026-11.sim:%d", c.id), ISID: [6]byte{byte(c.id), c.isid}, Port: uint16(old.node.index + 1)})
	c.paths[i] = s
	got := make(chan answer, 1)
	w.toTarget(s, func(p *Proc) {
		vol, ok := p.srv.Volume(w.vol.ID)
		if !ok {
			return
		}
		vol.Open()
		ctx, cancel := context.WithTimeout(context.Background(), loginMax)
		defer cancel()
		err := vol.Bar(ctx, &wire.Bar{Kind: wire.BarLogin, Nexus: s.nexus, Session: s.id})
		s.vol = vol
		stamp := vol.Stamp()
		s.there.stream.Start(1)
		sn := s.there.told(stamp)
		w.toClient(s, p, func() { got <- answer{err: err, stamp: stamp, statSN: sn} })
	})
	select {
	case a := <-got:
		if a.err == nil {
			s.stamp, s.exp, s.in = a.stamp, a.statSN+1, true
			if c.rejoined = w.chain.newest(); c.joined == 0 {
				c.joined, c.shown = w.chain.newestSeq(), w.calm()
			}
			w.stats.add("client: logins", 1)
			w.logins.Add(1)
			w.ping(s)
			return true
		}
	case <-s.lost:
	case <-time.After(loginMax + 500*time.Millisecond):
	case <-w.over:
	}
	s.end()
	return false
}

// ping has the target tell its stamp every second and the client echo that, until the target has heard that the session is over, or has
// nothing of the client for too long.
func (w *World) ping(s *session) {
	var ended time.Duration
	var again func()
	again = func() {
		w.net.mu.Lock()
		asleep, dead := s.proc.paused, s.proc.dead
		w.net.mu.Unlock()
		t := &s.there
		t.mu.Lock()
		over := t.over
		t.mu.Unlock()
		if s.isLost() && ended == 0 {
			ended = w.now()
		}
		if dead || over || ended != 0 && w.now() > ended+pingPatience || w.isOver() {
			return
		}
		if !asleep {
			stamp := s.vol.Stamp()
			t.mu.Lock()
			t.pings++
			n := t.pings
			t.stream.Pinged(n, scsi.Stamp(stamp))
			t.mu.Unlock()
			w.toClient(s, s.proc, func() {
				if s.isLost() {
					return
				}
				s.told(stamp, 0)
				w.toTarget(s, func(*Proc) {
					t.mu.Lock()
					defer t.mu.Unlock()
					t.stream.Echoed(n)
				})
			})
		}
		w.after(pingClients, again)
	}
	w.after(pingClients, again)
}

// told takes what has reached the client; a ping uses no number up.
func (s *session) told(stamp wire.Stamp, statSN uint32) {
	if s.stamp.Epoch.Less(stamp.Epoch) || s.stamp.Epoch == stamp.Epoch && s.stamp.Tick < stamp.Tick {
		s.stamp = stamp
	}
	s.exp = max(s.exp, statSN+1)
}

// abortTask is about the newest command of a session, with all the requests that it may have become.
func (s *session) abortTask() *wire.Bar {
	return &wire.Bar{Kind: wire.BarAbortTask, Nexus: s.nexus, Forwarder: s.id, Session: s.id, First: s.last, Last: s.last + 1<<requestBits - 1}
}
