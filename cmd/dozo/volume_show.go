package main

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

type volumeShow struct{ req dozov1.GetVolumeRequest }

func newVolumeShow(a *app) *cobra.Command {
	var o volumeShow
	c := &cobra.Command{
		Use: "show NAME", Short: "Show a volume and where its data are",
		Long: `Show a volume: who owns it, how far it is committed and stable, which stores take its writes, how far the copy at
each site reaches, and how many replicas each site has. With --segments every segment with its replicas and their
files, which dozo inspect reads.`,
		Args: names("NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVar(&o.req.Segments, "segments", false, "every segment and its replicas")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeShow) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Get(ctx, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return a.format.Message(a.out, resp)
		}
		if err := a.volumeFacts(resp.GetVolume(), resp.GetPlacement()); err != nil {
			return err
		}
		return a.placement(resp.GetPlacement(), o.req.GetSegments())
	})
}

func (a *app) volumeFacts(v *dozov1.Volume, p *dozov1.Placement) error {
	labels := make([]string, 0, len(v.GetLabels()))
	for k, x := range v.GetLabels() {
		labels = append(labels, k+"="+x)
	}
	sort.Strings(labels)
	owner := ""
	if v.GetOwner() != "" {
		owner = fmt.Sprintf("%s at %s, epoch %s", v.GetOwner(), v.GetOwnerSite(), v.GetEpoch())
	}
	degraded := ""
	if p.GetSegmentsDegraded() > 0 {
		degraded = fmt.Sprintf("%d segments, %s, have fewer copies than asked for", p.GetSegmentsDegraded(), size.Format(p.GetDegradedBytes()))
	}
	reason := "Waits"
	if v.GetState() == "cloning" {
		reason = "Incomplete"
	}
	return view.Facts(a.out,
		"Name", v.GetName(), "Tenant", v.GetTenant(), "ID", v.GetId(),
		"Size", fmt.Sprintf("%s (%d bytes), blocks of %d", size.Format(v.GetSizeBytes()), v.GetSizeBytes(), v.GetBlockSize()),
		"Holds", size.Format(p.GetMappedBytes()),
		"Policy", fmt.Sprintf("%s, %s, %s when cut off, ownership %s", siteCount(v), v.GetDurability(), v.GetPartition(), v.GetOwnership()),
		"Acknowledged", ackFact(v),
		"Paths", fmt.Sprintf("%s at other sites, redirect %s", v.GetAluaRemote(), v.GetRedirect()),
		"Hosts", strings.Join(v.GetHosts(), ", "), "Labels", strings.Join(labels, ", "), "Created", when(v.GetCreated()), "IQN", v.GetIqn(),
		"State", v.GetState(), reason, strings.TrimPrefix(v.GetStateReason(), "waiting for "), "Protection", v.GetProtection(), "Degraded", degraded, "Owner", owner,
		"Committed", position(p.GetCommit()), "Stable", position(p.GetStable()), "Checkpoint", position(p.GetCheckpoint()),
		"Segments", fmt.Sprintf("%d open, %d sealed", p.GetSegmentsOpen(), p.GetSegmentsSealed()),
		"Not heard", strings.Join(p.GetUnheard(), ", "))
}

// ackFact says when writes of a volume are acknowledged, and since when that is so.
func ackFact(v *dozov1.Volume) string {
	switch {
	case v.GetAck() != v.GetAckInEffect():
		return fmt.Sprintf("%s, once the other sites have caught up; %s is in effect", v.GetAck(), v.GetAckInEffect())
	case v.GetAckSince() > 0:
		return fmt.Sprintf("%s, since record %d", v.GetAck(), v.GetAckSince())
	}
	return v.GetAck()
}

func position(p *dozov1.Position) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("record %d of epoch %s, chain %.16s", p.GetSeq(), p.GetEpoch(), p.GetHash())
}

func (a *app) placement(p *dozov1.Placement, segments bool) error {
	replicas := map[string]*dozov1.SiteReplicas{}
	for _, r := range p.GetSiteReplicas() {
		replicas[r.GetSite()] = r
	}
	g := view.NewGrid("SITE", "STATE", "WATERMARK", "LAG", "LAG SECONDS", "SEGMENTS", "REPLICAS", "BYTES", "CONFIRMED")
	for _, c := range p.GetCopies() {
		r := replicas[c.GetSite()]
		g.Row(c.GetSite(), c.GetState(), number(c.GetWatermarkSeq()), size.Format(c.GetLagBytes()), fmt.Sprintf("%.1f", c.GetLagSeconds()),
			number(r.GetSegments()), number(r.GetReplicas()), size.Format(r.GetSizeBytes()), when(c.GetConfirmed()))
	}
	fmt.Fprintln(a.out)
	if err := g.Write(a.out); err != nil {
		return err
	}
	e := view.NewGrid("ENSEMBLE", "EPOCH", "NEWEST", "STORES")
	for _, x := range p.GetEnsembles() {
		var stores []string
		for _, s := range x.GetStores() {
			stores = append(stores, fmt.Sprintf("%s (%.8s)", s.GetNode(), s.GetId()))
		}
		newest := ""
		if x.GetNewest() {
			newest = "yes"
		}
		e.Row(number(x.GetNumber()), x.GetEpoch(), newest, strings.Join(stores, ", "))
	}
	fmt.Fprintln(a.out)
	if err := e.Write(a.out); err != nil || !segments {
		return err
	}
	s := view.NewGrid("SEGMENT", "KIND", "STATE", "RECORDS", "SIZE", "NODE", "REPLICA", "LAST", "FILE")
	for _, x := range p.GetSegments() {
		rows := x.GetReplicas()
		if len(rows) == 0 {
			rows = []*dozov1.Replica{nil}
		}
		for _, r := range rows {
			last := ""
			if r != nil {
				last = number(r.GetLastSeq())
			}
			s.Row(x.GetId(), x.GetKind(), x.GetState(), fmt.Sprintf("%d-%d", x.GetFirstSeq(), x.GetLastSeq()), size.Format(x.GetSizeBytes()),
				r.GetStore().GetNode(), r.GetState(), last, r.GetPath())
		}
	}
	fmt.Fprintln(a.out)
	return s.Write(a.out)
}
