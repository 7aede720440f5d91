package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"dozo/internal/lab/router"
)

// Exec replaces this process by a command in a site's namespace. It returns only if that can not be.
func (l *Lab) Exec(site string, args, env []string) error {
	s, err := l.Site(site)
	if err != nil {
		return err
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	ns, err := unix.Open(netnsPath(s.NetNS), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("namespace of %s: %w", site, err)
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("namespace of %s: %w", site, err)
	}
	// /sys shows the devices of the namespace in which it was mounted: a private one, as ip netns exec does.
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, "")); err != nil {
		return fmt.Errorf("mounts of %s: %w", site, err)
	}
	if unix.Unmount("/sys", unix.MNT_DETACH) == nil {
		if err := unix.Mount(site, "/sys", "sysfs", 0, ""); err != nil {
			return fmt.Errorf("mount /sys: %w", err)
		}
	}
	return fmt.Errorf("%s: %w", program, syscall.Exec(program, args, append(os.Environ(), env...)))
}

// Start starts a command in a site's namespace.
func (l *Lab) Start(site string, cmd *exec.Cmd) error {
	s, err := l.Site(site)
	if err != nil {
		return err
	}
	return router.InNetNS(netnsPath(s.NetNS), cmd.Start)
}
