package export

import (
	"net/netip"
	"testing"

	"dozo/internal/control"
)

// TestPortalFor: the portal to which an initiator is sent is one that it can reach.
func TestPortalFor(t *testing.T) {
	n := control.Node{}
	for _, a := range []string{"10.1.0.1:3260", "10.1.0.2:3260", "192.168.9.1:3260", "[fd00:1::1]:3260"} {
		n.Addrs.Portals = append(n.Addrs.Portals, control.Portal{Addr: netip.MustParseAddrPort(a)})
	}
	sites := []control.Site{{ID: 1, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64")}}}
	for _, x := range []struct {
		from string
		isid byte
		want string
	}{
		{"10.1.7.7", 0, "10.1.0.1:3260"},
		{"10.1.7.7", 1, "10.1.0.2:3260"}, // another port of the initiator: another portal
		{"fd00:1::9", 1, "[fd00:1::1]:3260"},
		{"fd00:2::9", 0, "[fd00:1::1]:3260"}, // of its family, though of another subnet
		{"172.16.0.1", 2, "192.168.9.1:3260"},
	} {
		if got := portalFor(sites, n, netip.MustParseAddr(x.from), [6]byte{5: x.isid}); got.String() != x.want {
			t.Errorf("from %s with ISID %d: %s, want %s", x.from, x.isid, got, x.want)
		}
	}
}
