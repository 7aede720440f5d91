package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/view"
	"dozo/internal/control"
)

// app is what every command has: where input and output are, how to find the cluster, how to print.
type app struct {
	fn  functions
	in  io.Reader
	out io.Writer
	err io.Writer
	env func(string) string

	format view.Format
	source api.ContextSource
}

// newRoot makes the tree of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "dozo",
		Short: "wide-area distributed IP storage for virtual machines",
		Long: `dozo is wide-area distributed IP storage for virtual machines: volumes over iSCSI, kept on two servers
before a write is acknowledged and at other sites seconds later.

Commands find the cluster by, in this order: --endpoint; --dir; $DOZO_CONFIG; ./dozo-data of a dozo up in this
directory; ~/.config/dozo/config.yaml; the socket of a node on this host (/var/lib/dozo/api.sock).

Sizes are written as 20G, 512MiB, 4096: K M G T P E, alone or as KiB..EiB, are powers of 1024; kB MB GB TB PB EB
are powers of 1000.

` + exitHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	a.format = view.Table
	f := root.PersistentFlags()
	f.VarP(&a.format, "output", "o", "how to print: table, json or yaml")
	f.StringSliceVar(&a.source.Flags.Endpoints, "endpoint", nil, "API of a node: https://HOST:PORT or unix:///PATH; several are tried in turn")
	f.StringVar(&a.source.Flags.CAFile, "ca", "", "`file` with the certificate of the cluster's CA")
	f.StringVar(&a.source.Flags.TokenFile, "token-file", "", "`file` with an API token")
	f.StringVar(&a.source.Flags.CertFile, "cert-file", "", "`file` with a client certificate and its key")
	f.StringVar(&a.source.Dir, "dir", "", "`directory` of a dozo up (default ./"+api.DefaultDir+")")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(view.Formats, cobra.ShellCompDirectiveNoFileComp))
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.AddCommand(newVolume(a), newHost(a), newSession(a), newReservation(a), newNode(a), newStore(a), newSite(a), newFork(a), newCluster(a), newControl(a),
		newStatus(a), newEvents(a), newInspect(a), newVersion(a), newUp(a), newDown(a), newServe(a), newWitness(a), newBench(a), newLab(a))
	checkUsage(root)
	return root
}

// checkUsage makes every command tell wrong arguments from a failure, and a group of commands refuse one that it
// does not have: cobra would print the help and end well.
func checkUsage(c *cobra.Command) {
	if c.HasSubCommands() && c.RunE == nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if s := c.SuggestionsFor(args[0]); len(s) > 0 {
				hint = "; did you mean " + strings.Join(s, " or ") + "?"
			}
			return fmt.Errorf("%s has no command %q%s", c.CommandPath(), args[0], hint)
		}
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	check := c.Args
	c.Args = func(c *cobra.Command, args []string) (err error) {
		if check != nil {
			err = check(c, args)
		}
		// What flags want of each other cobra asks later, and its errors are like those of a command that has failed.
		if err == nil {
			err = c.ValidateRequiredFlags()
		}
		if err == nil {
			err = c.ValidateFlagGroups()
		}
		if err != nil {
			return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
		}
		return nil
	}
	for _, sub := range c.Commands() {
		checkUsage(sub)
	}
}

// names makes a rule for arguments that says what is missing by its name.
func names(want ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(want):
			return fmt.Errorf("missing %s", strings.Join(want[len(args):], " and "))
		case len(args) > len(want):
			return fmt.Errorf("unexpected argument %q", args[len(want)])
		}
		return nil
	}
}

// someNames is as names, for commands whose last argument may be given several times, or most times if that is not 0.
func someNames(most int, want ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if most > 0 && len(args) > most {
			return fmt.Errorf("unexpected argument %q", args[most])
		}
		return names(want...)(c, args[:min(len(args), len(want))])
	}
}

// client finds the cluster and makes a client for it.
func (a *app) client() (*api.Client, error) {
	src := a.source
	src.Env, src.Home = a.env("DOZO_CONFIG"), a.env("HOME")
	c, err := src.Find()
	if err != nil {
		return nil, err
	}
	o, err := c.Options()
	if err != nil {
		return nil, err
	}
	client, err := api.Dial(o)
	if err != nil && len(a.source.Flags.Endpoints) > 0 {
		return nil, usageError{err} // nothing was sent yet: the flags make no sense
	}
	return client, err
}

// with runs a function with a client.
func (a *app) with(f func(*api.Client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// confirm asks before something is destroyed: on a terminal by a question, elsewhere only --yes will do.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !isTerminal(a.in) {
		return usageError{fmt.Errorf("%s Give --yes to confirm: there is no terminal to ask at", question)}
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		fmt.Fprintln(a.err, "nothing was done")
		return exitError{exitFailed}
	}
	return nil
}

// isTerminal reports whether somebody sits there.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	// A character device that is not a terminal is /dev/null and its like.
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && ttyName(f)
}

// when prints a time for people, in their own zone.
func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateTime)
}

// completeVolumes completes the names of volumes, for the first argument.
func (a *app) completeVolumes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, volumeNames(cmd))
}

// completeFlag completes a flag's value with names from the cluster.
func (a *app) completeFlag(c *cobra.Command, flag string, list func(context.Context, *api.Client) []string) {
	_ = c.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.complete(cmd, nil, list)
	})
}

// completionTimeout keeps a shell usable where the cluster does not answer.
const completionTimeout = 2 * time.Second

func (a *app) complete(cmd *cobra.Command, args []string, list func(context.Context, *api.Client) []string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.Close()
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionTimeout)
	defer cancel()
	return list(ctx, c), cobra.ShellCompDirectiveNoFileComp
}

// tenantAsked is the tenant whose names a command takes; empty: any, for commands that know no tenant.
func tenantAsked(cmd *cobra.Command) string {
	f := cmd.Flags().Lookup("tenant")
	if f == nil {
		return ""
	}
	return cmp.Or(f.Value.String(), control.DefaultTenant)
}

// done reports what was done, where people read it.
func (a *app) done(err error, text string) error {
	if err != nil || a.format != view.Table {
		return err
	}
	_, err = fmt.Fprintln(a.out, text)
	return err
}
