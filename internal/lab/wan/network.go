package wan

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// SitesMax bounds a network: paths are the square of it.
const SitesMax = 16

// Network is the state of all queues and of all that is under way. It is not safe for concurrent use.
type Network struct {
	sites    int
	up, down []line
	paths    []path // [from*sites+to]
	pending  events
	sink     Sink
	rnd      *rand.Rand
	now      Time
}

type path struct {
	Path
	line
	last  Time // when the last packet in order arrives: none behind it arrives earlier
	stats PathStats
}

// What follows a line.
const (
	thenPath = iota // an access link up: the path's queue
	thenFar         // a path's queue: the distance
	thenSite        // an access link down: the site
)

// New makes a network of that many sites without rates, delays or losses.
func New(sites int, seed uint64, sink Sink) (*Network, error) {
	if sites < 1 || sites > SitesMax {
		return nil, fmt.Errorf("%d sites: want 1 to %d", sites, SitesMax)
	}
	n := &Network{
		sites: sites, up: make([]line, sites), down: make([]line, sites), paths: make([]path, sites*sites),
		sink: sink, rnd: rand.New(rand.NewPCG(seed, seed^0x9e3779b97f4a7c15)),
	}
	for i := range n.up {
		n.up[i].next, n.up[i].at = thenPath, i
		n.down[i].next, n.down[i].at = thenSite, i
	}
	for i := range n.paths {
		n.paths[i].line.next, n.paths[i].line.at = thenFar, i
	}
	return n, nil
}

func (n *Network) path(from, to int) *path { return &n.paths[from*n.sites+to] }

// Path gives the settings of a direction.
func (n *Network) Path(from, to int) Path { return n.path(from, to).Path }

// SetPath changes a direction from now on. What waits in its queue is sent at the new rate, and stays even if the new
// buffer is smaller; what is under way arrives as it would have, unless the path is cut.
func (n *Network) SetPath(now Time, from, to int, p Path) {
	n.Advance(now)
	at := n.path(from, to)
	at.Path = p
	n.setLine(&at.line, p.Line, p.Delay)
}

// Access gives the settings of a site's access link.
func (n *Network) Access(site int) (up, down Line) { return n.up[site].Line, n.down[site].Line }

// SetAccess changes a site's access link from now on.
func (n *Network) SetAccess(now Time, site int, up, down Line) {
	n.Advance(now)
	n.setLine(&n.up[site], up, 0)
	n.setLine(&n.down[site], down, 0)
}

func (n *Network) setLine(l *line, to Line, delay time.Duration) {
	l.Line, l.limit = to, to.Buffer
	if l.limit == 0 {
		l.limit = AutoBuffer(to.Rate, delay)
	}
	// The run in service ends as it was begun. Without a rate, what waits behind it leaves with it.
}

// Stats gives the counts of a direction and of its queue.
func (n *Network) Stats(from, to int) (PathStats, QueueStats) {
	p := n.path(from, to)
	return p.stats, p.line.snapshot(n.now)
}

// AccessStats gives the counts of a site's access link.
func (n *Network) AccessStats(site int) (up, down QueueStats) {
	return n.up[site].snapshot(n.now), n.down[site].snapshot(n.now)
}

func (l *line) snapshot(now Time) QueueStats {
	s := l.stats
	s.Bytes = l.waiting(now)
	return s
}

// Next is when something happens without anything being sent; Never if nothing does.
func (n *Network) Next() Time {
	if len(n.pending.list) == 0 {
		return Never
	}
	return n.pending.list[0].at
}

// Advance carries out what was due up to now.
func (n *Network) Advance(now Time) {
	for len(n.pending.list) > 0 && n.pending.list[0].at <= now {
		e := n.pending.pop()
		n.now = e.at
		switch e.kind {
		case evServed:
			n.served(e.line, e.at)
		case evArrived:
			n.arrived(e.at, e.run)
		}
	}
	n.now = max(n.now, now)
}

// Send puts a run into the network at its site's access link. It is called with the time of the last Advance
// or later.
func (n *Network) Send(now Time, r Run) {
	n.Advance(now)
	n.path(int(r.From), int(r.To)).stats.Sent += uint64(r.Count)
	n.enter(&n.up[r.From], now, r)
	n.Advance(now) // where nothing holds it, it arrives at once
}

func (n *Network) drop(r Run, why Cause) {
	s := &n.path(int(r.From), int(r.To)).stats
	switch why {
	case DropQueue:
		s.DroppedQueue += uint64(r.Count)
	case DropLoss:
		s.Lost += uint64(r.Count)
	case DropCut:
		s.DroppedCut += uint64(r.Count)
	}
	n.sink.Drop(r, why)
}

