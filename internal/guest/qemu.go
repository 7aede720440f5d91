package guest

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dozo/internal/guest/agent"
	"dozo/internal/lab"
)

const (
	qemuProgram = "qemu-system-x86_64"
	// DefaultMemory is enough for the tools. What a guest has not touched costs nothing, here or in a migration.
	DefaultMemory = 384 << 20
	memoryMin     = 192 << 20
	// DefaultAccel is what every machine has.
	DefaultAccel = "tcg"
	nicsMax      = 8
	disksMax     = 8
)

// kernelLine is the kernel's command line. cryptomgr.notests saves seconds of emulated self-tests; net.ifnames is udev's;
// the rest keeps the kernel from measuring and guarding what an emulated processor has not.
const kernelLine = "console=ttyS0 quiet loglevel=3 rdinit=/init panic=-1 cryptomgr.notests mitigations=off net.ifnames=0 random.trust_cpu=on"

// agentArgs are what the init is called with: the kernel passes on what stands behind --.
var agentArgs = []string{"lab", "guest", "agent"}

// ErrTool: a program that is needed is not installed.
var ErrTool = errors.New("not installed")

// Disk is a disk of a guest: /dev/vdb, /dev/vdc and so on.
type Disk struct {
	// Source is a file, or an iscsi:// URL that QEMU's own initiator opens at the guest's site.
	Source string
	// Format of a file: raw (default), qcow2.
	Format string
}

// NIC is a network interface of a guest: eth0, eth1 and so on.
type NIC struct {
	Site string
	// Reach are the addresses that the guest reaches through this interface rather than through the first: portals, so
	// that each is a path of its own.
	Reach []string
}

// Options say what to boot.
type Options struct {
	Image *Image
	// Agent is a dozo program, linked statically; empty: the running one.
	Agent string
	// Lab is where sites are; QEMU itself, and so its iSCSI initiator, runs at Site. Without a lab a guest has no network,
	// and QEMU runs where the caller does. Default for Site: that of the first interface.
	Lab  *lab.Lab
	Site string
	NICs []NIC

	Disks       []Disk
	MemoryBytes int64  // 0: DefaultMemory
	CPUs        int    // 0: 1
	Accel       string // QEMU's accelerator; empty: DefaultAccel
	Name        string // of the guest, and of QEMU's initiator
	// Terminal makes this process's terminal the guest's console.
	Terminal bool

	incoming *Guest // which is to be taken over
}

// InitiatorName is what QEMU's initiator calls itself for a guest of a name.
func InitiatorName(name string) string { return "iqn.2008-11.org.linux-kvm:" + name }

