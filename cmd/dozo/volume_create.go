package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type volumeCreate struct {
	name, size string
	numbered   numbered
	req        dozov1.CreateVolumeRequest
}

func newVolumeCreate(a *app) *cobra.Command {
	var o volumeCreate
	c := &cobra.Command{
		Use:   "create NAME SIZE",
		Short: "Make a volume",
		Long: `Make a volume of SIZE (20G, 1TiB, ...). Space is taken as it is written.

With --durability replicated (the default) a write is acknowledged once two servers hold it in memory, and survives
the loss of either; a flush puts it on stable storage. With sync every write waits for that.

With --ack local (the default) no acknowledgement waits for another site, and what a site had not shipped when it is lost is
lost with it. With --ack site:K a write is acknowledged, and shown to readers, only once K other sites hold it too, a flush
once they have it on stable storage: every write takes a round trip to the K-th nearest site, and while fewer than K other
sites can be reached, writes wait. A site takeover that hears N-K of the N-1 other sites leaves nothing acknowledged behind.

With --count N it makes N volumes that are alike, NAME-0001 and so on: thousands in seconds. Nothing is made if one of the names
is taken. If it fails on the way it says which were made.`,
		Example: "  dozo volume create web1 20G\n  dozo volume create db1 1TiB --sites 2 --at site-2 --durability sync --block-size 4096\n  dozo volume create ledger 50G --ack site:1 --partition stop\n  dozo volume create desk 40G --count 500",
		Args:    names("NAME", "SIZE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name, o.size = args[0], args[1]
			many, err := o.numbered.names(cmd, o.name)
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), a, many)
		},
	}
	f := c.Flags()
	f.Uint32Var(&o.req.Sites, "sites", 0, "how many sites hold a copy (default all, up to 3)")
	f.StringVar(&o.req.AtSite, "at", "", "`site` of the first owner (default that of the node that is asked)")
	f.StringVar(&o.req.Durability, "durability", "", "replicated or sync (default replicated)")
	f.StringVar(&o.req.Ack, "ack", "", ackHelp+" (default local)")
	f.Uint32Var(&o.req.BlockSize, "block-size", 0, "logical block size, 512 or 4096 (default 512)")
	f.StringVar(&o.req.Partition, "partition", "", "what the owner does when its site is cut off: continue or stop (default continue)")
	f.StringVar(&o.req.Ownership, "ownership", "", "follow: the owner moves to where all writes come from; pin: it stays where it is put (default follow)")
	f.StringVar(&o.req.AluaRemote, "alua-remote", "", aluaRemoteHelp+" (default nonoptimized)")
	f.StringVar(&o.req.Redirect, "redirect", "", redirectHelp+" (default off)")
	f.StringToStringVar(&o.req.Labels, "label", nil, "label as `key=value`; may be repeated")
	f.StringSliceVar(&o.req.Hosts, "host", nil, "`name` of a host that may use it; may be repeated (default all)")
	o.numbered.flags(c, "make")
	tenantFlag(c, &o.req.Tenant)
	completePathPolicies(c)
	completeAck(c)
	_ = c.RegisterFlagCompletionFunc("durability", cobra.FixedCompletions([]string{"replicated", "sync"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("ownership", cobra.FixedCompletions([]string{"follow", "pin"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("partition", cobra.FixedCompletions([]string{"continue", "stop"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("block-size", cobra.FixedCompletions([]string{"512", "4096"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlag(c, "at", siteNames)
	a.completeFlag(c, "host", hostNames(c))
	return c
}

func (o *volumeCreate) run(ctx context.Context, a *app, many []string) error {
	n, err := parseSize(o.size)
	if err != nil {
		return err
	}
	o.req.SizeBytes = n
	if many != nil {
		return o.createMany(ctx, a, many)
	}
	o.req.Name = o.name
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Create(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printVolume(resp.GetVolume(), "created")
	})
}
