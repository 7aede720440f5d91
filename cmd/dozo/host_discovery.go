package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

func newHostDiscovery(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "discovery", Short: "Say what initiators have to prove before they are told of targets", Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				resp, err := c.Hosts.GetDiscovery(cmd.Context(), &dozov1.GetDiscoveryRequest{})
				if err != nil {
					return err
				}
				return a.printDiscovery(resp.GetDiscovery())
			})
		},
	}
}

type hostSetDiscovery struct {
	chap chapFlags
	off  bool
}

func newHostSetDiscovery(a *app) *cobra.Command {
	var o hostSetDiscovery
	c := &cobra.Command{
		Use: "set-discovery", Short: "Have initiators prove themselves before they are told of targets",
		Long: `Have initiators prove a name and a secret, by CHAP, before any access server tells them of targets (SendTargets).
Hosts with CHAP credentials of their own prove those instead. What discovery says in the configuration of a node holds
there instead of this.`,
		Example: "  dozo host set-discovery --chap-user discovery --chap-secret-file discovery.secret",
		Args:    names(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	c.Flags().BoolVar(&o.off, "off", false, "nothing has to be proved any more")
	o.chap.register(c)
	return c
}

func (o *hostSetDiscovery) run(ctx context.Context, a *app) error {
	chap, err := o.chap.read(a.in)
	if err != nil {
		return err
	}
	if o.off == (chap != nil) {
		return usageError{errors.New("give either --chap-user and --chap-secret-file, or --off")}
	}
	return a.with(func(c *api.Client) error {
		resp, err := c.Hosts.SetDiscovery(ctx, &dozov1.SetDiscoveryRequest{Chap: chap})
		if err != nil {
			return err
		}
		return a.printDiscovery(resp.GetDiscovery())
	})
}

func (a *app) printDiscovery(d *dozov1.Discovery) error {
	if a.format != view.Table {
		return a.format.Message(a.out, d)
	}
	text := "discovery: authentication " + d.GetAuth()
	if d.GetChapInUser() != "" {
		text += ", initiators are " + d.GetChapInUser()
	}
	if d.GetChapOutUser() != "" {
		text += ", targets are " + d.GetChapOutUser()
	}
	_, err := fmt.Fprintln(a.out, text)
	return err
}
