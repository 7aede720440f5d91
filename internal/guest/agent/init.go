package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the host and the guest call things.
const (
	// PortName is the virtio serial port that carries frames.
	PortName = "dozo.agent"
	// RootSerial is the serial number of the disk with the root.
	RootSerial = "dozoroot"
	// ModulesDir, in the first file system, has kernel modules, and the file ModulesList their names in order.
	ModulesDir  = "/boot"
	ModulesList = "/modules"
)

const (
	devicesWait = 10 * time.Second // a probed device's node is there within milliseconds
	devicesPoll = 2 * time.Millisecond
	searchPath  = "/usr/sbin:/usr/bin:/sbin:/bin"
)

// Init is process 1 of a guest: it mounts the root read-only below a file system in memory, serves the host, and turns
// the machine off when that ends. It returns only errors.
func Init(log *slog.Logger) error {
	if os.Getpid() != 1 {
		return errors.New("this is the init of a guest that dozo lab guest starts; it is nothing to be called")
	}
	err := func() error {
		port, err := prepare()
		if err != nil {
			return err
		}
		return NewServer(port, true).Serve()
	}()
	if err != nil {
		log.Error("guest agent ends", "err", err)
	}
	unix.Sync()
	return errors.Join(err, unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func mountAll(list ...mount) error {
	for _, m := range list {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
	}
	return nil
}

// prepare makes the machine usable and opens the channel to the host.
func prepare() (io.ReadWriter, error) {
	if err := mountAll(mount{"proc", "/proc", "proc", 0, ""}, mount{"sysfs", "/sys", "sysfs", 0, ""}, mount{"devtmpfs", "/dev", "devtmpfs", 0, ""}); err != nil {
		return nil, err
	}
	if err := loadModules(); err != nil {
		return nil, err
	}
	root, err := find("/sys/block/*/serial", RootSerial, devicesWait)
	if err != nil {
		return nil, fmt.Errorf("disk with the root: %w", err)
	}
	if err := mountAll(
		mount{"/dev/" + filepath.Base(filepath.Dir(root)), "/lower", "ext4", unix.MS_RDONLY, ""},
		mount{"tmpfs", "/upper", "tmpfs", 0, ""},
	); err != nil {
		return nil, err
	}
	for _, dir := range []string{"/upper/data", "/upper/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := mountAll(mount{"root", "/newroot", "overlay", 0, "lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work"}); err != nil {
		return nil, err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(dir, "/newroot"+dir, "", unix.MS_MOVE, ""); err != nil {
			return nil, fmt.Errorf("move %s: %w", dir, err)
		}
	}
	// The first file system stays below: its files are this program's.
	if err := errors.Join(os.Chdir("/newroot"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return nil, fmt.Errorf("change to the root: %w", err)
	}
	if err := mountAll(
		mount{"tmpfs", "/run", "tmpfs", 0, "mode=755"}, mount{"tmpfs", "/tmp", "tmpfs", 0, "mode=1777"},
		mount{"devpts", "/dev/pts", "devpts", 0, "ptmxmode=666"}, mount{"tmpfs", "/dev/shm", "tmpfs", 0, ""},
	); err != nil {
		return nil, err
	}
	for _, dir := range []string{"/run/lock", "/run/rpcbind", "/var/lib/nfs", "/var/lib/iscsi"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	for key, value := range map[string]string{"PATH": searchPath, "HOME": "/root", "TERM": "linux", "LANG": "C"} {
		if err := os.Setenv(key, value); err != nil {
			return nil, err
		}
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return nil, err
	}
	name, err := find("/sys/class/virtio-ports/*/name", PortName, devicesWait)
	if err != nil {
		return nil, fmt.Errorf("port to the host: %w", err)
	}
	return openPort("/dev/" + filepath.Base(filepath.Dir(name)))
}

func loadModules() error {
	list, err := os.ReadFile(ModulesList)
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open(filepath.Join(ModulesDir, name))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		// crc32c-intel finds no such processor, or a module is there already.
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
	}
	return nil
}

// find waits for a file with a content among those that a pattern matches.
func find(pattern, content string, within time.Duration) (string, error) {
	for deadline := time.Now().Add(within); ; time.Sleep(devicesPoll) {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, f := range files {
			if text, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(text)) == content {
				return f, nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("%s with %q: %w", pattern, content, fs.ErrNotExist)
		}
	}
}

// port is a virtio serial port. It is always open on the host's side but for the moment in which a migration ends.
type port struct{ f *os.File }

func openPort(path string) (*port, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &port{f}, nil
}

// Read takes the end of the file for what it is here: nobody is on the other side now.
func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := p.f.Read(b)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(devicesPoll)
	}
}

func (p *port) Write(b []byte) (int, error) { return p.f.Write(b) }
