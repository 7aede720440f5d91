package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"dozo/internal/size"
)

// ParseSize takes what size.Parse takes, as the command line does, up to what an int64 holds.
func ParseSize(text string) (Size, error) {
	n, err := size.Parse(text)
	if err != nil {
		return 0, err
	}
	if n > math.MaxInt64 {
		return 0, fmt.Errorf("size %q: %w", text, size.ErrRange)
	}
	return Size(n), nil
}

// String is the shortest exact form: 64MiB, or plain bytes where no unit divides it.
func (s Size) String() string {
	for i, unit := range []string{"PiB", "TiB", "GiB", "MiB", "KiB"} {
		if f := Size(1) << (10 * (5 - i)); s != 0 && s%f == 0 {
			return strconv.FormatInt(int64(s/f), 10) + unit
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// UnmarshalText takes what ParseSize takes.
func (s *Size) UnmarshalText(text []byte) (err error) { *s, err = ParseSize(string(text)); return err }

// MarshalText gives what String gives.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes what time.ParseDuration takes; a bare number is refused for want of a unit.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("duration %q: want a number with a unit, such as 500ms, 1s, 10m", text)
	}
	*d = Duration(v)
	return nil
}

func (d Duration) String() string {
	// 10m rather than 10m0s.
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// MarshalText gives what String gives.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText takes address, address:port, [IPv6] and [IPv6]:port; also an IPv6 address without brackets,
// which then has no port. Host names are not taken: what a node listens on must not depend on a resolver.
func (e *Endpoint) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Port() == 0 {
			return fmt.Errorf("address %q: port 0 can not be told to others", s)
		}
		*e = Endpoint{ap.Addr(), ap.Port()}
		return nil
	}
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	a, err := netip.ParseAddr(bare)
	if err != nil {
		return fmt.Errorf("address %q: want an IP address, perhaps with a port, such as 10.0.0.1, 10.0.0.1:3260 or [fd00::1]:3260", s)
	}
	*e = Endpoint{Addr: a}
	return nil
}

// IsZero reports that nothing was given.
func (e Endpoint) IsZero() bool { return e == Endpoint{} }

// AddrPort is for listening and dialling.
func (e Endpoint) AddrPort() netip.AddrPort { return netip.AddrPortFrom(e.Addr, e.Port) }

func (e Endpoint) String() string {
	switch {
	case !e.Addr.IsValid():
		return ""
	case e.Port == 0:
		return e.Addr.String()
	}
	return e.AddrPort().String()
}

// MarshalText gives what String gives.
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// orPort fills in the port.
func (e Endpoint) orPort(port uint16) Endpoint {
	if !e.IsZero() && e.Port == 0 {
		e.Port = port
	}
	return e
}

// or gives e, or a with the port where e is not given.
func (e Endpoint) or(a netip.Addr, port uint16) Endpoint {
	if e.IsZero() && a.IsValid() {
		e.Addr = a
	}
	return e.orPort(port)
}

// dialable says why others can not reach the address, or nil.
func (e Endpoint) dialable() error {
	switch {
	case !e.Addr.IsValid():
		return errors.New("is missing")
	case e.Addr.IsUnspecified():
		return fmt.Errorf("is %s, which others can not dial: give the interface's own address", e.Addr)
	case e.Addr.IsMulticast():
		return fmt.Errorf("is %s, a multicast address", e.Addr)
	}
	return nil
}

// IP is an address without a port. It is a type of its own so that the YAML encoder sees when it is not given.
type IP struct{ netip.Addr }

// IsZero reports that nothing was given.
func (a IP) IsZero() bool { return !a.IsValid() }

// UnmarshalText takes an IP address.
func (a *IP) UnmarshalText(text []byte) (err error) {
	if a.Addr, err = netip.ParseAddr(strings.TrimSpace(string(text))); err != nil {
		return fmt.Errorf("address %q: want an IP address without a port, such as 10.0.0.1 or fd00::1", text)
	}
	return nil
}

// scalar decodes text and says on which line it was wrong, which the YAML decoder by itself does not.
func scalar(n *yaml.Node, v encoding.TextUnmarshaler) error {
	text := n.Value
	if n.Kind != yaml.ScalarNode {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: want one value, not a list or a table", n.Line)}}
	}
	if err := v.UnmarshalText([]byte(text)); err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %v", n.Line, err)}}
	}
	return nil
}

// UnmarshalYAML is UnmarshalText with the line in errors.
func (s *Size) UnmarshalYAML(n *yaml.Node) error { return scalar(n, s) }

// UnmarshalYAML is UnmarshalText with the line in errors.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error { return scalar(n, d) }

// UnmarshalYAML is UnmarshalText with the line in errors.
func (e *Endpoint) UnmarshalYAML(n *yaml.Node) error { return scalar(n, e) }

// UnmarshalYAML is UnmarshalText with the line in errors.
func (a *IP) UnmarshalYAML(n *yaml.Node) error { return scalar(n, a) }
