package access

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// ackLoad is clients at every node of a volume with an acknowledgement policy.
type ackLoad struct {
	n       *nodes
	v       control.VolumeSpec
	clients []*linearClient
	stop    chan struct{}
	wg      sync.WaitGroup
}

func (n *nodes) ackLoad(t *testing.T, v control.VolumeSpec, seed uint64, rec *blockHistory) *ackLoad {
	t.Helper()
	l := &ackLoad{n: n, v: v, stop: make(chan struct{})}
	for _, x := range n.list {
		vol := x.volumeAt(v)
		vol.Open()
		t.Cleanup(vol.Close)
		eventually(t, "a stamp", func() bool { return vol.Stamp().Tick != 0 })
	}
	for i := range 5 {
		c := &linearClient{n: n, id: i, v: v.ID, rng: rand.New(rand.NewPCG(seed, uint64(i))), rec: rec, seen: map[int]blockState{}}
		l.clients = append(l.clients, c)
		l.wg.Go(func() { c.run(t, linearBlocks, l.stop) })
	}
	return l
}

// end stops the clients; they must have had so many answers, and no errors unless they may have had some.
func (l *ackLoad) end(t *testing.T, least int, errors bool) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	answers := 0
	for _, c := range l.clients {
		answers += c.answers
		for _, err := range c.failed {
			if !errors {
				t.Errorf("client %d: %v", c.id, err)
			}
		}
	}
	if answers < least {
		t.Errorf("only %d answers", answers)
	}
}

func linearizable(t *testing.T, seed uint64, rec *blockHistory) {
	t.Helper()
	if res, _ := porcupine.CheckOperationsVerbose(blockModel, rec.ops, time.Minute); res != porcupine.Ok {
		t.Errorf("seed %d: the history of %d commands is not linearizable: %v", seed, len(rec.ops), res)
	}
}

// A volume with the policy is handed over under load, within its sites and between them: not one command fails, the key
// says what it said, each owner goes by it from its first answer, and the key is never changed ahead of the old one's stop.
func TestAHandOverOfAVolumeThatWaitsForOtherSites(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		rec := &blockHistory{}
		synctest.Test(t, func(t *testing.T) {
			n := newNodes(t, 3, 2, time.Second)
			n.limit.SegmentBytes = 128 << 10
			k := 1 + int(seed%2)
			v := n.ackVolume(3, k, "")
			n.served(t, v)
			n.onHandOver = func(_ *node, m *wire.HandOver, done bool) {
				if m.Step == wire.HandTake && !done && (int(m.Ack) != k || len(m.Tail) > 0) {
					t.Errorf("the taker is told %d sites, and to wait for %v", m.Ack, m.Tail)
				}
			}
			l := n.ackLoad(t, v, seed, rec)
			for i, site := range []ident.SiteID{1, 2, 2, 3, 1} {
				time.Sleep(tickEvery + 300*time.Millisecond)
				x := n.owner(v.ID, nil)
				y := n.other(x, site)
				if r, err := x.moveTo(v, y.name, 0); err != nil || r.Taker != y.name {
					t.Fatalf("move %d, %s to %s: %+v, %v", i, x.name, y.name, r, err)
				}
				o := y.srv.Load().Owners()[0]
				o.ask(func() {
					if a := &o.ack; a.word != k || a.rule.Need() != k || len(a.sites) != 2 || a.kept {
						t.Errorf("move %d: the new owner goes by %d, of %v; the key says %d", i, a.rule.Need(), a.sites, a.word)
					}
				})
				if s := n.listed(v); s.Ack != k {
					t.Errorf("move %d: the key says %d", i, s.Ack)
				}
			}
			time.Sleep(300 * time.Millisecond)
			l.end(t, 300, false)
			n.stopAll()
		})
		linearizable(t, seed, rec)
	}
}

