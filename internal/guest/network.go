package guest

import (
	"fmt"
	"net/netip"
	"strings"

	"dozo/internal/lab"
)

// parseReach takes an address or a prefix.
func parseReach(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%w: %q is no address and no prefix", ErrUsage, text)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// tableFirst is the routing table of the first interface.
const tableFirst = 100

// networkScript is what a guest runs to use its interfaces. Answers leave by the interface whose address was asked,
// by a table of routes for each; what begins in the guest leaves by the first, unless Reach says otherwise or the
// program binds itself to an interface.
func networkScript(nics []NIC, taps []*lab.Tap) string {
	var b strings.Builder
	b.WriteString("set -e\nip link set lo up\n")
	if len(taps) == 0 {
		return b.String()
	}
	b.WriteString("modprobe virtio_net\nsysctl -q -w net.ipv6.conf.all.accept_ra=0 net.ipv6.conf.default.accept_ra=0 net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0\nip -batch - <<E\n")
	for i, t := range taps {
		dev, table := fmt.Sprintf("eth%d", i), tableFirst+i
		fmt.Fprintf(&b, "link set %s up\naddr add %s/32 dev %s\naddr add %s/128 dev %s nodad\n", dev, t.Addr4, dev, t.Addr6, dev)
		for _, to := range []string{fmt.Sprintf("metric %d", table), fmt.Sprintf("table %d", table)} {
			fmt.Fprintf(&b, "route add default via %s dev %s onlink src %s %s\n", t.Gateway4, dev, t.Addr4, to)
			fmt.Fprintf(&b, "route add ::/0 via %s dev %s onlink %s\n", t.Gateway6, dev, to)
		}
		fmt.Fprintf(&b, "rule add from %s table %d\n", t.Addr4, table)
		for _, r := range nics[i].Reach {
			p, err := parseReach(r)
			if err != nil {
				continue // checked when the guest was asked for
			}
			// IPv6 takes the address of the interface by itself, and refuses to be told while the address is new.
			how := fmt.Sprintf("via %s dev %s onlink src %s", t.Gateway4, dev, t.Addr4)
			if p.Addr().Is6() {
				how = fmt.Sprintf("via %s dev %s onlink", t.Gateway6, dev)
			}
			fmt.Fprintf(&b, "route add %s %s\n", p.Masked(), how)
		}
	}
	b.WriteString("E\n")
	for i, t := range taps {
		fmt.Fprintf(&b, "ip -6 rule add from %s table %d\n", t.Addr6, tableFirst+i)
	}
	return b.String()
}