func (o Options) withDefaults() (Options, error) {
	if o.MemoryBytes == 0 {
		o.MemoryBytes = DefaultMemory
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.Accel == "" {
		o.Accel = DefaultAccel
	}
	if o.Name == "" {
		o.Name = "guest"
	}
	if o.Site == "" && len(o.NICs) > 0 {
		o.Site = o.NICs[0].Site
	}
	if o.Agent == "" {
		exe, err := os.Executable()
		if err != nil {
			return o, err
		}
		o.Agent = exe
	}
	switch {
	case o.MemoryBytes < memoryMin:
		return o, fmt.Errorf("%w: %d MiB of memory: a guest needs %d", ErrUsage, o.MemoryBytes>>20, memoryMin>>20)
	case o.CPUs < 1 || o.CPUs > 64:
		return o, fmt.Errorf("%w: %d processors: want 1 to 64", ErrUsage, o.CPUs)
	case len(o.NICs) > nicsMax || len(o.Disks) > disksMax:
		return o, fmt.Errorf("%w: a guest has at most %d interfaces and %d disks", ErrUsage, nicsMax, disksMax)
	case o.Lab == nil && o.Site != "":
		return o, fmt.Errorf("%w: site %s, but no lab", ErrUsage, o.Site)
	case strings.ContainsAny(o.Name+o.Accel, ", "):
		return o, fmt.Errorf("%w: a comma or space in %q or %q", ErrUsage, o.Name, o.Accel)
	}
	for _, n := range o.NICs {
		for _, a := range n.Reach {
			if _, err := parseReach(a); err != nil {
				return o, err
			}
		}
	}
	return o, checkStatic(o.Agent)
}

// checkStatic refuses a program that needs libraries, which the guest's first file system has not: the kernel would
// only say that there is no init.
func checkStatic(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("the guest's agent: %w", err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("%s is a program for %v; guests have x86-64 processors", program, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked to libraries and can not be the init of a guest; build dozo with CGO_ENABLED=0, as make build does", program)
		}
	}
	return nil
}

// vm is a QEMU process and our ends of its channels.
type vm struct {
	cmd     *exec.Cmd
	said    *os.File // what QEMU and
	console *os.File // what the guest have printed
	mon     net.Conn
	agent   net.Conn
	exited  chan struct{}
	exitErr error // once exited is closed
}

// text is all that a file has. It is written by others, so its position is of no use.
func text(f *os.File) string {
	var b strings.Builder
	_, _ = io.Copy(&b, io.NewSectionReader(f, 0, textMax))
	return b.String()
}

// problems is what QEMU and the guest have said, for an error.
func (v *vm) problems() string {
	all := strings.TrimSpace(text(v.said) + "\n" + text(v.console))
	if len(all) > 2000 {
		all = "... " + all[len(all)-2000:]
	}
	if all == "" {
		return ""
	}
	return "\n    " + strings.ReplaceAll(all, "\n", "\n    ")
}

// kill ends QEMU and waits for it; it can be called again.
func (v *vm) kill() {
	_ = v.cmd.Process.Kill()
	<-v.exited
}

// gone says how QEMU has ended.
func (v *vm) gone() error {
	how := "status 0: the guest turned itself off, or reset"
	if v.exitErr != nil {
		how = v.exitErr.Error()
	}
	return fmt.Errorf("%w: %s", errGone, how)
}

// close gives the files of a QEMU back that has ended.
func (v *vm) close() error { return closer(v.said, v.console) }

// startVM starts a QEMU process.
func startVM(o Options, taps []*lab.Tap) (_ *vm, err error) {
	program, err := exec.LookPath(qemuProgram)
	if err != nil {
		return nil, fmt.Errorf("%s is %w: package qemu-system-x86", qemuProgram, ErrTool)
	}
	for _, d := range o.Disks {
		if strings.HasPrefix(d.Source, "iscsi:") {
			if m, _ := filepath.Glob("/usr/lib/*/qemu/block-iscsi.so"); len(m) == 0 && isDebian() {
				return nil, fmt.Errorf("QEMU's iSCSI initiator is %w: package qemu-block-extra", ErrTool)
			}
		}
	}
	v := &vm{exited: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
		if err != nil {
			for _, c := range []net.Conn{v.mon, v.agent} {
				if c != nil {
					_ = c.Close()
				}
			}
			for _, f := range []*os.File{v.said, v.console} {
				if f != nil {
					_ = f.Close()
				}
			}
		}
	}()
	for _, ours := range []*net.Conn{&v.mon, &v.agent} {
		f, c, err := socketPair()
		if err != nil {
			return nil, err
		}
		theirs, *ours = append(theirs, f), c
	}
	initrd, err := memoryFile("initrd")
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, initrd)
	if err := o.Image.writeInitrd(initrd, o.Agent); err != nil {
		return nil, fmt.Errorf("the guest's first file system: %w", err)
	}
	for _, f := range []**os.File{&v.said, &v.console} {
		if *f, err = memoryFile("log"); err != nil {
			return nil, err
		}
	}
	v.cmd = exec.Command(program, qemuArgs(o, taps)...)
	v.cmd.Stdout, v.cmd.Stderr = v.said, v.said
	v.cmd.ExtraFiles = append(slices.Clone(theirs), v.console)
	for _, t := range taps {
		v.cmd.ExtraFiles = append(v.cmd.ExtraFiles, t.File)
	}
	// It ends with this process, however that ends.
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if o.Terminal {
		v.cmd.Stdin, v.cmd.Stdout = os.Stdin, os.Stdout
		v.cmd.SysProcAttr.Setsid = false
	}
	// The signal comes when the thread that started it ends, and Go's threads do not all live as long as the process:
	// so one thread starts it, stays with it and sees it end.
	started := make(chan error, 1)
	run := func() error {
		if err := v.cmd.Start(); err != nil {
			return err
		}
		started <- nil
		v.exitErr = v.cmd.Wait()
		close(v.exited)
		return nil
	}
	go func() {
		var err error
		if o.Lab != nil && o.Site != "" {
			err = o.Lab.In(o.Site, run)
		} else {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			err = run()
		}
		if err != nil {
			started <- err
		}
	}()
	if err = <-started; err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	return v, nil
}

