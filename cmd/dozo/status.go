package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

type status struct{ check bool }

func newStatus(a *app) *cobra.Command {
	var o status
	c := &cobra.Command{
		Use: "status", Short: "Show how the cluster is",
		Long: `Show how the cluster is: problems, the control store, and of every volume at every site how far its copy reaches and
how much it lags. Degraded means that fewer copies are there than asked for, or that something is down and no data
are at risk yet; critical that I/O has stopped somewhere or data are at risk.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	c.Flags().BoolVar(&o.check, "check", false, "end with exit code 8 unless all is well")
	return c
}

func (o *status) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Cluster.Status(ctx, &dozov1.StatusRequest{})
		if err != nil {
			return err
		}
		if a.format != view.Table {
			err = a.format.Message(a.out, resp)
		} else {
			err = a.statusTables(resp)
		}
		if err == nil && o.check && resp.GetHealth() != "ok" {
			return exitError{exitUnhealthy}
		}
		return err
	})
}

func (a *app) statusTables(s *dozov1.StatusResponse) error {
	store := "not connected since " + when(s.GetControl().GetSince())
	if s.GetControl().GetConnected() {
		store = fmt.Sprintf("connected, %d voters", len(s.GetControl().GetVoters()))
		if s.GetControl().GetExternal() {
			store = "connected, external"
		}
	}
	if err := view.Facts(a.out,
		"Cluster", fmt.Sprintf("%s (%s)", s.GetClusterName(), s.GetClusterId()), "Health", s.GetHealth(),
		"Nodes", fmt.Sprintf("%d of %d up, at %d sites", s.GetNodesUp(), s.GetNodes(), s.GetSites()),
		"Control store", store,
		"Space", fmt.Sprintf("%s of %s used", size.Format(s.GetUsedBytes()), size.Format(s.GetCapacityBytes()))); err != nil {
		return err
	}
	if line := blocksLine(s.GetBlocks()); line != "" {
		if err := view.Facts(a.out, "Copies", line); err != nil {
			return err
		}
	}
	if n := s.GetBlocks().GetStrayReplicas(); n > 0 {
		if err := view.Facts(a.out, "Left over", fmt.Sprintf("%d replicas, %s, belong to no segment: each goes once nothing can depend on it", n, size.Format(s.GetBlocks().GetStrayBytes()))); err != nil {
			return err
		}
	}
	if len(s.GetProblems()) > 0 {
		g := view.NewGrid("PROBLEM", "OBJECT", "SEVERITY", "SINCE", "WHAT")
		for _, p := range s.GetProblems() {
			g.Row(p.GetReason(), p.GetObject(), p.GetSeverity(), when(p.GetSince()), p.GetMessage())
		}
		fmt.Fprintln(a.out)
		if err := g.Write(a.out); err != nil {
			return err
		}
	}
	if len(s.GetVolumes()) == 0 {
		return nil
	}
	g := view.NewGrid("VOLUME", "STATE", "PROTECTION", "OWNER", "SITE", "COPY", "WATERMARK", "OF", "LAG", "LAG SECONDS")
	for _, v := range s.GetVolumes() {
		name, state, protection, owner := v.GetName(), v.GetState(), v.GetProtection(), v.GetOwner()
		if v.GetTenant() != "default" {
			name = v.GetTenant() + "/" + name
		}
		if len(v.GetCopies()) == 0 {
			g.Row(name, state, protection, owner)
		}
		for _, c := range v.GetCopies() {
			g.Row(name, state, protection, owner, c.GetSite(), c.GetState(), number(c.GetWatermarkSeq()), number(v.GetCommitSeq()), size.Format(c.GetLagBytes()), fmt.Sprintf("%.1f", c.GetLagSeconds()))
		}
	}
	fmt.Fprintln(a.out)
	return g.Write(a.out)
}

// blocksLine says what the block manager has to do, empty where that is nothing.
func blocksLine(b *dozov1.BlocksStatus) string {
	var parts []string
	add := func(bytes uint64, format string, args ...any) {
		if bytes > 0 {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(b.GetMissingBytes(), "%s to be made again", size.Format(b.GetMissingBytes()))
	add(b.GetEmptyingBytes(), "%s at stores that are emptied", size.Format(b.GetEmptyingBytes()))
	add(b.GetMovingBytes(), "%s to be moved to stores with room", size.Format(b.GetMovingBytes()))
	add(b.GetSegmentsSingle(), "%d segments with one copy left", b.GetSegmentsSingle())
	add(b.GetSegmentsStuck(), "%d segments can not be copied now", b.GetSegmentsStuck())
	if len(parts) == 0 {
		return ""
	}
	add(b.GetRateBps(), "%s/s", size.Format(b.GetRateBps()))
	if b.GetEta() != nil {
		parts = append(parts, "about "+b.GetEta().AsDuration().String())
	}
	return strings.Join(parts, ", ")
}
