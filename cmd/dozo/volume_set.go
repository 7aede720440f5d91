package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type volumeSet struct{ req dozov1.SetVolumeRequest }

func newVolumeSet(a *app) *cobra.Command {
	var o volumeSet
	c := &cobra.Command{
		Use:   "set NAME [--ownership follow|pin] [--partition continue|stop] [--alua-remote nonoptimized|standby|unavailable] [--redirect off|site|owner] [--ack local|site:K] [--host NAME | --all-hosts] [--cloned]",
		Short: "Change policies of a volume",
		Long: `Change policies of a volume, at once and without a pause.

With --ownership follow the owner moves by itself to where all writes come from; with pin it stays where dozo volume move
puts it, unless it dies.

With --partition stop the owner stops answering when its site is cut off, and another site takes over by itself; with continue
it goes on, and only dozo site failover has another site take over. The command returns once the owner goes by it; if the
owner can not be asked now, the policy is stored, and it says so: until the owner knows, the former policy is in effect.

With --alua-remote, paths by way of access servers of other sites than the owner's are non-optimized (used when there is
nothing better), standby (used only once the owner is near them) or unavailable.

With --redirect site an initiator that logs in at an access server of another site than its own is sent to one of its own,
for good; with owner to the owner, each time that it logs in. Neither is for hosts with several paths: leave it off there.

With --ack site:K a write is acknowledged only once K other sites hold it too (dozo volume create). Raised, it is in effect
once K sites have caught up, from a record that dozo volume show names; until then writes are acknowledged as before. Lowered, it
is in effect when the command returns: writes that wait for a site which can not be reached go on. From then on what the
remaining sites do not hold is lost if the owner's site is.

With --host, given once for each of them, only these hosts may use the volume at its own target, instead of those that might before;
with --all-hosts every initiator may. Initiators that may no longer use it are asked to log out and dropped a second later, and can not log
in again. The command returns once their sessions have ended; where access servers can not be asked it says so: they end them as
soon as they hear of it. Hosts to which the volume is mapped (dozo volume map) are not concerned.

With --cloned a volume whose state is cloning is complete, and initiators may use it: for one that dozo fork clone had completed after the
backup was made from which the control store was restored since.`,
		Example: "  dozo volume set web1 --ownership pin\n  dozo volume set web1 --partition stop\n  dozo volume set web1 --alua-remote standby\n  dozo volume set ledger --ack local\n  dozo volume set web1 --host hv1 --host hv2",
		Args:    names("NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.Ownership, "ownership", "", "follow or pin")
	c.Flags().StringVar(&o.req.AluaRemote, "alua-remote", "", aluaRemoteHelp)
	c.Flags().StringVar(&o.req.Redirect, "redirect", "", redirectHelp)
	c.Flags().StringVar(&o.req.Partition, "partition", "", "what the owner does when its site is cut off: continue or stop")
	c.Flags().StringVar(&o.req.Ack, "ack", "", ackHelp)
	c.Flags().StringSliceVar(&o.req.Hosts, "host", nil, "`name` of a host that may use it, instead of those before; may be repeated")
	c.Flags().BoolVar(&o.req.AllHosts, "all-hosts", false, "every initiator may use it")
	c.Flags().BoolVar(&o.req.Cloned, "cloned", false, "a volume of state cloning is complete")
	c.MarkFlagsOneRequired("ownership", "partition", "alua-remote", "redirect", "ack", "host", "all-hosts", "cloned")
	c.MarkFlagsMutuallyExclusive("host", "all-hosts")
	a.completeFlag(c, "host", hostNames(c))
	_ = c.RegisterFlagCompletionFunc("partition", cobra.FixedCompletions([]string{"continue", "stop"}, cobra.ShellCompDirectiveNoFileComp))
	completePathPolicies(c)
	completeAck(c)
	_ = c.RegisterFlagCompletionFunc("ownership", cobra.FixedCompletions([]string{"follow", "pin"}, cobra.ShellCompDirectiveNoFileComp))
	tenantFlag(c, &o.req.Tenant)
	return c
}

const (
	aluaRemoteHelp = "state of the paths by way of other sites than the owner's: nonoptimized, standby or unavailable"
	redirectHelp   = "where initiators that log in are sent: off (nowhere), site (to their own site's access servers) or owner"
)

const ackHelp = "when a write is acknowledged: `local` (two servers of the site hold it) or site:K (and K other sites)"

func completeAck(c *cobra.Command) {
	_ = c.RegisterFlagCompletionFunc("ack", cobra.FixedCompletions([]string{"local", "site:1", "site:2"}, cobra.ShellCompDirectiveNoFileComp))
}

func completePathPolicies(c *cobra.Command) {
	_ = c.RegisterFlagCompletionFunc("alua-remote", cobra.FixedCompletions([]string{"nonoptimized", "standby", "unavailable"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("redirect", cobra.FixedCompletions([]string{"off", "site", "owner"}, cobra.ShellCompDirectiveNoFileComp))
}

func (o *volumeSet) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Set(ctx, &o.req)
		if err != nil {
			return err
		}
		if v := resp.GetVolume(); o.req.GetAck() != "" && v.GetAck() != v.GetAckInEffect() {
			fmt.Fprintf(a.err, "%s is in effect until the other sites have caught up: dozo volume show %s\n", v.GetAckInEffect(), v.GetName())
		}
		return a.printVolume(resp.GetVolume(), "changed")
	})
}
