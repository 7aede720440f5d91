//go:build e2e

package robust

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

// fault does something bad and gives what undoes it. owner owns the volume, other is another node of its site.
type fault struct {
	name string
	do   func(c *cluster, owner, other *proc, rng *rand.Rand) (undo func())
	// hold is how long it lasts at least; up to as long again is drawn.
	hold time.Duration
	// deposes: another node must own the volume afterwards, at a higher epoch.
	deposes bool
}

func stopProc(p *proc) func() {
	_ = p.signal(syscall.SIGSTOP)
	return func() { _ = p.signal(syscall.SIGCONT) }
}

func killProc(c *cluster, p *proc) func() {
	p.kill()
	return func() { c.start(p); c.ready(p) }
}

// cut cuts pairs of namespaces, in both directions or only from the first to the second.
func cut(c *cluster, oneWay bool, pairs ...[2]string) func() {
	do := func(verb string) {
		for _, p := range pairs {
			args := []string{p[0], p[1]}
			if oneWay {
				args = append(args, "--one-way")
			}
			c.net(verb, args...)
		}
	}
	do("partition")
	return func() { do("heal") }
}

// cores are the pairs of a node and every other core server.
func cores(c *cluster, p *proc, from bool) (pairs [][2]string) {
	for _, x := range c.procs[:4] {
		if x != p {
			if from {
				pairs = append(pairs, [2]string{p.ns, x.ns})
			} else {
				pairs = append(pairs, [2]string{x.ns, p.ns})
			}
		}
	}
	return pairs
}

func freeze(c *cluster, p *proc) func() {
	c.run("fsfreeze", "-f", p.disk)
	return func() { c.run("fsfreeze", "-u", p.disk) }
}

// fill takes all the space that there is on a node's disk.
func fill(c *cluster, p *proc) func() {
	file := filepath.Join(p.disk, "ballast")
	// It ends with "no space left", which is what is wanted; preallocated, so that it takes no time.
	for _, size := range []string{"512M", "128M", "64M", "16M", "4M", "1M", "64K", "4K"} {
		for i := 0; i < 4; i++ {
			if exec.Command("fallocate", "-l", size, file+"-"+size+"-"+string(rune('0'+i))).Run() != nil {
				break
			}
		}
	}
	return func() {
		names, _ := filepath.Glob(file + "*")
		for _, n := range names {
			_ = os.Remove(n)
		}
	}
}

