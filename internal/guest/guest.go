package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"dozo/internal/guest/agent"
	"dozo/internal/guest/records"
	"dozo/internal/lab"
)

const (
	// BootTimeout is for what never boots: a boot costs about 5 s of processor time, and a machine may be shared with twenty others.
	BootTimeout = 5 * time.Minute
	// killGrace is how long a command that is killed may take to be gone, on a busy machine.
	killGrace = 10 * time.Second
	// outputMax bounds what Run keeps of one output.
	outputMax = 16 << 20
)

// ErrTimeout: a command did not end in time and was killed.
var ErrTimeout = errors.New("the command did not end in time")

// Guest is a virtual machine that runs. Its methods may be called by several goroutines at once, Migrate and Close by
// one.
type Guest struct {
	// Boot is what it took until the guest answered: time, and processor time of QEMU.
	Boot, BootCPU time.Duration
	// Addresses of the interfaces, in order: IPv4, IPv6.
	Addresses [][2]string

	opts Options
	vm   *vm
	mon  *qmp
	ch   *channel

	closeOnce sync.Once
	closeErr  error
}

// Start boots a guest and waits until it answers and its network is configured.
func Start(ctx context.Context, o Options) (*Guest, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, BootTimeout)
	defer cancel()
	taps, err := makeTaps(ctx, o)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	g, err := launch(ctx, o, taps)
	err = errors.Join(err, closeTaps(taps))
	if err != nil {
		if g != nil {
			err = errors.Join(err, g.Close())
		}
		return nil, err
	}
	for _, t := range taps {
		g.Addresses = append(g.Addresses, [2]string{t.Addr4.String(), t.Addr6.String()})
	}
	if err := g.booted(ctx, taps); err != nil {
		err = fmt.Errorf("boot the guest: %w%s", err, g.vm.problems())
		return nil, errors.Join(err, g.Close())
	}
	g.Boot, g.BootCPU = time.Since(began), cpuTime(g.vm.cmd.Process.Pid)
	return g, nil
}

// launch starts QEMU and connects to it.
func launch(ctx context.Context, o Options, taps []*lab.Tap) (*Guest, error) {
	v, err := startVM(o, taps)
	if err != nil {
		return nil, err
	}
	g := &Guest{opts: o, vm: v}
	if g.mon, err = newQMP(ctx, v.mon); err != nil {
		v.kill()
		err = fmt.Errorf("start the guest: %w%s", err, v.problems())
		return nil, errors.Join(err, closer(v.agent), v.close())
	}
	if o.incoming == nil {
		g.ch = newChannel(v.agent)
	}
	return g, nil
}

func (g *Guest) booted(ctx context.Context, taps []*lab.Tap) error {
	select {
	case <-g.ch.hello:
	case <-g.vm.exited:
		return g.vm.gone()
	case <-ctx.Done():
		return ctx.Err()
	}
	res, err := g.Run(ctx, Command{Args: []string{"sh", "-c", networkScript(g.opts.NICs, taps)}})
	if errors.Is(err, errGone) {
		<-g.vm.exited
		return g.vm.gone()
	}
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("network: status %d: %s", res.Status, res.Stderr)
	}
	return err
}

// Command is what Run runs.
type Command struct {
	Args  []string
	Env   []string // besides the guest's own
	Dir   string
	Stdin []byte
	// Timeout, if not 0, kills the command, and all that it has started and that stayed in its session.
	Timeout time.Duration
	// Stdout and Stderr, if set, get the output as it comes, which Result then has not. They may not block for long.
	Stdout, Stderr interface{ Write([]byte) (int, error) }
}

// Result is how a command ended: its status, or 128 and the number of the signal that killed it.
type Result struct {
	Status         int
	Stdout, Stderr string
}

// Run runs a command. An error means that it could not be run or did not end in time (ErrTimeout); a status is no error.
func (g *Guest) Run(ctx context.Context, c Command) (Result, error) {
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("%w, %v: %s", ErrTimeout, c.Timeout, strings.Join(c.Args, " ")))
		defer cancel()
	}
	var kept [2]bytes.Buffer
	out := func(fd int, b []byte, _ time.Time) {
		to := c.Stdout
		if fd == 2 {
			to = c.Stderr
		}
		if to != nil {
			_, _ = to.Write(b)
			return
		}
		k := &kept[fd-1]
		k.Write(b[:min(len(b), outputMax-k.Len())])
	}
	exit, err := g.call(ctx, agent.Exec{Args: c.Args, Env: c.Env, Dir: c.Dir}, c.Stdin, out)
	res := Result{Status: exit.Status, Stdout: kept[0].String(), Stderr: kept[1].String()}
	if err == nil && exit.Error != "" {
		err = fmt.Errorf("in the guest: %s", exit.Error)
	}
	return res, err
}

