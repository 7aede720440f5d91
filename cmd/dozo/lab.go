package main

import (
	"github.com/spf13/cobra"

	"dozo/internal/lab"
)

func newLab(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "lab", Short: "Several sites on this machine, with distance, rates and losses between them (needs root)",
		Long: `Make several sites on this machine, as they would be in the world: a network namespace for each, and between them a
router in user space that gives each pair of sites, in each direction, a delay, jitter, rate, buffer, loss, reordering
and partitions, and each site an access link. All of it can be changed while it runs. Linux, iproute2 and root are needed.`,
		Example: "  dozo lab up --sites 3 --rtt 18ms --rate 1gbit\n  dozo lab exec east -- ping -c 3 10.77.2.1\n  dozo lab set east west rtt=100ms loss=0.1%\n  dozo lab down",
	}
	c.AddCommand(newLabUp(a), newLabDown(a), newLabSet(a), newLabPartition(a), newLabHeal(a), newLabExec(a),
		newLabStat(a), newLabStatus(a), newLabPlay(a), newLabRouter(a), newLabGuest(a))
	return c
}

// labName adds the flag that says which lab a command means.
func labName(c *cobra.Command) *string {
	name := c.Flags().String("name", lab.DefaultName, "of the lab; several may run at once")
	return name
}

// completeSites completes names of sites for every argument.
func completeSites(name *string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		l, err := lab.Open(*name)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return l.SiteNames(), cobra.ShellCompDirectiveNoFileComp
	}
}
