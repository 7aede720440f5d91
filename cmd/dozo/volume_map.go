package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type volumeMap struct {
	lun int
	req dozov1.MapVolumeRequest
}

func newVolumeMap(a *app) *cobra.Command {
	var o volumeMap
	c := &cobra.Command{
		Use: "map VOLUME HOST", Short: "Show a volume to a host as a LUN of the hosts' target",
		Long: `Show a volume to a host (dozo host add) as a LUN of the hosts' target: one target of the cluster, at which each host finds
just the volumes that are mapped to it. Sessions that are open learn of the change by a unit attention. From then on the
host has the volume there instead of by the volume's own target.`,
		Example: "  dozo volume map web1 esx1 --lun 4\n  dozo volume map images esx1 --read-only",
		Args:    names("VOLUME", "HOST"), ValidArgsFunction: a.completeVolumeAndHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume, o.req.Host = args[0], args[1]
			if cmd.Flags().Changed("lun") {
				if o.lun < 0 {
					return usageError{fmt.Errorf("--lun %d: want 0 or more", o.lun)}
				}
				n := uint32(o.lun)
				o.req.Lun = &n
			}
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().IntVar(&o.lun, "lun", 0, "logical unit `number`, 0 to 16383 (default the lowest that the host does not have)")
	c.Flags().BoolVar(&o.req.ReadOnly, "read-only", false, "writes of this host end with DATA PROTECT")
	tenantFlag(c, &o.req.Tenant)
	return c
}

// completeVolumeAndHost completes a volume's name, then a host's.
func (a *app) completeVolumeAndHost(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return a.complete(cmd, nil, hostNames(cmd))
	}
	return a.complete(cmd, args, volumeNames(cmd))
}

func (o *volumeMap) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Map(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printMap(resp.GetMap(), "mapped")
	})
}

func (a *app) printMap(m *dozov1.VolumeMap, done string) error {
	if a.format != view.Table {
		return a.format.Message(a.out, m)
	}
	how := ""
	if m.GetReadOnly() {
		how = ", read-only"
	}
	_, err := fmt.Fprintf(a.out, "%s %s, host %s: LUN %d of %s%s\n", done, m.GetVolume(), m.GetHost(), m.GetLun(), m.GetIqn(), how)
	return err
}

type volumeUnmap struct{ req dozov1.UnmapVolumeRequest }

func newVolumeUnmap(a *app) *cobra.Command {
	var o volumeUnmap
	c := &cobra.Command{
		Use: "unmap VOLUME HOST", Short: "Take a volume away from a host",
		Long: `Take a volume away from a host that it was mapped to. Commands that are under way are completed; the LUN is gone from then
on, for sessions that are open too.`,
		Args: names("VOLUME", "HOST"), ValidArgsFunction: a.completeVolumeAndHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume, o.req.Host = args[0], args[1]
			return a.with(func(c *api.Client) error {
				resp, err := c.Volumes.Unmap(cmd.Context(), &o.req)
				if err != nil {
					return err
				}
				return a.printMap(resp.GetMap(), "unmapped")
			})
		},
	}
	tenantFlag(c, &o.req.Tenant)
	return c
}

type volumeMaps struct{ req dozov1.VolumeMapsRequest }

func newVolumeMaps(a *app) *cobra.Command {
	var o volumeMaps
	c := &cobra.Command{
		Use: "maps [VOLUME]", Short: "List which hosts have which volumes at which LUNs",
		Args: someNames(1), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.req.Volume = args[0]
			}
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.Host, "host", "", "only those of this `host`")
	a.completeFlag(c, "host", hostNames(c))
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeMaps) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Maps(ctx, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return view.List(a.format, a.out, resp.GetMaps())
		}
		g := view.NewGrid("HOST", "LUN", "VOLUME", "TENANT", "ACCESS")
		for _, m := range resp.GetMaps() {
			access := "read-write"
			if m.GetReadOnly() {
				access = "read-only"
			}
			g.Row(m.GetHost(), number(m.GetLun()), m.GetVolume(), m.GetTenant(), access)
		}
		return g.Write(a.out)
	})
}
