package router

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Of linux/if_tun.h: what super-packets the device may give.
const tunOffloads = 0x01 | 0x02 | 0x04 | 0x08 // TUN_F_CSUM, TSO4, TSO6, TSO_ECN

// openTUN makes a TUN device in a network namespace and gives its file. The device lives as long as the file
// is open, wherever the process itself is.
func openTUN(netns, device string) (fd int, err error) {
	err = InNetNS(netns, func() error {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(device)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err == nil {
			err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunOffloads)
		}
		if err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("make TUN device %s: %w", device, err)
		}
		return nil
	})
	if err != nil {
		return -1, fmt.Errorf("namespace %s: %w", netns, err)
	}
	return fd, nil
}

// InNetNS calls f on a thread that is in a network namespace. Sockets that f opens and processes that it starts
// are of that namespace for ever; goroutines that it starts are not in it.
func InNetNS(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			runtime.LockOSThread()
			self, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				runtime.UnlockOSThread()
				return err
			}
			defer unix.Close(self)
			ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				runtime.UnlockOSThread()
				return err
			}
			defer unix.Close(ns)
			if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
				runtime.UnlockOSThread()
				return fmt.Errorf("setns: %w", err)
			}
			ferr := f()
			// A thread that can not go back ends with its goroutine, being locked to it.
			if unix.Setns(self, unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			return ferr
		}()
	}()
	return <-done
}
