package up

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// PortError is an address that a node can not have.
type PortError struct {
	Node    string
	Addr    netip.AddrPort
	Process string // who has it, where that could be found out
	Err     error
}

func (e *PortError) Error() string {
	switch {
	case errors.Is(e.Err, syscall.EADDRINUSE) && e.Process != "":
		return fmt.Sprintf("%s needs %s, which is in use by %s", e.Node, e.Addr, e.Process)
	case errors.Is(e.Err, syscall.EADDRINUSE):
		return fmt.Sprintf("%s needs %s, which is in use by a process that can not be seen from here", e.Node, e.Addr)
	}
	return fmt.Sprintf("%s needs %s: %v", e.Node, e.Addr, e.Err)
}

func (e *PortError) Unwrap() error { return e.Err }

// portsPatience is how long an address may still be held by what can not be seen: a process that was killed has
// its sockets until its last thread is gone.
const portsPatience = 5 * time.Second

// portsFree tries the addresses of all. One that a process which can be named holds is an error at once.
func portsFree(procs []Process) error {
	for deadline := time.Now().Add(portsPatience); ; time.Sleep(50 * time.Millisecond) {
		var errs []error
		for _, p := range procs {
			errs = append(errs, checkPorts(p))
		}
		err := errors.Join(errs...)
		if err == nil || time.Now().After(deadline) || namesHolder(err) {
			return err
		}
	}
}

// namesHolder reports whether some port's holder is known, or the trouble is not that a port is held.
func namesHolder(err error) bool {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return slices.ContainsFunc(many.Unwrap(), namesHolder)
	}
	pe, ok := errors.AsType[*PortError](err)
	return !ok || pe.Process != "" || !errors.Is(pe, syscall.EADDRINUSE)
}

// checkPorts tries the addresses on which a process will listen. Somebody else may still take one before it
// does; then its log says so.
func checkPorts(p Process) error {
	var errs []error
	for _, port := range p.ports() {
		at := netip.AddrPortFrom(p.Addr, port)
		ln, err := net.Listen("tcp", at.String())
		if err == nil {
			err = ln.Close()
		}
		if err == nil {
			continue
		}
		pe := &PortError{Node: string(p.Name), Addr: at, Err: err}
		if errors.Is(err, syscall.EADDRINUSE) {
			pe.Process = listenerOf(at)
		}
		errs = append(errs, pe)
	}
	return errors.Join(errs...)
}

// listenerOf finds the process that listens on an IPv4 address, or on its port at all addresses: the socket's
// inode from /proc/net/tcp, and who has it open.
func listenerOf(at netip.AddrPort) string {
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if inode := listenInode(string(table), at); inode != "" {
			return processOf("socket:[" + inode + "]")
		}
	}
	return ""
}

// listenInode looks through a /proc/net/tcp table.
func listenInode(table string, at netip.AddrPort) string {
	const listening = "0A"
	for _, line := range strings.Split(table, "\n") {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != listening {
			continue
		}
		local, ok := parseProcAddr(f[1])
		if ok && local.Port() == at.Port() && (local.Addr() == at.Addr() || local.Addr().IsUnspecified()) {
			return f[9]
		}
	}
	return ""
}

// parseProcAddr takes ADDRESS:PORT of /proc/net/tcp: hexadecimal, the address in 32-bit words of the machine's
// byte order.
func parseProcAddr(text string) (netip.AddrPort, bool) {
	a, p, ok := strings.Cut(text, ":")
	raw, err := hex.DecodeString(a)
	port, perr := hex.DecodeString(p)
	if !ok || err != nil || perr != nil || len(port) != 2 || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(port)), ok
}

// processOf finds a process that has the socket open.
func processOf(socket string) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != socket {
			continue
		}
		proc := filepath.Dir(filepath.Dir(fd))
		comm, _ := os.ReadFile(filepath.Join(proc, "comm"))
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), filepath.Base(proc))
	}
	return ""
}
