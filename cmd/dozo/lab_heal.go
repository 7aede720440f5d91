package main

import "github.com/spf13/cobra"

func newLabHeal(a *app) *cobra.Command {
	var oneWay bool
	c := &cobra.Command{
		Use: "heal [SITE [SITE]]", Short: "End partitions: all, those of one site, or that between two", Args: someNames(2),
	}
	name := labName(c)
	c.Flags().BoolVar(&oneWay, "one-way", false, "only from the first site to the second")
	c.ValidArgsFunction = completeSites(name)
	c.RunE = func(_ *cobra.Command, args []string) error { return labDo(*name, "heal", oneWay, args) }
	return c
}