// call carries a command out; when the context ends the command is killed.
func (g *Guest) call(ctx context.Context, e agent.Exec, stdin []byte, out func(int, []byte, time.Time)) (agent.Exit, error) {
	id, k, err := g.ch.start(e, stdin, out)
	if err != nil {
		return agent.Exit{}, err
	}
	select {
	case exit, ok := <-k.exit:
		if !ok {
			return exit, errGone
		}
		return exit, nil
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	if err := g.ch.send(agent.Frame{Kind: agent.KindSignal, ID: id, Payload: []byte{byte(syscall.SIGKILL)}}); err != nil {
		return agent.Exit{}, errors.Join(cause, err)
	}
	timer := time.NewTimer(killGrace)
	defer timer.Stop()
	select {
	case <-k.exit:
		return agent.Exit{Status: 128 + int(syscall.SIGKILL)}, cause
	case <-timer.C:
		return agent.Exit{}, fmt.Errorf("%w; and the guest does not answer any more", cause)
	}
}

// Output runs a shell command line and gives its standard output; any other status than 0 is an error.
func (g *Guest) Output(ctx context.Context, timeout time.Duration, line string) (string, error) {
	res, err := g.Run(ctx, Command{Args: []string{"sh", "-c", line}, Timeout: timeout})
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("status %d", res.Status)
	}
	if err != nil {
		return res.Stdout, fmt.Errorf("%s: %w\n%s%s", line, err, res.Stdout, res.Stderr)
	}
	return res.Stdout, nil
}

// Shell runs a shell on the guest's console until it ends: see Options.Terminal.
func (g *Guest) Shell(ctx context.Context) (int, error) {
	exit, err := g.call(ctx, agent.Exec{Args: []string{"bash", "-l"}, Dir: "/root", TTY: "/dev/ttyS0"}, nil, func(int, []byte, time.Time) {})
	if err == nil && exit.Error != "" {
		err = errors.New(exit.Error)
	}
	return exit.Status, err
}

// WriteRecords has the guest write records until the context ends, and calls ack for each with the time at which it was
// heard of here. ack may not block for long.
func (g *Guest) WriteRecords(ctx context.Context, j records.Job, ack func(records.Ack, time.Time)) error {
	var rest []byte
	exit, err := g.call(ctx, agent.Exec{Records: &j}, nil, func(_ int, b []byte, at time.Time) {
		for rest = append(rest, b...); len(rest) >= records.AckBytes; rest = rest[records.AckBytes:] {
			if a, err := records.ParseAck(rest); err == nil {
				ack(a, at)
			}
		}
	})
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		err = nil
	}
	if err == nil && exit.Error != "" {
		err = fmt.Errorf("in the guest: %s", exit.Error)
	}
	return err
}

// SetLink plugs or pulls the cable of an interface.
func (g *Guest) SetLink(ctx context.Context, nic int, up bool) error {
	return g.mon.do(ctx, "set_link", map[string]any{"name": fmt.Sprintf("nic%d", nic), "up": up}, nil)
}

// PID is the process of QEMU.
func (g *Guest) PID() int { return g.vm.cmd.Process.Pid }

// Console is what the guest's kernel and init have printed.
func (g *Guest) Console() string { return text(g.vm.console) }

// Wait waits until the guest has turned itself off, or QEMU has ended in another way.
func (g *Guest) Wait(ctx context.Context) error {
	select {
	case <-g.vm.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// quitGrace is how long QEMU may take to give a terminal back as it was.
const quitGrace = 2 * time.Second

// Close turns the guest off at once, as a power cut would. A second call does nothing.
func (g *Guest) Close() error {
	g.closeOnce.Do(func() {
		if g.opts.Terminal {
			ctx, cancel := context.WithTimeout(context.Background(), quitGrace)
			_ = g.mon.do(ctx, "quit", nil, nil)
			_ = g.Wait(ctx)
			cancel()
		}
		g.vm.kill()
		g.mon.close()
		if g.ch != nil {
			g.ch.close()
		} else {
			_ = g.vm.agent.Close()
		}
		g.closeErr = g.vm.close()
	})
	return g.closeErr
}