// memoryFile makes a file without a name, so nothing is left of it after a crash.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func isDebian() bool {
	_, err := os.Stat("/etc/debian_version")
	return err == nil
}

func socketPair() (*os.File, net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "qemu"), os.NewFile(uintptr(fds[1]), "ours")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return theirs, c, nil
}

// File descriptors that QEMU inherits.
const (
	fdMonitor  = 3
	fdAgent    = 4
	fdInitrd   = 5
	fdConsole  = 6
	fdFirstTap = 7
)

// textMax bounds what is read of a log.
const textMax = 1 << 20

// inherited names an inherited file by a path.
func inherited(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// qemuArgs makes the command line. Devices have fixed places: both ends of a migration must agree on them.
func qemuArgs(o Options, taps []*lab.Tap) []string {
	quote := func(s string) string { return strings.ReplaceAll(s, ",", ",,") }
	a := []string{
		"-name", quote(o.Name), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc,usb=off,accel=" + o.Accel, "-cpu", "max", "-smp", strconv.Itoa(o.CPUs), "-m", strconv.FormatInt(o.MemoryBytes>>20, 10),
		"-kernel", filepath.Join(o.Image.Dir, fileKernel), "-initrd", inherited(fdInitrd),
		"-append", kernelLine + " -- " + strings.Join(agentArgs, " "),
		"-chardev", fmt.Sprintf("socket,id=mon,fd=%d", fdMonitor), "-mon", "chardev=mon,mode=control",
	}
	if o.Terminal {
		a = append(a, "-chardev", "stdio,id=console,signal=off")
	} else {
		a = append(a, "-chardev", "file,id=console,path="+inherited(fdConsole))
	}
	a = append(a, "-serial", "chardev:console",
		"-device", "virtio-serial-pci,addr=0x3", "-chardev", fmt.Sprintf("socket,id=agent,fd=%d", fdAgent),
		"-device", "virtserialport,chardev=agent,name="+agent.PortName,
		// Nobody writes to it, so any number of guests may have it.
		"-drive", "if=none,id=root,format=raw,readonly=on,file.locking=off,file="+quote(filepath.Join(o.Image.Dir, fileRoot)),
		"-device", "virtio-blk-pci,addr=0x4,drive=root,serial="+agent.RootSerial)
	iscsi := false
	for i, d := range o.Disks {
		format := d.Format
		if format == "" {
			format = "raw"
		}
		iscsi = iscsi || strings.HasPrefix(d.Source, "iscsi:")
		a = append(a, "-drive", fmt.Sprintf("if=none,id=disk%d,format=%s,cache=none,discard=unmap,file=%s", i, format, quote(d.Source)),
			"-device", fmt.Sprintf("virtio-blk-pci,addr=0x%x,drive=disk%d,serial=disk%d", 5+i, i, i))
	}
	if iscsi {
		a = append(a, "-iscsi", "initiator-name="+quote(InitiatorName(o.Name)))
	}
	for i, t := range taps {
		a = append(a, "-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, fdFirstTap+i),
			"-device", fmt.Sprintf("virtio-net-pci,id=nic%d,addr=0x%x,netdev=net%d,romfile=,mac=52:54:00:77:%02x:%02x", i, 5+disksMax+i, i, t.Site, t.Number))
	}
	if o.incoming != nil {
		a = append(a, "-incoming", "defer")
	}
	return a
}

// cpuTime is the processor time that a process has used.
func cpuTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	// The kernel reports in hundredths on every Linux (USER_HZ).
	return time.Duration(user+system) * 10 * time.Millisecond
}

// closer makes a list of things to close one error.
func closer(list ...io.Closer) error {
	var errs []error
	for _, c := range list {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// makeTaps makes a tap device for every interface.
func makeTaps(ctx context.Context, o Options) (_ []*lab.Tap, err error) {
	var taps []*lab.Tap
	for _, n := range o.NICs {
		t, err := o.Lab.Tap(ctx, n.Site)
		if err != nil {
			return nil, errors.Join(err, closeTaps(taps))
		}
		taps = append(taps, t)
	}
	return taps, nil
}

// closeTaps closes our descriptors: the devices are then QEMU's alone.
func closeTaps(taps []*lab.Tap) error {
	var files []io.Closer
	for _, t := range taps {
		files = append(files, t.File)
	}
	return closer(files...)
}
