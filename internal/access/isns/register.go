package isns

import (
	"maps"
	"net/netip"
	"slices"
)

// Target is what is registered of one.
type Target struct {
	Name  string // iSCSI name
	Alias string
}

// Portal is an address of this access server, with its portal group tag.
type Portal struct {
	Addr  netip.AddrPort
	Group uint16
	// esi is the port at which the server may ask whether the portal is there; 0: it doesn't.
	esi uint16
}

// esiInterval is how often a server should ask, in seconds.
const esiInterval = 20

func (p Portal) key(ip, port uint32) []attr {
	return []attr{address(ip, p.Addr.Addr()), number(port, uint32(p.Addr.Port()))}
}

// entity is the message key and what identifies the cluster.
func (c *Client) entity() attr { return text(tagEntityID, c.cfg.Entity) }

// registration makes the messages that register portals and targets: the first has the portals, and each as many targets
// as fit. The first target stands for who registers (RFC 4171 5.6.1: the source has to be a node).
func (c *Client) registration(portals []Portal, targets []Target) []message {
	if len(targets) == 0 {
		return nil
	}
	head := func() []attr {
		return []attr{text(tagName, targets[0].Name), c.entity(), delimiter(), c.entity(), number(tagEntityProtocol, protocolISCSI)}
	}
	attrs := head()
	for _, p := range portals {
		attrs = append(attrs, p.key(tagPortalIP, tagPortalPort)...)
		if p.esi != 0 {
			attrs = append(attrs, number(tagESIInterval, esiInterval), number(tagESIPort, uint32(p.esi)))
		}
	}
	var list []message
	for _, t := range targets {
		own := []attr{text(tagName, t.Name), number(tagNodeType, nodeTarget)}
		if t.Alias != "" {
			own = append(own, text(tagAlias, t.Alias))
		}
		for _, p := range portals {
			own = append(own, text(tagGroupName, t.Name))
			own = append(own, p.key(tagGroupIP, tagGroupPort)...)
			own = append(own, number(tagGroupTag, uint32(p.Group)))
		}
		if size(attrs)+size(own) > registrationMax {
			list = append(list, message{function: fnDevAttrReg, flags: flagClient, attrs: attrs})
			attrs = head()
		}
		attrs = append(attrs, own...)
	}
	return append(list, message{function: fnDevAttrReg, flags: flagClient, attrs: attrs})
}

// registrationMax keeps messages, and the answers, which repeat them, far from messageMax.
const registrationMax = messageMax / 2

func size(attrs []attr) (n int) {
	for _, a := range attrs {
		n += 8 + len(a.value)
	}
	return n
}

// deregistration takes targets and portals out.
func (c *Client) deregistration(source string, targets []string, portals []Portal) message {
	attrs := []attr{text(tagName, source), delimiter()}
	for _, t := range targets {
		attrs = append(attrs, text(tagName, t))
	}
	for _, p := range portals {
		attrs = append(attrs, p.key(tagPortalIP, tagPortalPort)...)
	}
	return message{function: fnDevDereg, flags: flagClient, attrs: attrs}
}

// changes says what to register and what to take out, in the order of names.
func changes(old map[string]string, now []Target) (add []Target, gone []string) {
	left := maps.Clone(old)
	for _, t := range now {
		if alias, ok := left[t.Name]; !ok || alias != t.Alias {
			add = append(add, t)
		}
		delete(left, t.Name)
	}
	return add, slices.Sorted(maps.Keys(left))
}
