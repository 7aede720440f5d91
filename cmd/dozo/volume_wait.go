package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

type volumeWait struct {
	replicated bool
	timeout    time.Duration
	req        dozov1.WaitVolumeRequest
}

func newVolumeWait(a *app) *cobra.Command {
	var o volumeWait
	c := &cobra.Command{
		Use: "wait NAME --replicated", Short: "Wait until all sites hold what was written",
		Long: `Wait until every site that holds a copy of the volume has, on stable storage, everything that was committed when the
command began. Progress is shown on standard error where that is a terminal. Exit code 7: not in time.`,
		Args: names("NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVar(&o.replicated, "replicated", false, "until all sites have everything")
	c.Flags().DurationVar(&o.timeout, "timeout", 0, "how long to wait, such as 30s (default for ever)")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeWait) run(ctx context.Context, a *app) error {
	if !o.replicated {
		return usageError{errors.New("wait for what? Give --replicated")}
	}
	o.req.Condition = "replicated"
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Volumes.Wait(ctx, &o.req)
		if err != nil {
			return o.late(err, nil)
		}
		defer stream.Close()
		p := progress{a: a, show: isTerminal(a.err)}
		var last *dozov1.WaitVolumeResponse
		for stream.Receive() {
			last = stream.Msg()
			p.line(waitLine(last))
		}
		p.end()
		if err := stream.Err(); err != nil {
			return o.late(err, last)
		}
		if !last.GetDone() {
			return errors.New("the node ended the wait early; try again")
		}
		if a.format != view.Table {
			return a.format.Message(a.out, last)
		}
		_, err = fmt.Fprintf(a.out, "replicated: every site has record %d and all before it\n", last.GetTargetSeq())
		return err
	})
}

// late says how far it was where the time was over.
func (o *volumeWait) late(err error, last *dozov1.WaitVolumeResponse) error {
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		return err
	}
	far := "no node has said yet how far it is"
	if last != nil {
		far = waitLine(last)
	}
	return connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("not replicated after %v: %s", o.timeout, far))
}

func waitLine(w *dozov1.WaitVolumeResponse) string {
	var sites []string
	for _, c := range w.GetCopies() {
		if c.GetState() != "home" && c.GetState() != "none" && c.GetWatermarkSeq() < w.GetTargetSeq() {
			sites = append(sites, fmt.Sprintf("%s %s at record %d of %d", c.GetSite(), c.GetState(), c.GetWatermarkSeq(), w.GetTargetSeq()))
		}
	}
	if len(sites) == 0 {
		return size.Format(w.GetRemainingBytes()) + " left"
	}
	return size.Format(w.GetRemainingBytes()) + " left: " + strings.Join(sites, ", ")
}