// While commands wait for other sites the volume is not handed over, neither within the site nor to one that lacks
// something: the owner goes on as it was, and the writes go on once a site is back. Then it is.
func TestNoHandOverWhileWritesWaitForOtherSites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second)
		v := n.ackVolume(2, 1, "")
		x := n.served(t, v)
		o := x.srv.Load().Owners()[0]
		eventually(t, "a write", func() bool { return writeAt(o, 0, filled(1), false) == nil })
		n.killSite(2)
		write := writeOp(0, filled(2))
		answer := send(o, write)
		if !ackWaits(t, o, write, answer) {
			t.Fatal("a write is answered without the other site")
		}
		for _, y := range []*node{n.other(x, 1), n.other(x, 2)} {
			if _, err := x.moveTo(v, y.name, 0); err == nil {
				t.Errorf("handed over to %s", y.name)
			}
			if n.owner(v.ID, nil) != x || len(answer) > 0 {
				t.Errorf("after the attempt with %s: owner %v, %d answers", y.name, n.owner(v.ID, nil), len(answer))
			}
		}
		n.startSite(2)
		if err := <-answer; err != nil {
			t.Errorf("the write that waited: %v", err)
		}
		for _, site := range []ident.SiteID{1, 2} {
			x := n.owner(v.ID, nil)
			y := n.other(x, site)
			if _, err := x.moveTo(v, y.name, 0); err != nil {
				t.Errorf("to %s: %v", y.name, err)
			}
			if d, err := through(y, v, wire.OpRead, 0, nil, 4096); err != nil || d[0] != 2 {
				t.Errorf("at %s: %v", y.name, err)
			}
		}
		n.stopAll()
	})
}

// Takeovers under load: the owner's access role is cut off, then its whole site, which makes another site take over by
// itself. Nothing that was acknowledged or read is missing afterwards.
func TestATakeoverOfAVolumeThatWaitsForOtherSites(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		rec := &blockHistory{}
		synctest.Test(t, func(t *testing.T) {
			n := newNodes(t, 3, 2, time.Second)
			n.limit.SegmentBytes = 128 << 10
			k := 2 - int(seed%2)
			v := n.ackVolume(3, k, control.PartitionStop)
			x := n.served(t, v)
			l := n.ackLoad(t, v, seed, rec)
			rng := rand.New(rand.NewPCG(seed, 55))
			pause := func(least int) { time.Sleep(time.Duration(least+rng.IntN(500)) * time.Millisecond) }
			pause(300)
			if k == 1 {
				n.killSite(3) // the other one has to do
			}
			x.cut.Store(true)
			eventually(t, "another owner", func() bool { return n.owner(v.ID, x) != nil })
			pause(300)
			x.cut.Store(false)
			if k == 1 {
				n.startSite(3)
			}
			eventually(t, "the one that was cut off is over", func() bool {
				y := n.owner(v.ID, nil)
				return y != nil && y.srv.Load().Owners()[0].epoch == n.listed(v).Epoch
			})
			pause(3000)
			x = n.owner(v.ID, nil)
			site := x.home.site
			n.cutSiteOff(site, true)
			eventually(t, "another site serves it", func() bool {
				y := n.owner(v.ID, x)
				return y != nil && y.home.site != site
			})
			y := n.owner(v.ID, x)
			for _, z := range n.list { // one of the two that were there last
				if s := z.srv.Load(); z.home.site != site && s != nil && len(s.Owners()) > 0 {
					y = z
				}
			}
			o := y.srv.Load().Owners()[0]
			if o.proven || !o.ack.kept || !o.ack.silent || o.ack.word != k {
				t.Errorf("proven %v, kept %v, silent %v, %d sites", o.proven, o.ack.kept, o.ack.silent, o.ack.word)
			}
			pause(500)
			n.cutSiteOff(site, false)
			pause(2000)
			l.end(t, 300, true)
			n.stopAll()
		})
		linearizable(t, seed, rec)
	}
}

