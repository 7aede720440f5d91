package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type volumeDelete struct {
	yes      bool
	ifExists bool
	numbered numbered
	req      dozov1.DeleteVolumeRequest
}

func newVolumeDelete(a *app) *cobra.Command {
	var o volumeDelete
	c := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete volumes and their data at all sites",
		Long: `Delete a volume, or several, and the data at all sites. Its name is free at once; the data go in the background. A volume with open
sessions is not deleted unless --force is given, nor one that may have some at an access server that can not be asked.
With --force nobody can log in to it any more, and its sessions are ended at every access server, at one that is away when
it is back.

Of several volumes, or with --count, none is deleted if one of them is not there or has sessions. If it fails on the way, or is
interrupted, it says which were deleted; what was under way, 200 volumes at most, may be deleted besides. The same command with
--if-exists then deletes the rest.`,
		Example: "  dozo volume delete web1\n  dozo volume delete web1 web2 web3 --yes\n  dozo volume delete desk --count 500\n  dozo volume delete desk --count 500 --yes --if-exists",
		Args:    someNames(0, "NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("count") && len(args) > 1 {
				return usageError{fmt.Errorf("--count goes with one NAME, the common part of the names")}
			}
			many, err := o.numbered.names(cmd, args[0])
			if err != nil {
				return err
			}
			if many == nil {
				many = args
			}
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a, many, many[0] != args[0])
		},
	}
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&o.req.Force, "force", false, "though sessions are open; they are ended")
	c.Flags().BoolVar(&o.ifExists, "if-exists", false, "pass over volumes that are not there")
	o.numbered.flags(c, "delete")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeDelete) run(ctx context.Context, a *app, many []string, numbered bool) error {
	if len(many) > 1 || numbered || o.ifExists {
		if err := a.confirm(o.yes, fmt.Sprintf("The data of %s will be gone at all sites%s.", manyNames(many), o.ends())); err != nil {
			return err
		}
		return o.deleteMany(ctx, a, many)
	}
	if err := a.confirm(o.yes, fmt.Sprintf("Volume %s and its data at all sites will be gone%s.", o.req.GetVolume(), o.ends())); err != nil {
		return err
	}
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Delete(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printVolume(resp.GetVolume(), "deleted")
	})
}

// ends says what force does besides.
func (o *volumeDelete) ends() string {
	if o.req.GetForce() {
		return ", and hosts that use it now lose it in the middle of what they do"
	}
	return ""
}
