package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"dozo/internal/lab/router"
)

// Guests have the addresses behind those that sites may have: 10.77.SITE.201 and on, and the same numbers of IPv6.
const (
	tapFirst = addressesMax + 1
	tapLast  = 254
)

// tapGateway6 is the router that guests know: neighbours answer only for addresses of their own device, so it is one
// that every tap device has.
var tapGateway6 = netip.MustParseAddr("fe80::1")

// Tap is a device in a site's namespace with a guest behind it. It is there as long as its file is open, in whatever
// process.
type Tap struct {
	File   *os.File
	Device string
	Site   int // number of the site, from 1
	Number int // last byte of the addresses
	// What the guest has to use.
	Addr4, Addr6, Gateway4, Gateway6 netip.Addr
}

// In calls f on a thread that is at a site: sockets that f opens, and processes that it starts, are there for ever;
// goroutines that it starts are not.
func (l *Lab) In(site string, f func() error) error {
	s, err := l.Site(site)
	if err != nil {
		return err
	}
	return router.InNetNS(netnsPath(s.NetNS), f)
}

// Tap makes a tap device at a site, with addresses that no other has.
func (l *Lab) Tap(ctx context.Context, site string) (*Tap, error) {
	s, err := l.Site(site)
	if err != nil {
		return nil, err
	}
	t := &Tap{Site: 1 + slices.IndexFunc(l.Sites, func(x SiteSpec) bool { return x.Name == site }), Gateway4: s.Addresses[0], Gateway6: tapGateway6}
	fd := -1
	err = l.In(site, func() error {
		for t.Number = tapFirst; t.Number <= tapLast; t.Number++ {
			t.Device = fmt.Sprintf("guest%d", t.Number)
			// The name is the lock: one that exists is busy, or has another kind.
			if fd, err = openTap(t.Device); !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
		return fmt.Errorf("site %s has %d guests' devices already", site, tapLast-tapFirst+1)
	})
	if err != nil {
		return nil, fmt.Errorf("tap device at %s: %w", site, err)
	}
	t.File = os.NewFile(uintptr(fd), t.Device)
	t.Addr4, t.Addr6 = addr4(t.Site, t.Number), addr6(t.Site, t.Number)
	err = ip(ctx, s.NetNS, fmt.Sprintf("addr add %[1]s/64 dev %[2]s nodad\nlink set %[2]s up\nroute add %[3]s/32 dev %[2]s src %[4]s\nroute add %[5]s/128 dev %[2]s\n",
		t.Gateway6, t.Device, t.Addr4, t.Gateway4, t.Addr6))
	if err != nil {
		_ = t.File.Close()
		return nil, fmt.Errorf("tap device at %s: %w", site, err)
	}
	return t, nil
}

// openTap makes a tap device whose packets have the header that QEMU's virtio-net wants.
func openTap(device string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(device)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
