package main

import (
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/lab"
)

func newLabDown(a *app) *cobra.Command {
	var all bool
	var grace time.Duration
	c := &cobra.Command{
		Use: "down", Short: "End a lab: what runs in its sites, its router, its namespaces", Args: names(),
		Long: `End every process that runs in the lab's namespaces, then its router, and remove the namespaces. It goes by what
exists and needs no file, so it cleans up after any crash. Data of nodes stay in their directory.`,
	}
	name := labName(c)
	c.Flags().BoolVar(&all, "all", false, "end all labs of this machine")
	c.Flags().DurationVar(&grace, "grace", lab.Grace, "how long processes may take to end before they are killed; 0: not at all")
	c.RunE = func(*cobra.Command, []string) error {
		which := []string{*name}
		if all {
			var err error
			if which, err = lab.List(); err != nil {
				return err
			}
		}
		for _, n := range which {
			if err := lab.Down(n, grace, a.err); err != nil {
				return err
			}
			if err := a.done(nil, "lab "+n+" is gone"); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}
