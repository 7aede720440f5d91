package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

func newHost(a *app) *cobra.Command {
	c := &cobra.Command{Use: "host", Short: "Keep the machines that use volumes: names, addresses, secrets"}
	c.AddCommand(newHostAdd(a), newHostList(a), newHostSetChap(a), newHostDiscovery(a), newHostSetDiscovery(a), newHostDelete(a))
	return c
}

func hostNames(cmd *cobra.Command) func(context.Context, *api.Client) []string {
	return func(ctx context.Context, c *api.Client) []string {
		resp, err := c.Hosts.List(ctx, &dozov1.ListHostsRequest{Tenant: tenantAsked(cmd)})
		if err != nil {
			return nil
		}
		var out []string
		for _, h := range resp.GetHosts() {
			out = append(out, h.GetName())
		}
		return out
	}
}

func (a *app) completeHosts(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, hostNames(cmd))
}

// chapFlags are the credentials of both directions. Secrets come from files or standard input, never from the
// command line, where every user of the machine could read them.
type chapFlags struct {
	inUser, inFile, outUser, outFile string
}

func (f *chapFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.inUser, "chap-user", "", "`name` with which the initiator proves itself")
	c.Flags().StringVar(&f.inFile, "chap-secret-file", "", "`file` with its secret, 12 to 255 bytes; - is standard input")
	c.Flags().StringVar(&f.outUser, "chap-target-user", "", "`name` with which the target proves itself (mutual CHAP)")
	c.Flags().StringVar(&f.outFile, "chap-target-secret-file", "", "`file` with its secret; - is standard input")
}

// read gives the credentials, nil where none are asked for.
func (f *chapFlags) read(in io.Reader) (*dozov1.ChapCredentials, error) {
	if *f == (chapFlags{}) {
		return nil, nil
	}
	if f.inFile == "-" && f.outFile == "-" {
		return nil, usageError{errors.New("standard input can give one secret, not two")}
	}
	c := &dozov1.ChapCredentials{InUser: f.inUser, OutUser: f.outUser}
	for _, s := range []struct {
		file string
		to   *string
	}{{f.inFile, &c.InSecret}, {f.outFile, &c.OutSecret}} {
		if s.file == "" {
			continue
		}
		text, err := readSecret(s.file, in)
		if err != nil {
			return nil, err
		}
		*s.to = text
	}
	return c, nil
}

// secretMax bounds what is read of a file that holds a secret of 255 bytes at most.
const secretMax = 4 << 10

// readSecret takes the file's first and only line.
func readSecret(file string, in io.Reader) (string, error) {
	r := in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("secret: %w", err)
		}
		defer f.Close()
		r = f
	}
	text, err := io.ReadAll(io.LimitReader(r, secretMax))
	if err != nil {
		return "", fmt.Errorf("secret from %s: %w", file, err)
	}
	line := strings.TrimRight(string(text), "\r\n")
	if line == "" || strings.ContainsAny(line, "\r\n") {
		return "", usageError{fmt.Errorf("secret from %s: want one line", file)}
	}
	return line, nil
}

func (a *app) printHost(h *dozov1.Host, done string) error {
	if a.format != view.Table {
		return a.format.Message(a.out, h)
	}
	_, err := fmt.Fprintf(a.out, "%s %s: %s, authentication %s\n", done, h.GetName(), strings.Join(h.GetInitiatorNames(), ", "), h.GetAuth())
	return err
}
