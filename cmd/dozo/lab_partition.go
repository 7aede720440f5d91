package main

import "github.com/spf13/cobra"

func newLabPartition(a *app) *cobra.Command {
	var oneWay bool
	c := &cobra.Command{
		Use: "partition SITE [SITE]", Short: "Cut two sites from each other, or one from all others", Args: someNames(2, "SITE"),
		Long: `Cut two sites from each other, or one from all others. Once the command has ended nothing arrives any more, not
even what was under way. All settings stay, for dozo lab heal.`,
	}
	name := labName(c)
	c.Flags().BoolVar(&oneWay, "one-way", false, "only from the first site to the second")
	c.ValidArgsFunction = completeSites(name)
	c.RunE = func(_ *cobra.Command, args []string) error { return labDo(*name, "partition", oneWay, args) }
	return c
}