// enter puts a run at the end of a line's queue, or what of it fits.
func (n *Network) enter(l *line, now Time, r Run) {
	if l.Rate == 0 && !l.serving {
		l.passed(&r)
		n.leave(l, now, r)
		return
	}
	if l.Rate != 0 {
		ok := l.admit(now, &r)
		if ok < r.Count {
			l.stats.Dropped += uint64(r.Count - ok)
			if ok == 0 {
				n.drop(r, DropQueue)
				return
			}
			var rest Run
			r, rest = r.cut(ok)
			n.drop(rest, DropQueue)
		}
	}
	l.bytes += r.Bytes()
	l.queue.push(r)
	if !l.serving {
		n.serve(l, now)
	}
	l.stats.BytesMax = max(l.stats.BytesMax, l.waiting(now))
}

func (l *line) passed(r *Run) {
	l.stats.Passed += uint64(r.Count)
	l.stats.PassedBytes += uint64(r.Bytes())
}

// serve begins to send the first run of the queue, or what of it leaves together.
func (n *Network) serve(l *line, now Time) {
	l.serving = false
	for l.queue.len() > 0 {
		if l.Rate == 0 {
			r := l.queue.pop()
			l.bytes -= r.Bytes()
			l.passed(&r)
			n.leave(l, now, r)
			continue
		}
		head := l.queue.head()
		if c := l.slice(head); c < head.Count {
			l.part, *head = head.cut(c)
		} else {
			l.part = l.queue.pop()
		}
		l.serving, l.began = true, now
		n.pending.push(event{at: now.Add(l.Rate.duration(l.part.Bytes())), kind: evServed, line: l})
		return
	}
}

// served: what a line was sending has been sent.
func (n *Network) served(l *line, now Time) {
	part := l.part
	l.bytes -= part.Bytes()
	l.passed(&part)
	n.leave(l, now, part) // before those behind it, which may leave at once
	n.serve(l, now)
}

// leave hands a run on that a line has sent.
func (n *Network) leave(l *line, now Time, r Run) {
	switch l.next {
	case thenPath:
		p := n.path(int(r.From), int(r.To))
		if p.Cut {
			n.drop(r, DropCut)
			return
		}
		n.enter(&p.line, now, r)
	case thenFar:
		n.travel(&n.paths[l.at], now, r)
	case thenSite:
		p := n.path(int(r.From), int(r.To))
		if p.Cut {
			n.drop(r, DropCut)
			return
		}
		p.stats.Delivered += uint64(r.Count)
		p.stats.DeliveredBytes += uint64(r.Bytes())
		n.sink.Deliver(r, now)
	}
}

// travel sends a run over the distance: cut into what is lost, what is held back, and the rest.
func (n *Network) travel(p *path, now Time, r Run) {
	if p.Cut {
		n.drop(r, DropCut)
		return
	}
	if p.Loss == 0 && p.Reorder == 0 {
		n.fly(p, now, r, 0)
		return
	}
	// One draw a segment; neighbours with the same fate stay one run.
	fate := n.fate(p)
	for {
		same, next := uint16(1), fate
		for same < r.Count {
			if next = n.fate(p); next != fate {
				break
			}
			same++
		}
		if same == r.Count {
			n.meet(p, now, r, fate)
			return
		}
		var part Run
		part, r = r.cut(same)
		n.meet(p, now, part, fate)
		fate = next
	}
}

// What becomes of a segment on the way.
const (
	fateArrive = iota
	fateLost
	fateHeld
)

func (n *Network) fate(p *path) int {
	if p.Loss > 0 && n.rnd.Float64() < p.Loss {
		return fateLost
	}
	if p.Reorder > 0 && n.rnd.Float64() < p.Reorder {
		return fateHeld
	}
	return fateArrive
}

func (n *Network) meet(p *path, now Time, r Run, fate int) {
	switch fate {
	case fateLost:
		n.drop(r, DropLoss)
	case fateHeld:
		p.stats.Reordered += uint64(r.Count)
		n.fly(p, now, r, p.ReorderBy)
	default:
		n.fly(p, now, r, 0)
	}
}

// fly lets a run arrive after the path's delay. One that is held back is no measure for those behind it.
func (n *Network) fly(p *path, now Time, r Run, held time.Duration) {
	d := p.Delay
	if p.Jitter > 0 {
		d = max(0, d+time.Duration((n.rnd.Float64()*2-1)*float64(p.Jitter)))
	}
	at := max(now.Add(d), p.last)
	if held == 0 {
		p.last = at
	}
	n.pending.push(event{at: at.Add(held), kind: evArrived, run: r})
}

func (n *Network) arrived(now Time, r Run) {
	if p := n.path(int(r.From), int(r.To)); p.Cut {
		n.drop(r, DropCut)
		return
	}
	n.enter(&n.down[r.To], now, r)
}
