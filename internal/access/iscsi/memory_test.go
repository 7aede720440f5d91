package iscsi

import "testing"

// greedy wants need bytes. Once it has looked in vain and is in line again, after is called.
type greedy struct {
	b     *budget
	p     purse
	need  int64
	has   bool
	looks int
	after func()
}

func (g *greedy) letIn() {
	g.looks++
	if g.b.fits(&g.p, 0, g.need) || g.b.wait(g, &g.p, 0, g.need) {
		g.has = true
		g.b.used.Add(g.need)
		g.p.used.Add(g.need)
	} else if g.after != nil {
		g.after()
		g.after = nil
	}
}

// Memory that is given back while the line is looked after goes to who waits in it, also where it is the last that comes.
func TestMemoryGivenWhileTheLineMoves(t *testing.T) {
	const all = 8
	b := &budget{max: all, share: 1}
	b.used.Store(all)
	g := &greedy{b: b, need: 4}
	g.letIn()
	if g.has {
		t.Fatal("there was no room")
	}
	g.after = func() {
		if b.give(all - 1) {
			t.Error("two look after the line at once")
		}
	}
	if !b.give(1) {
		t.Fatal("nobody looks after the line")
	}
	b.pump()
	if !g.has || b.used.Load() != g.need {
		t.Errorf("after %d looks it has what it wants: %v; %d bytes are in use", g.looks, g.has, b.used.Load())
	}
}
