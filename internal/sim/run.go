package sim

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/access"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// Stats counts what a seed, or a batch of them, has exercised.
type Stats struct {
	mu       sync.Mutex
	Messages uint64
	Count    map[string]int
}

func (s *Stats) add(what string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Count == nil {
		s.Count = map[string]int{}
	}
	s.Count[what] += n
}

// Add adds another's counters.
func (s *Stats) Add(o *Stats) {
	for k, n := range o.Count {
		s.add(k, n)
	}
	s.Messages += o.Messages
}

// String lists the counters.
func (s *Stats) String() string {
	var keys []string
	for k := range s.Count {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "  %9d  %s\n", s.Count[k], k)
	}
	return b.String()
}

// Result is what became of a seed.
type Result struct {
	Seed   uint64
	Broken []string // what is wrong; the first says most
	Hash   uint64   // of the trace
	Stats  *Stats
	Time   time.Duration // simulated
	Epochs []Epoch       // that began
}

// Epoch is how one began.
type Epoch struct {
	Number uint64
	At     time.Duration
	Node   ident.NodeName
	Proven bool
}

// Run simulates a plan. Where out is not nil, the trace is written to it.
func Run(t *testing.T, plan Plan, out io.Writer) Result {
	w := &World{t: t, plan: plan, rng: rand.New(rand.NewPCG(plan.Seed, 1)), trace: &trace{out: out}, stats: &Stats{}}
	w.log = slog.New(slog.DiscardHandler)
	if out != nil {
		w.log = slog.New(slog.NewTextHandler(logWriter{w}, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
	}
	var took time.Duration
	synctest.Test(t, func(t *testing.T) {
		w.t, w.start = t, time.Now()
		w.live()
		took = w.now()
	})
	w.settleRollbacks()
	if s := w.hist.check(plan.Blocks, plan.Refer); s != "" {
		w.fail("%s", s)
	}
	if w.hist.unjudged > 0 {
		w.stats.add("blocks whose history was too uncertain to be judged", w.hist.unjudged)
	}
	w.checkSilent()
	w.chain.check()
	return Result{Seed: plan.Seed, Broken: w.failed(), Hash: w.trace.sum, Stats: w.stats, Time: took, Epochs: w.chain.begun}
}

// live is the world's life.
func (w *World) live() {
	w.over, w.quiet = make(chan struct{}), make(chan struct{})
	w.mu.alarm = time.NewTimer(idle)
	w.clientCuts = map[[2]int]int{}
	w.ctl = control.NewMem()
	w.chain.init(w)
	w.forces.insist, w.forces.claims, w.forces.letOn = map[uint64]bool{}, map[uint64]claim{}, map[uint64]bool{}
	var err error
	if w.admin, err = w.ctl.Open(context.Background(), control.Options{}); err != nil {
		w.fail("%v", err)
		return
	}
	defer w.admin.Close()
	if !w.build() {
		w.teardown()
		return
	}
	w.wg.Go(w.drive)
	w.wg.Go(w.watchForces)
	for i := range w.plan.Faults {
		f := &w.plan.Faults[i]
		w.at(f.At, func() { w.inject(f) })
	}
	w.at(w.plan.Heal, w.heal)
	var busy sync.WaitGroup
	for _, c := range w.clients {
		busy.Go(c.run)
	}
	time.Sleep(w.plan.Length)
	for w.answers.Load() < commandsLeast && w.now() < 2*w.plan.Length {
		time.Sleep(100 * time.Millisecond)
	}
	close(w.quiet)
	idle := make(chan struct{})
	w.wg.Go(func() { busy.Wait(); close(idle) })
	select {
	case <-idle:
		w.after(0, w.stays.end)
		w.settle()
	case <-time.After(clientsMax):
		w.fail("%v after all faults have ended, a client still has no answer (%s)", clientsMax+healed, w.why())
	}
	w.stats.add("client: commands answered", int(w.answers.Load()))
	close(w.over)
	w.wake()
	<-idle
	w.teardown()
}

const (
	commandsLeast = 1000 // answered to clients; where faults took too much of their time they get more

	clientsMax = 40 * time.Second  // for a client's last command after its time is over
	settleMax  = 150 * time.Second // for the replicas to be the same everywhere
)

// build makes sites, nodes, the volume and clients.
func (w *World) build() bool {
	site := 0
	for s, count := range w.plan.Sites {
		site = s + 1
		for i := range count {
			n := &Node{w: w, index: len(w.nodes), name: nodeName(site, i+1), site: ident.SiteID(site), disk: vfs.NewMem(diskBytes), boot: 1}
			off := fraction(w.plan.Seed, uint64(n.index), 11)
			if w.plan.Extreme {
				off = math.Round(off)
			}
			n.drift = 1 + w.plan.Drift*(off-0.5)
			w.nodes = append(w.nodes, n)
		}
	}
	w.net.init(w)
	for i := range w.nodes {
		for j := range w.nodes {
			w.net.pairs[i][j].up = i != j
		}
	}
	ctx, admin := context.Background(), w.admin
	if _, err := admin.InitCluster(ctx, control.Cluster{Name: "sim"}); err != nil {
		w.fail("%v", err)
		return false
	}
	var ids []ident.SiteID
	for s := range w.plan.Sites {
		x, err := admin.CreateSite(ctx, control.Site{Name: fmt.Sprintf("site-%d", s+1)})
		if err != nil {
			w.fail("%v", err)
			return false
		}
		ids = append(ids, x.ID)
	}
	var procs []*Proc
	for _, n := range w.nodes {
		p, err := n.launch()
		if err != nil {
			w.fail("%v", err)
			return false
		}
		procs = append(procs, p)
		if _, err := admin.RegisterNode(ctx, n.spec()); err != nil {
			w.fail("%v", err)
			return false
		}
	}
	spec := control.VolumeSpec{Name: "v", SizeBytes: 1 << 20, BlockSize: 512, Sites: w.plan.Copies, AtSite: 1, Durability: w.plan.Durability, Partition: w.plan.Partition, Ack: w.plan.Ack}
	var err error
	w.vol, err = admin.CreateVolume(ctx, spec, ids[:w.plan.Copies])
	if err != nil {
		w.fail("%v", err)
		return false
	}
	for _, p := range procs {
		p.serve()
	}
	for i := range w.plan.Clients {
		c := &client{w: w, id: i, rng: rand.New(rand.NewPCG(w.plan.Seed, uint64(100+i))), seen: map[int]blockState{}}
		c.site = ident.SiteID(1 + c.rng.IntN(len(w.plan.Sites)))
		if i < 2 {
			c.site = 1
		}
		if w.plan.ClientsAt > 0 {
			c.site = ident.SiteID(w.plan.ClientsAt)
		}
		c.timeout = time.Duration(800+c.rng.IntN(4000)) * time.Millisecond
		var here, there []*Node
		for _, n := range w.nodes {
			if n.site == c.site {
				here = append(here, n)
			} else {
				there = append(there, n)
			}
		}
		c.rng.Shuffle(len(here), func(a, b int) { here[a], here[b] = here[b], here[a] })
		for _, n := range append(here, there[c.rng.IntN(len(there))]) {
			c.paths = append(c.paths, &session{c: c, node: n, lost: make(chan struct{})})
		}
		w.clients = append(w.clients, c)
	}
	return true
}

// settle waits until all copies are the same and compares them; and everybody reads everything once more.
func (w *World) settle() {
	for b := range w.plan.Blocks {
		w.clients[b%len(w.clients)].do(w.plan.on(opIn{kind: wire.OpRead, block: b}))
	}
	deadline := w.now() + settleMax
	for {
		o, why := w.settled()
		var wrong []string
		if why == "" {
			// What goes at this very moment is missing somewhere: only what stays so is wrong.
			if wrong = append(w.verify(o), w.checkForks(o)...); len(wrong) == 0 {
				return
			}
			why = wrong[0]
		}
		if w.now() > deadline {
			for _, s := range wrong {
				w.fail("%s", s)
			}
			w.traceReplicas(o)
			w.fail("not settled %v after the clients' end: %s", settleMax, why)
			return
		}
		time.Sleep(time.Second)
	}
}

// settled says why the cluster isn't yet as it should be when nothing fails; "" if it is.
func (w *World) settled() (*access.Owner, string) {
	n := w.owner()
	if n == nil {
		return nil, "no owner"
	}
	p := n.running()
	if p == nil {
		return nil, "no owner"
	}
	owners := p.srv.Owners()
	if len(owners) != 1 {
		return nil, "no owner"
	}
	o := owners[0]
	v := o.View()
	if v == nil {
		return nil, "the owner does not serve"
	}
	if v.State != "serving" {
		return nil, v.State
	}
	if v.Degraded != 0 {
		return nil, fmt.Sprintf("%d segments have too few replicas", v.Degraded)
	}
	for i, s := range v.Sites {
		if s.Watermark != v.Commit || s.StableWatermark != v.Commit.Seq || s.LagBytes != 0 {
			return o, fmt.Sprintf("site %d has %s of %s: %s", s.Site, s.Watermark, v.Commit, v.Ships[i])
		}
	}
	if v.Stable != v.Commit {
		return nil, fmt.Sprintf("stable up to %s of %s", v.Stable, v.Commit)
	}
	return o, ""
}

// traceReplicas writes down where all replicas are, and where the owner thinks that they are.
func (w *World) traceReplicas(o *access.Owner) {
	if w.trace.out == nil || o == nil {
		return
	}
	for _, s := range o.Segments() {
		for _, h := range s.Holders {
			w.tracef("table: %s %d to %d, sealed=%v: %s stable=%v going=%v bad=%v", s.ID, s.First, s.Last, s.Sealed, w.nodeOfStore(h.Store).name, h.Stable, h.Going, h.Bad)
		}
	}
	for _, n := range w.nodes {
		if p := n.running(); p != nil {
			r, _ := p.store.Inventory(context.Background(), &wire.Inventory{Journal: w.vol.ID})
			for _, x := range r.Replicas {
				w.tracef("disk: %s: %s state %d, %d to %d, end %d, made %x", n.name, x.Segment, x.State, x.Before.Seq+1, x.Last.Seq, x.End, x.Made)
			}
		}
	}
}

// why says what the volume waits for, for people.
func (w *World) why() string {
	_, why := w.settled()
	for _, n := range w.nodes {
		if p := n.running(); p != nil && p.srv != nil {
			if st, err := p.srv.OwnerStatus(context.Background(), &wire.OwnerStatus{}); err == nil {
				for _, j := range st.Journals {
					why += fmt.Sprintf("; %s: %s", n.name, j.State)
				}
			}
		} else {
			why += fmt.Sprintf("; %s does not run", n.name)
		}
	}
	return why
}

// teardown ends all processes and waits until nothing runs.
func (w *World) teardown() {
	w.net.mu.Lock()
	w.ended = true
	w.net.mu.Unlock()
	for _, n := range w.nodes {
		w.net.mu.Lock()
		p := n.proc
		if p != nil {
			p.dead, n.proc = true, nil
		}
		w.net.mu.Unlock()
		if p != nil {
			for _, o := range w.nodes {
				w.net.breakLinks(n, o)
				w.net.breakLinks(o, n)
			}
			w.wg.Go(p.bury)
		}
	}
	w.wg.Wait()
}

func (w *World) isOver() bool {
	select {
	case <-w.over:
		return true
	default:
		return false
	}
}

// stopped reports that clients begin no new commands.
func (w *World) stopped() bool {
	select {
	case <-w.quiet:
		return true
	default:
		return w.isOver()
	}
}

// rand64 is the next number of the world's own, drawn by the driver and by what it begins.
func (w *World) rand64() uint64 {
	return mix(w.plan.Seed, w.draws.Add(1), 0xd1ce)
}

// running is the node's process, nil if there is none.
func (n *Node) running() *Proc {
	n.w.net.mu.Lock()
	defer n.w.net.mu.Unlock()
	return n.proc
}
