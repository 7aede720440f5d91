package main

import (
	"github.com/spf13/cobra"

	"dozo/internal/lab"
)

func newLabExec(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "exec SITE -- COMMAND [ARG...]", Short: "Run a command at a site", Args: someNames(0, "SITE", "COMMAND"),
		Long: `Run a command in a site's network namespace; its exit code is this command's. Addresses of the sites are printed by
dozo lab status: 10.77.SITE.N and fd77:0:0:SITE::N. Where the lab has nodes, dozo commands in it find them.`,
		Example: "  dozo lab exec east -- iperf3 -s\n  dozo lab exec west -- iperf3 -c 10.77.1.1",
	}
	name := labName(c)
	c.ValidArgsFunction = completeSites(name)
	// Flags behind the site are the command's, also without --.
	c.Flags().SetInterspersed(false)
	c.RunE = func(_ *cobra.Command, args []string) error {
		l, err := lab.Open(*name)
		if err != nil {
			return err
		}
		site, command := args[0], args[1:]
		if command[0] == "--" {
			command = command[1:]
		}
		if len(command) == 0 {
			return usageError{errNoCommand}
		}
		return l.Exec(site, command, l.Env())
	}
	return c
}