// While there is a node that knows nothing of the policy, nobody begins with it, and of a volume that has it nothing is
// changed in the key: the owner goes on by the policy, nobody is handed it, nobody takes it over. So nobody answers by
// less. Once the node is upgraded all of that is done.
func TestOlderNodesNeverAcknowledgeWithoutOtherSites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second)
		v := n.ackVolume(2, 1, "")
		x := n.served(t, v)
		o := x.srv.Load().Owners()[0]
		eventually(t, "a write", func() bool { return writeAt(o, 0, filled(1), false) == nil })
		plain, err := n.ctl.CreateVolume(t.Context(), control.VolumeSpec{Name: "plain", SizeBytes: 1 << 20, BlockSize: 512, Sites: 2, AtSite: 1}, []ident.SiteID{1, 2})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "its owner", func() bool { return n.owner(plain.ID, nil) != nil })
		old := n.other(x, 1) // it goes back to an earlier version, and still runs this one's code: the harder case
		n.mem.Downgrade(old.name)
		eventually(t, "it is known to be older", func() bool { return n.ctl.Level() == 1 })

		// Nobody begins.
		if _, err := n.ctl.CreateVolume(t.Context(), control.VolumeSpec{Name: "w", SizeBytes: 1 << 20, BlockSize: 512, Sites: 2, AtSite: 1, Ack: 1}, []ident.SiteID{1, 2}); !errors.Is(err, control.ErrOlderNodes) {
			t.Errorf("a volume is made with the policy: %v", err)
		}
		if _, err := n.ctl.UpdateVolume(t.Context(), plain.ID, func(v *control.VolumeSpec) error { v.Ack = 1; return nil }); !errors.Is(err, control.ErrOlderNodes) {
			t.Errorf("a volume gets the policy: %v", err)
		}
		if s := n.listed(plain); n.ctl.SetAck(t.Context(), plain.ID, s.Epoch, 1, 1) == nil {
			t.Error("an owner gives its word")
		}

		// Who has it keeps to it, and passes it to nobody.
		for _, y := range n.list {
			if y == x {
				continue
			}
			if _, err := x.moveTo(v, y.name, 0); err == nil || !strings.Contains(err.Error(), control.ErrOlderNodes.Error()) {
				t.Errorf("handed over to %s: %v", y.name, err)
			}
		}
		if err := writeAt(o, 0, filled(2), false); err != nil {
			t.Errorf("the owner after that: %v", err)
		}
		n.killSite(2)
		write := writeOp(0, filled(3))
		answer := send(o, write)
		if !ackWaits(t, o, write, answer) {
			t.Fatal("a write is answered without the other site")
		}
		n.startSite(2)
		if err := <-answer; err != nil {
			t.Error(err)
		}

		// Nor does anybody take it over.
		epoch := n.listed(v).Epoch
		x.stop()
		time.Sleep(10 * time.Second)
		if s := n.listed(v); s.Epoch != epoch {
			t.Errorf("%s has taken it over", s.Owner)
		}
		if y := n.owner(v.ID, nil); y != nil {
			t.Errorf("%s serves it", y.name)
		}

		// Upgraded.
		spec, _ := n.ctl.Node(old.name)
		if _, err := n.ctl.RegisterNode(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is taken over", func() bool { return n.owner(v.ID, nil) != nil })
		y := n.owner(v.ID, nil)
		next := y.srv.Load()
		for _, o := range next.Owners() {
			if o.journalID == v.ID && (o.ack.word != 1 || o.ack.rule.Need() != 1) {
				t.Errorf("the new owner goes by %d", o.ack.rule.Need())
			}
		}
		if d, err := through(y, v, wire.OpRead, 0, nil, 4096); err != nil || d[0] != 3 {
			t.Errorf("what was acknowledged: %v", err)
		}
		if _, err := y.moveTo(v, "", 2); err != nil {
			t.Errorf("to the other site: %v", err)
		}
		n.stopAll()
	})
}
