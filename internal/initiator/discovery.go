package initiator

import (
	"context"
	"fmt"
	"strings"
)

// DiscoveredTarget is a target as SendTargets lists it.
type DiscoveredTarget struct {
	Name      string          `json:"name"`
	Addresses []PortalAddress `json:"addresses"` // empty: the address that was asked
}

// PortalAddress is one TargetAddress.
type PortalAddress struct {
	Addr     string `json:"addr"`      // host:port
	GroupTag string `json:"group_tag"` // portal group tag
}

// Discover asks cfg.Portal for its targets; cfg.Target, if set, limits the question to one (SendTargets=name).
func Discover(ctx context.Context, cfg Config) ([]DiscoveredTarget, error) {
	what := "All"
	if cfg.Target != "" {
		what = cfg.Target
	}
	cfg.Discovery = true
	s, err := Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	keys, err := s.Text(ctx, []KeyValue{{"SendTargets", what}})
	if cerr := s.Close(ctx); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	var out []DiscoveredTarget
	for _, kv := range keys {
		switch kv.Key {
		case "TargetName":
			out = append(out, DiscoveredTarget{Name: kv.Value})
		case "TargetAddress":
			if len(out) == 0 {
				return nil, fmt.Errorf("discovery: an address before any target")
			}
			addr, tag, _ := strings.Cut(kv.Value, ",")
			t := &out[len(out)-1]
			t.Addresses = append(t.Addresses, PortalAddress{withPort(addr), tag})
		case "SendTargets":
			if kv.Value == "Reject" || kv.Value == "NotUnderstood" {
				return nil, fmt.Errorf("discovery: target answers SendTargets=%s", kv.Value)
			}
		}
	}
	return out, nil
}
