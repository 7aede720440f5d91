package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"dozo/internal/lab/router"
)

// readyTimeout is how long the router may take to open its devices: milliseconds, on a machine that is not drowned.
const readyTimeout = 20 * time.Second

// reorderBy is what a packet picked for reordering is held back by unless another time is set: several
// packets' worth at the rates that labs have.
const reorderBy = "2ms"

// Options say what to make.
type Options struct {
	Spec *Spec
	// Commands are carried out before the first packet: see Command.
	Commands [][]string
	// Program is the dozo that runs the router and the nodes; empty: this one.
	Program string
	// MemoryBytes is for packets under way; 0: 512 MiB.
	MemoryBytes int
	Seed        uint64
}

// Up makes a lab and starts its router and nodes; what was made is removed again if something fails.
func Up(ctx context.Context, o Options) (_ *Lab, err error) {
	spec := o.Spec
	cfg := router.Config{MemoryBytes: o.MemoryBytes, Seed: o.Seed}
	for _, s := range spec.Sites {
		cfg.Sites = append(cfg.Sites, router.SiteConfig{Name: s.Name, NetNS: netnsPath(s.NetNS), Device: Device, Prefixes: s.prefixes()})
	}
	for _, words := range append([][]string{{"set", wordAll, "reorder-by=" + reorderBy}}, o.Commands...) {
		changes, err := Command(spec.SiteNames(), words)
		if err != nil {
			return nil, err
		}
		cfg.Changes = append(cfg.Changes, changes...)
	}
	if _, err := nodePlan(spec); err != nil {
		return nil, err
	}
	if err := needRoot(); err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, fmt.Errorf("dozo lab configures namespaces with ip (package iproute2): %w", err)
	}
	lock, err := lockLab(spec.Name)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	left, err := find(spec.Name)
	if err != nil {
		return nil, err
	}
	if left.any() {
		return nil, fmt.Errorf("lab %s %w (%s); dozo lab down removes it", spec.Name, ErrExists, left)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(spec.Name, 0, io.Discard))
		}
	}()
	dir := stateDir(spec.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := errors.Join(writeJSON(filepath.Join(dir, specFile), spec), writeJSON(filepath.Join(dir, routerFile), cfg)); err != nil {
		return nil, err
	}
	for _, s := range spec.Sites {
		if err := ip(ctx, "", "netns add "+s.NetNS); err != nil {
			return nil, err
		}
	}
	if err := startRouter(ctx, o); err != nil {
		return nil, err
	}
	for _, s := range spec.Sites {
		if err := configure(ctx, s); err != nil {
			return nil, fmt.Errorf("site %s: %w", s.Name, err)
		}
	}
	l := &Lab{Spec: *spec}
	if err := l.startNodes(ctx, o.program()); err != nil {
		return nil, err
	}
	return l, nil
}

// program is the dozo to run.
func (o Options) program() string {
	if o.Program != "" {
		return o.Program
	}
	if exe, err := os.Executable(); err == nil {
		return exe
	}
	return "/proc/self/exe"
}

// startRouter starts the router in a session of its own and waits until it is ready.
func startRouter(ctx context.Context, o Options) error {
	dir := stateDir(o.Spec.Name)
	log, err := os.OpenFile(filepath.Join(dir, routerLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(o.program(), "lab", "router", "--name", o.Spec.Name)
	// Down knows it by these arguments.
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.ExtraFiles = []*os.File{w} // file 3: closed without a word means that it has ended
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start the router: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })()
	_ = r.SetReadDeadline(time.Now().Add(readyTimeout))
	word, err := io.ReadAll(io.LimitReader(r, int64(len(readyWord))))
	if string(word) == readyWord {
		return cmd.Process.Release()
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	text, _ := os.ReadFile(log.Name())
	return errors.Join(fmt.Errorf("the router did not start:\n%s", indent(string(text))), err)
}

// readyWord is what a router writes to file 3 when it is ready.
const readyWord = "ready\n"

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}

// configure gives a site's namespace its addresses and routes.
func configure(ctx context.Context, s SiteSpec) error {
	var b strings.Builder
	b.WriteString("link set lo up\n")
	// The router empties the device's queue in bursts; what does not fit is lost without being counted.
	fmt.Fprintf(&b, "link set %s mtu 1500 txqueuelen 10000 up\n", Device)
	for _, a := range s.Addresses {
		if a.Is4() {
			fmt.Fprintf(&b, "addr add %s/32 dev %s\n", a, Device)
		} else {
			fmt.Fprintf(&b, "addr add %s/128 dev %s nodad\n", a, Device)
		}
	}
	// Sources are the first addresses, so that a site is known by them.
	first6 := s.Addresses[len(s.Addresses)/2]
	fmt.Fprintf(&b, "route add default dev %s src %s\nroute add ::/0 dev %s src %s\n", Device, s.Addresses[0], Device, first6)
	err := router.InNetNS(netnsPath(s.NetNS), func() error {
		// Guests behind tap devices are reached through the namespace. Nobody advertises routers.
		for file, value := range map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/all/accept_ra": "0",
			"net/ipv6/conf/" + Device + "/router_solicitations": "0",
		} {
			if err := os.WriteFile("/proc/sys/"+file, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, ip(ctx, s.NetNS, b.String()))
}

// ip runs a batch of ip's commands, in a namespace if one is named.
func ip(ctx context.Context, netns, batch string) error {
	args := []string{"-batch", "-"}
	if netns != "" {
		args = append([]string{"-n", netns}, args...)
	}
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(batch)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}
