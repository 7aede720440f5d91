package node

import (
	"context"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api/dozov1"
	"dozo/internal/control"
)

// hostMessage is a host without its secrets.
func hostMessage(h control.Host) *dozov1.Host {
	out := &dozov1.Host{Tenant: h.Tenant, Name: h.Name, InitiatorNames: h.InitiatorNames, ChapInUser: h.CHAP.InUser, ChapOutUser: h.CHAP.OutUser,
		Auth: hostAuth(h), Created: timestamppb.New(h.Created)}
	for _, c := range h.CIDRs {
		out.Cidrs = append(out.Cidrs, c.String())
	}
	return out
}

// hostAuth says which directions a host's credentials are for.
func hostAuth(h control.Host) string {
	return authOf(h.CHAP)
}

func authOf(c control.CHAP) string {
	switch {
	case c.InSecret.IsZero():
		return "none"
	case c.OutSecret.IsZero():
		return "chap"
	}
	return "mutual"
}

func chapOf(c *dozov1.ChapCredentials) control.CHAP {
	if c == nil {
		return control.CHAP{}
	}
	return control.CHAP{InUser: c.InUser, InSecret: control.NewSecret(c.InSecret), OutUser: c.OutUser, OutSecret: control.NewSecret(c.OutSecret)}
}

func parsePrefixes(list []string) (out []netip.Prefix, err error) {
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("CIDR %q: %w", text, control.ErrInvalid)
		}
		out = append(out, p)
	}
	return out, nil
}

// AddHost implements api.Hosts.
func (b *backend) AddHost(ctx context.Context, req *dozov1.AddHostRequest) (*dozov1.Host, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	cidrs, err := parsePrefixes(req.Cidrs)
	if err != nil {
		return nil, err
	}
	h, err := c.CreateHost(ctx, control.Host{Tenant: req.Tenant, Name: req.Name, InitiatorNames: req.InitiatorNames, CIDRs: cidrs, CHAP: chapOf(req.Chap)})
	if err != nil {
		return nil, err
	}
	return hostMessage(h), nil
}

// ListHosts implements api.Hosts.
func (b *backend) ListHosts(_ context.Context, req *dozov1.ListHostsRequest) (out []*dozov1.Host, err error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	for _, h := range c.Hosts() {
		if req.Tenant == "" || h.Tenant == req.Tenant {
			out = append(out, hostMessage(h))
		}
	}
	return out, nil
}

// SetHostChap implements api.Hosts.
func (b *backend) SetHostChap(ctx context.Context, req *dozov1.SetChapRequest) (*dozov1.Host, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	h, err := c.UpdateHost(ctx, req.Tenant, req.Host, func(h *control.Host) error {
		h.CHAP = chapOf(req.Chap)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return hostMessage(h), nil
}

// Discovery implements api.Hosts.
func (b *backend) Discovery(context.Context) (*dozov1.Discovery, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	return discoveryMessage(c.Discovery()), nil
}

// SetDiscovery implements api.Hosts.
func (b *backend) SetDiscovery(ctx context.Context, req *dozov1.SetDiscoveryRequest) (*dozov1.Discovery, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	chap := chapOf(req.Chap)
	if err := c.SetDiscovery(ctx, chap); err != nil {
		return nil, err
	}
	return discoveryMessage(chap), nil
}

func discoveryMessage(c control.CHAP) *dozov1.Discovery {
	return &dozov1.Discovery{Auth: authOf(c), ChapInUser: c.InUser, ChapOutUser: c.OutUser}
}

// DeleteHost implements api.Hosts.
func (b *backend) DeleteHost(ctx context.Context, req *dozov1.DeleteHostRequest) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	return c.DeleteHost(ctx, req.Tenant, req.Host)
}
