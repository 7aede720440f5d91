package sim

import (
	"errors"
	"time"

	"dozo/internal/control"
	"dozo/internal/vfs"
)

// How processes end, and begin again.

// kill ends the process on the spot. What the kernel has stays.
func (n *Node) kill() {
	w := n.w
	w.net.mu.Lock()
	n.abort()
	p := n.proc
	if p == nil {
		w.net.mu.Unlock()
		return
	}
	p.dead, n.proc = true, nil
	p.inGate, p.outGate, p.callers, p.replies = nil, nil, nil, nil
	w.net.mu.Unlock()
	w.net.lost(n, true)
	w.clientsLost(n, true)
	w.wg.Go(p.bury)
}

// abort ends a process that does not serve yet. network.mu is held.
func (n *Node) abort() {
	if n.launching != nil {
		n.launching.dead = true
		n.launching.quit()
		n.launching = nil
	}
}

// powerCut ends the host: what was not synced is gone, or in parts, as a disk may have it.
func (n *Node) powerCut(percent int) {
	w := n.w
	w.net.mu.Lock()
	n.abort()
	p := n.proc
	if p != nil {
		p.dead, n.proc = true, nil
		p.inGate, p.outGate, p.callers, p.replies = nil, nil, nil, nil
	}
	n.disk = n.disk.CrashClone(vfs.Crash{Percent: percent, Rand: w.rng})
	n.boot++
	w.net.mu.Unlock()
	w.lostBytes.Store(true)
	if p != nil {
		w.net.lost(n, false)
		w.clientsLost(n, false)
		w.wg.Go(p.bury)
	}
}

// stop ends the process in good order.
func (n *Node) stop() {
	w := n.w
	p := n.proc
	if p == nil {
		return
	}
	w.wg.Go(func() {
		if p.end != nil {
			p.end()
			<-p.done
		}
		w.net.mu.Lock()
		mine := n.proc == p
		p.dead = true
		if mine {
			n.proc = nil
		}
		w.net.mu.Unlock()
		if mine {
			w.after(0, func() { w.net.lost(n, true); w.clientsLost(n, true) })
		}
		p.bury()
	})
}

// bury waits until nothing of a dead process runs any more.
func (p *Proc) bury() {
	if p.end != nil {
		p.end()
		<-p.done
		p.keep.Close()
	}
	_ = p.ctl.Close()
	_ = p.store.Close()
}

// restart starts a process again where none runs.
func (n *Node) restart() {
	w := n.w
	if n.running() != nil || n.starting || w.isOver() {
		n.again = n.starting
		return
	}
	n.starting, n.again = true, false
	w.wg.Go(func() {
		p, err := n.launch()
		if err != nil && p != nil && n.isDead(p) {
			w.after(0, n.launched)
			return
		}
		if err != nil {
			w.tracef("%v", err)
			if !errors.Is(err, control.ErrAway) {
				w.fail("start: %v", err)
				return
			}
			w.after(time.Second, func() { n.starting = false; n.restart() })
			return
		}
		p.serve()
		w.after(0, n.launched)
	})
}

// launched is the end of a launch: the process serves, or has died before it did, perhaps after somebody wanted the node up.
func (n *Node) launched() {
	n.starting = false
	if n.running() != nil {
		n.w.net.found(n)
	} else if n.again {
		n.restart()
	}
}

// pause stops a process as SIGSTOP would, as far as others can tell: what comes in waits, and so does what goes out. Its
// own timers go on, which makes it a node that is cut off and to which what was sent meanwhile arrives late.
func (n *Node) pause() {
	w := n.w
	w.net.mu.Lock()
	p := n.proc
	if p == nil || p.paused {
		w.net.mu.Unlock()
		return
	}
	p.paused = true
	w.net.mu.Unlock()
	w.after(deadAfter+time.Duration(w.rand64()%uint64(pingEvery)), func() {
		w.net.mu.Lock()
		still := p.paused && !p.dead
		w.net.mu.Unlock()
		if !still {
			return
		}
		for _, o := range w.nodes {
			if o != n {
				w.net.down(o, n, false)
			}
		}
	})
}

// resume lets a paused process go on: it reads what has come, and what it had to say goes out.
func (n *Node) resume() {
	w := n.w
	w.net.mu.Lock()
	p := n.proc
	if p == nil || !p.paused {
		w.net.mu.Unlock()
		return
	}
	p.paused = false
	in, out, callers, replies := p.inGate, p.outGate, p.callers, p.replies
	p.inGate, p.outGate, p.callers, p.replies = nil, nil, nil, nil
	for _, m := range out {
		if !m.link.broken {
			w.net.sendLocked(m)
		}
	}
	w.net.mu.Unlock()
	for _, c := range callers {
		w.serveClient(p, c)
	}
	for _, m := range in {
		p.read(m)
	}
	for _, f := range replies {
		f()
	}
}