// changes makes so many changes of the control store, as far as it takes them. Each is a few KiB.
func (c *cluster) changes(at *proc, n int) {
	client, err := api.Dial(api.ClientOptions{Endpoints: []string{"unix://" + filepath.Join(at.dir, "api.sock")}})
	if err != nil {
		c.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	made := 0
	for range n {
		c.hosts++
		req := &dozov1.AddHostRequest{Tenant: "default", Name: fmt.Sprintf("h%05d", c.hosts)}
		for k := range 16 {
			req.InitiatorNames = append(req.InitiatorNames, fmt.Sprintf("iqn.2026-11.test:h%05d-%02d-%s", c.hosts, k, strings.Repeat("x", 180)))
		}
		one, end := context.WithTimeout(ctx, 500*time.Millisecond)
		if _, err := client.Hosts.Add(one, req); err == nil {
			made++
		}
		end()
	}
	c.t.Logf("%d of %d changes were made", made, n)
}

// leader is the voter that leads the control store.
func leader(c *cluster) *proc {
	var st struct {
		Voters []struct {
			Node   string
			Leader bool
		}
	}
	for _, p := range c.nodes() {
		if c.tryAsk(p.name, &st, "control", "status") == nil {
			if i := slices.IndexFunc(st.Voters, func(v struct {
				Node   string
				Leader bool
			}) bool {
				return v.Leader
			}); i >= 0 {
				return c.proc(st.Voters[i].Node)
			}
		}
	}
	return c.voters()[0]
}

// votes says whether the control store hears from a voter.
func (c *cluster) votes(p *proc) (ok bool, why string) {
	var st struct {
		Voters []struct {
			Node     string
			Up       bool
			Problems []string
		}
	}
	why = "nobody tells"
	for _, n := range c.nodes() {
		if err := c.tryAsk(n.name, &st, "control", "status"); err != nil {
			why = err.Error()
			continue
		}
		for _, v := range st.Voters {
			if v.Node == p.name {
				return v.Up, fmt.Sprint(v.Problems)
			}
		}
	}
	return false, why
}

// far puts 200 ms and 2 % loss between any two voters of the control store.
func far(c *cluster) func() {
	set := func(settings ...string) {
		for i, a := range nsVoters {
			for _, b := range nsVoters[:i] {
				c.net("set", append([]string{a, b}, settings...)...)
			}
		}
	}
	set("rtt=200ms", "loss=2%")
	return func() { set("rtt=200us", "loss=0%") }
}

var faults = []fault{
	{name: "owner killed", hold: time.Second, deposes: true, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() { return killProc(c, owner) }},
	{name: "owner stopped", hold: 4 * time.Second, deposes: true, do: func(_ *cluster, owner, _ *proc, _ *rand.Rand) func() { return stopProc(owner) }},
	{name: "owner paused shortly", hold: 300 * time.Millisecond, do: func(_ *cluster, owner, _ *proc, _ *rand.Rand) func() { return stopProc(owner) }},
	{name: "owner cut off from everything", hold: 4 * time.Second, deposes: true, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		c.net("partition", owner.ns)
		return func() { c.net("heal", owner.ns) }
	}},
	{name: "owner cut off from the control store", hold: 2 * time.Second, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		return cut(c, false, [2]string{owner.ns, nsVoters[0]}, [2]string{owner.ns, nsVoters[1]}, [2]string{owner.ns, nsVoters[2]})
	}},
	{name: "owner cut off from its core servers", hold: 4 * time.Second, deposes: true, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		return cut(c, false, cores(c, owner, true)...)
	}},
	{name: "owner cut off from the clients", hold: 2 * time.Second, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		return cut(c, false, [2]string{owner.ns, nsClients})
	}},
	{name: "owner's words don't reach the core servers", hold: 4 * time.Second, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		return cut(c, true, cores(c, owner, true)...)
	}},
	{name: "core servers' words don't reach the owner", hold: 4 * time.Second, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		return cut(c, true, cores(c, owner, false)...)
	}},
	{name: "owner's words don't reach the clients", hold: 2 * time.Second, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		return cut(c, true, [2]string{owner.ns, nsClients})
	}},
	{name: "forwarder killed", hold: time.Second, do: func(c *cluster, _, other *proc, _ *rand.Rand) func() { return killProc(c, other) }},
	{name: "forwarder stopped", hold: 2 * time.Second, do: func(_ *cluster, _, other *proc, _ *rand.Rand) func() { return stopProc(other) }},
	{name: "forwarder stopped for long", hold: 5 * time.Second, do: func(_ *cluster, _, other *proc, _ *rand.Rand) func() { return stopProc(other) }},
	{name: "forwarder cut off from the owner", hold: 2 * time.Second, do: func(c *cluster, owner, other *proc, _ *rand.Rand) func() {
		return cut(c, false, [2]string{owner.ns, other.ns})
	}},
	{name: "forwarder's words don't reach the owner", hold: 2 * time.Second, do: func(c *cluster, owner, other *proc, _ *rand.Rand) func() {
		return cut(c, true, [2]string{other.ns, owner.ns})
	}},
	{name: "owner's disk hangs", hold: 2 * time.Second, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() { return freeze(c, owner) }},
	{name: "another core server's disk hangs", hold: 2 * time.Second, do: func(c *cluster, _, other *proc, _ *rand.Rand) func() { return freeze(c, other) }},
	{name: "owner's disk is full", hold: 2 * time.Second, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() { return fill(c, owner) }},
	{name: "another core server's disk is full", hold: 2 * time.Second, do: func(c *cluster, _, other *proc, _ *rand.Rand) func() { return fill(c, other) }},
	{name: "control store's leader killed", hold: time.Second, do: func(c *cluster, _, _ *proc, _ *rand.Rand) func() { return killProc(c, leader(c)) }},
	{name: "control store's leader stopped", hold: 3 * time.Second, do: func(c *cluster, _, _ *proc, _ *rand.Rand) func() { return stopProc(leader(c)) }},
	{name: "a voter's disk is full", hold: 2 * time.Second, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		p := leader(c)
		empty := fill(c, p)
		// What etcd has set aside lasts for a while: changes until it finds the disk full.
		c.changes(owner, 40)
		return func() {
			empty()
			// If it found the disk full it comes back by itself, or is about to end, which may take it ten seconds.
			c.until(p.name+" votes", 90*time.Second, func() (bool, string) {
				if !p.alive() {
					c.t.Logf("%s has ended", p.name)
					c.start(p)
				}
				return c.votes(p)
			})
			c.ready(p)
		}
	}},
	{name: "a voter's disk hangs", hold: 3 * time.Second, do: func(c *cluster, _, _ *proc, _ *rand.Rand) func() { return freeze(c, leader(c)) }},
	{name: "200 ms and 2 % loss between the voters", hold: 3 * time.Second, do: func(c *cluster, _, _ *proc, _ *rand.Rand) func() { return far(c) }},
	{name: "owner killed, 200 ms and 2 % loss between the voters", hold: 2 * time.Second, deposes: true, do: func(c *cluster, owner, _ *proc, rng *rand.Rand) func() {
		near := far(c)
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		back := killProc(c, owner)
		return func() { near(); back() }
	}},
	{name: "control store away", hold: 3 * time.Second, do: func(c *cluster, _, _ *proc, _ *rand.Rand) func() {
		a, b := stopProc(c.voters()[0]), stopProc(c.voters()[1])
		return func() { a(); b() }
	}},
	{name: "owner killed while the control store is away", hold: 2 * time.Second, deposes: true, do: func(c *cluster, owner, _ *proc, rng *rand.Rand) func() {
		a, b := stopProc(c.voters()[0]), stopProc(c.voters()[1])
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
		back := killProc(c, owner)
		return func() {
			a()
			b()
			c.until("somebody else owns the volume", 30*time.Second, func() (bool, string) {
				v, err := c.volume()
				return err == nil && v.Volume.Owner != owner.name, v.Volume.Owner
			})
			back()
		}
	}},
	// Two of three core servers of the site: nothing is acknowledged by the third alone, and nobody may take over before one is back.
	{name: "owner and a core server lost while the control store is away", hold: 3 * time.Second, do: func(c *cluster, owner, other *proc, rng *rand.Rand) func() {
		a, b := stopProc(c.voters()[0]), stopProc(c.voters()[1])
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
		other.kill()
		time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
		owner.kill()
		return func() {
			// In either order: the voters first, or the servers, which then start without a control store.
			back := []func(){func() { a(); b() }, func() { c.start(owner); c.start(other) }}
			if rng.IntN(2) == 0 {
				back[0], back[1] = back[1], back[0]
			}
			back[0]()
			time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
			back[1]()
			c.ready(owner)
			c.ready(other)
		}
	}},
	{name: "owner drained", hold: time.Second, deposes: true, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		c.at(owner.name, "node", "drain", owner.name, "--wait", "--timeout", "300s")
		return func() { c.at(owner.name, "node", "undrain", owner.name) }
	}},
	{name: "handed to the other site and back", hold: time.Second, do: func(c *cluster, owner, _ *proc, _ *rand.Rand) func() {
		c.move(owner.name, siteB)
		return func() { c.move(owner.name, siteA) }
	}},
	{name: "owner stopped during a hand-over, then killed", hold: 2 * time.Second, deposes: true, do: func(c *cluster, owner, other *proc, rng *rand.Rand) func() {
		move := exec.Command(dozoBin, "volume", "move", "v", "--to", other.name, "--endpoint", "unix://"+filepath.Join(other.dir, "api.sock"))
		_ = move.Start()
		time.Sleep(time.Duration(rng.IntN(80)) * time.Millisecond)
		stopProc(owner)
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		back := killProc(c, owner)
		_ = move.Process.Kill()
		_ = move.Wait()
		return back
	}},
}
