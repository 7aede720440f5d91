package node

import (
	"cmp"
	"context"
	"slices"

	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// ListSites implements api.Sites.
func (b *backend) ListSites(ctx context.Context, _ *dozov1.ListSitesRequest) ([]*dozov1.Site, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	nodes, err := b.ListNodes(ctx, &dozov1.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	_, facts := b.heardBlocks(ctx, false)
	room := map[string]*spaces{}
	var out []*dozov1.Site
	byName := map[string]*dozov1.Site{}
	for _, s := range c.Sites() {
		x := siteMessage(s)
		out, byName[s.Name] = append(out, x), x
	}
	for _, x := range nodes {
		s := byName[x.Site]
		if s == nil {
			continue
		}
		s.Nodes++
		if x.State == nodeUp {
			s.NodesUp++
		}
		if room[x.Site] == nil {
			room[x.Site] = newSpaces(facts)
		}
		for _, st := range x.Stores {
			s.CapacityBytes += room[x.Site].add(st.Id, st.CapacityBytes)
			s.UsedBytes += st.UsedBytes
		}
	}
	for _, v := range c.Volumes() {
		state, _, _ := c.Journal(v.ID)
		if x, ok := c.Node(state.Owner); ok {
			if s := byName[b.siteName(x.Site)]; s != nil {
				s.VolumesOwned++
			}
		}
	}
	slices.SortFunc(out, func(a, b *dozov1.Site) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func siteMessage(s control.Site) *dozov1.Site {
	x := &dozov1.Site{Id: uint32(s.ID), Name: s.Name}
	for _, p := range s.CIDRs {
		x.Cidrs = append(x.Cidrs, p.String())
	}
	return x
}

// CreateSite implements api.Sites.
func (b *backend) CreateSite(ctx context.Context, req *dozov1.CreateSiteRequest) (*dozov1.Site, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	cidrs, err := parsePrefixes(req.Cidrs)
	if err != nil {
		return nil, err
	}
	s, err := c.CreateSite(ctx, control.Site{Name: req.Name, CIDRs: cidrs})
	if err != nil {
		return nil, err
	}
	return siteMessage(s), nil
}

// siteNodes lists the nodes at a site; 0: all.
func siteNodes(c *control.Client, site ident.SiteID) []control.Node {
	return slices.DeleteFunc(c.Nodes(), func(x control.Node) bool { return site != 0 && x.Site != site })
}
