package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

func newVolume(a *app) *cobra.Command {
	c := &cobra.Command{Use: "volume", Aliases: []string{"vol"}, Short: "Make, show, change and delete volumes"}
	c.AddCommand(newVolumeCreate(a), newVolumeList(a), newVolumeShow(a), newVolumeResize(a), newVolumeRename(a), newVolumeSet(a),
		newVolumeDelete(a), newVolumeTargets(a), newVolumeWait(a), newVolumeMove(a), newVolumeRecover(a),
		newVolumeMap(a), newVolumeUnmap(a), newVolumeMaps(a))
	return c
}

// tenantFlag gives a command the flag that all about volumes and hosts have.
func tenantFlag(c *cobra.Command, tenant *string) {
	c.Flags().StringVar(tenant, "tenant", "", "tenant of the name (default \"default\")")
}

func volumeNames(cmd *cobra.Command) func(context.Context, *api.Client) []string {
	return func(ctx context.Context, c *api.Client) []string {
		resp, err := c.Volumes.List(ctx, &dozov1.ListVolumesRequest{Tenant: tenantAsked(cmd)})
		if err != nil {
			return nil
		}
		var out []string
		for _, v := range resp.GetVolumes() {
			out = append(out, v.GetName()+"\t"+size.Format(v.GetSizeBytes())+" at "+v.GetOwnerSite())
		}
		return out
	}
}

// printVolume prints a volume that was made or changed.
func (a *app) printVolume(v *dozov1.Volume, done string) error {
	if a.format != view.Table {
		return a.format.Message(a.out, v)
	}
	_, err := fmt.Fprintf(a.out, "%s %s: %s, %s, %s\n", done, v.GetName(), size.Format(v.GetSizeBytes()), siteCount(v), v.GetDurability())
	return err
}

func parseSize(text string) (uint64, error) {
	n, err := size.Parse(text)
	if err != nil {
		return 0, usageError{err}
	}
	return n, nil
}

func number[N uint32 | uint64 | int64 | int](n N) string { return strconv.FormatInt(int64(n), 10) }

// siteCount says at how many sites a volume has a copy.
func siteCount(v *dozov1.Volume) string {
	if v.GetSites() == 1 {
		return "1 site"
	}
	return fmt.Sprintf("%d sites", v.GetSites())
}
