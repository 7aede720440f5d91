package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type nodeDrain struct {
	timeout time.Duration
	req     dozov1.DrainNodeRequest
}

func newNodeDrain(a *app) *cobra.Command {
	var o nodeDrain
	c := &cobra.Command{
		Use: "drain NAME", Short: "Have a node hand over the volumes that it owns",
		Long: `Have a node hand over the volumes that it owns to other access servers of its site, and own no more until dozo node
undrain. Clients may stay connected to it: what they ask for is passed on. With --wait the command ends once the node owns
nothing, and the node may be stopped; it fails where no other access server of the site can take them for 30 seconds, or none was
handed over for 5 minutes. The node goes on draining then. What its stores hold stays there.`,
		Args: names("NAME"), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Node = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVar(&o.req.Wait, "wait", false, "until it owns nothing")
	c.Flags().DurationVar(&o.timeout, "timeout", 0, "how long to wait at most, such as 30s (default as long as volumes are handed over)")
	return c
}

func (o *nodeDrain) run(ctx context.Context, a *app) error {
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Nodes.Drain(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		p := progress{a: a, show: isTerminal(a.err)}
		var last *dozov1.DrainNodeResponse
		saidStuck := false // to a script; a terminal is shown all
		for stream.Receive() {
			last = stream.Msg()
			p.line(drainLine(last))
			if stuck := last.GetStuck(); stuck && !saidStuck && !p.show && o.req.GetWait() {
				saidStuck = true
				fmt.Fprintf(a.err, "draining %s: %s\n", o.req.GetNode(), drainLine(last))
			}
		}
		p.end()
		if err := stream.Err(); err != nil {
			return err
		}
		if o.req.GetWait() && !last.GetDone() {
			return errors.New("the node ended the wait early; try again")
		}
		if a.format != view.Table {
			return a.format.Message(a.out, last)
		}
		_, err = fmt.Fprintf(a.out, "draining %s: %s\n", o.req.GetNode(), drainLine(last))
		return err
	})
}

func drainLine(r *dozov1.DrainNodeResponse) string {
	switch {
	case r.GetDone():
		return "it owns no volume"
	case r.GetStuck():
		return fmt.Sprintf("it owns %d volumes, and no other access server of its site can take them", r.GetVolumes())
	}
	return fmt.Sprintf("it owns %d volumes", r.GetVolumes())
}

func newNodeUndrain(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "undrain NAME", Short: "Let a node own volumes again",
		Long: `Let a node that was drained own volumes again. It gets none back by itself; dozo volume move gives it some.`,
		Args: names("NAME"), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *api.Client) error {
				_, err := c.Nodes.Undrain(cmd.Context(), &dozov1.UndrainNodeRequest{Node: args[0]})
				return a.done(err, args[0]+" may own volumes")
			})
		},
	}
}
