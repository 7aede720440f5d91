//go:build e2e

package robust

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"dozo/internal/initiator/history"
)

// clientEnv has the configuration of the clients' process, where this binary is that.
const clientEnv = "ROBUST_CLIENTS"

var dozoBin string

func TestMain(m *testing.M) {
	if text := os.Getenv(clientEnv); text != "" {
		if err := runClients(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dozoBin = os.Getenv("DOZO_BIN")
	if dozoBin == "" {
		fmt.Fprintln(os.Stderr, "DOZO_BIN is not set: run make robust")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func number(t *testing.T, env string, def uint64) uint64 {
	t.Helper()
	text := os.Getenv(env)
	if text == "" {
		return def
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: %v", env, text, err)
	}
	return n
}

// TestRobust draws rounds: one fault each, under clients that share blocks of one volume by several paths. After each
// round the history must be linearizable and every path must show the same; where the fault deposes the owner, another
// node owns the volume at a higher epoch.
func TestRobust(t *testing.T) {
	rounds := number(t, "ROBUST_ROUNDS", 3)
	seed := number(t, "ROBUST_SEED", uint64(time.Now().UnixNano()))
	rng := rand.New(rand.NewPCG(seed, 1))
	t.Logf("rounds are drawn from ROBUST_SEED=%d", seed)
	pool := faults
	if only := os.Getenv("ROBUST_ONLY"); only != "" {
		pool = slices.DeleteFunc(slices.Clone(faults), func(f fault) bool {
			return !slices.ContainsFunc(strings.Split(only, ","), func(text string) bool { return strings.Contains(f.name, text) })
		})
	}
	c := startCluster(t)
	sum := &summary{pauses: map[string][]time.Duration{}}
	defer func() { sum.print(t) }()
	var order []int
	for round := range int(rounds) {
		if len(order) == 0 {
			order = rng.Perm(len(pool)) // each once before any twice
		}
		f := pool[order[0]]
		order = order[1:]
		if !t.Run(fmt.Sprintf("%03d %s", round, f.name), func(t *testing.T) {
			c.t = t
			c.round(rng, &f, sum)
		}) {
			break
		}
		c.t = t
		sum.rounds++
	}
}

// summary is what is printed at the end.
type summary struct {
	rounds, acked, ops, retried int
	pauses                      map[string][]time.Duration
}

func (s *summary) print(t *testing.T) {
	t.Logf("%d rounds, %d operations ended, %d in the histories, %d attempts given up for another path", s.rounds, s.acked, s.ops, s.retried)
	names := make([]string, 0, len(s.pauses))
	for n := range s.pauses {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		p := s.pauses[n]
		slices.Sort(p)
		t.Logf("| %s | %d | %v | %v |", n, len(p), p[len(p)/2].Round(time.Millisecond), p[len(p)-1].Round(time.Millisecond))
	}
}

func (c *cluster) round(rng *rand.Rand, f *fault, sum *summary) {
	t := c.t
	before, err := c.volume()
	if err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	if owner.site != siteA {
		c.move("a1", siteA)
		owner = c.owner()
	}
	others := slices.DeleteFunc(slices.Clone(c.nodes()), func(p *proc) bool { return p == owner })
	other := others[rng.IntN(len(others))]
	out := filepath.Join(c.dir, "clients.json")
	_ = os.Remove(out)
	cfg := clientConfig{Target: c.iqn, Clients: 6, Blocks: 5, Seed: rng.Uint64(), Run: rng.Uint64(), Out: out}
	for _, p := range c.nodes() {
		cfg.Portals = append(cfg.Portals, p.addr.String()+":3260")
	}
	clients := c.startClients(cfg)
	time.Sleep(time.Duration(500+rng.IntN(500)) * time.Millisecond)
	undo := f.do(c, owner, other, rng)
	time.Sleep(f.hold + time.Duration(rng.Int64N(int64(f.hold))))
	var after volumeState
	if f.deposes && f.name != "owner killed while the control store is away" {
		c.until("another node owns the volume", 20*time.Second, func() (bool, string) {
			after, err = c.volumeBut(owner)
			return err == nil && after.Volume.Owner != owner.name, fmt.Sprintf("%+v, %v", after, err)
		})
		if after.Volume.Epoch == before.Volume.Epoch {
			t.Errorf("owner %s at epoch %s, and it was %s at %s", after.Volume.Owner, after.Volume.Epoch, owner.name, before.Volume.Epoch)
		}
	}
	undo()
	time.Sleep(time.Duration(1000+rng.IntN(1000)) * time.Millisecond)
	_ = clients.Process.Signal(syscall.SIGTERM)
	if err := clients.Wait(); err != nil {
		t.Fatalf("clients: %v", err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var res clientResult
	if err := json.Unmarshal(text, &res); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s (owner %s, other %s): %d operations, %d attempts given up, longest pause %v at %v", f.name, owner.name, other.name, res.Acked, res.Retried,
		res.Gap.Round(time.Millisecond), res.GapAt.Round(time.Millisecond))
	sum.acked, sum.ops, sum.retried = sum.acked+res.Acked, sum.ops+len(res.Ops), sum.retried+res.Retried
	sum.pauses[f.name] = append(sum.pauses[f.name], res.Gap)
	bad := ""
	switch {
	case res.Violation != "":
		bad = res.Violation
	case res.Error != "":
		bad = res.Error
	}
	if err := history.CheckRegisters(res.Ops); err != nil {
		bad = err.Error()
	}
	if r, _ := porcupine.CheckOperationsVerbose(registers, operations(res.Ops), 20*time.Second); r == porcupine.Illegal {
		bad += "; porcupine: not linearizable"
	}
	if bad != "" {
		kept := filepath.Join(os.TempDir(), fmt.Sprintf("robust-%d.json", time.Now().UnixNano()))
		_ = os.WriteFile(kept, text, 0o644)
		t.Fatalf("%s; the history is %s", bad, kept)
	}
	c.healthy(60 * time.Second)
}

// volumeBut asks the other nodes: the one that is stopped or cut off knows nothing.
func (c *cluster) volumeBut(not *proc) (v volumeState, err error) {
	for _, p := range c.nodes() {
		if p == not || !p.alive() {
			continue
		}
		if err = c.tryAsk(p.name, &v, "volume", "show", "v"); err == nil {
			return v, nil
		}
	}
	return v, err
}

// startClients starts the clients in their namespace, and waits until they run.
func (c *cluster) startClients(cfg clientConfig) *exec.Cmd {
	c.t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(dozoBin, "lab", "exec", "--name", c.lab, nsClients, "--", self)
	cmd.Env = append(os.Environ(), clientEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	t := c.t
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // after an error; it usually has ended
	ready := make(chan bool, 1)
	go func() {
		ready <- bufio.NewScanner(pipe).Scan()
	}()
	select {
	case ok := <-ready:
		if !ok {
			t.Fatal("the clients have ended before they began")
		}
	case <-time.After(lastOp + time.Minute):
		t.Fatal("the clients don't begin")
	}
	return cmd
}

// registers is porcupine's model: each block is a register.
var registers = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		by := map[uint64][]porcupine.Operation{}
		for _, o := range all {
			b := o.Input.(history.Op).Block
			by[b] = append(by[b], o)
		}
		var out [][]porcupine.Operation
		for _, list := range by {
			out = append(out, list)
		}
		return out
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		o := input.(history.Op)
		if o.Write {
			return true, o.Value
		}
		return output.(uint64) == state.(uint64), state
	},
}

func operations(ops []history.Op) []porcupine.Operation {
	out := make([]porcupine.Operation, len(ops))
	for i, o := range ops {
		out[i] = porcupine.Operation{ClientId: o.Client + 1, Input: o, Call: o.Call, Output: o.Value, Return: o.Return}
	}
	return out
}
