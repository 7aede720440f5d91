package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type events struct {
	since time.Duration
	req   dozov1.EventsRequest
}

func newEvents(a *app) *cobra.Command {
	var o events
	c := &cobra.Command{
		Use: "events", Short: "Show who changed what, and what happened",
		Long: `Show the audit log: who changed what, and what the cluster did by itself. With --follow the command stays and shows
new events as they happen, and goes on at another node when the one that it asks ends; --after, the last REVISION that
was seen, goes on by hand. -o json prints one object a line, with the whole state before and after a change.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	c.Flags().BoolVarP(&o.req.Follow, "follow", "f", false, "go on with new events")
	c.Flags().Int64Var(&o.req.AfterRevision, "after", 0, "only events after this `revision`")
	c.Flags().DurationVar(&o.since, "since", 0, "only events of the last while, such as 1h")
	c.Flags().Uint32VarP(&o.req.Limit, "limit", "n", 0, "only the newest so many of those that are there (default all)")
	return c
}

func (o *events) run(ctx context.Context, a *app) error {
	if o.since > 0 {
		o.req.Since = timestamppb.New(time.Now().Add(-o.since))
	}
	return a.with(func(c *api.Client) error {
		if !o.req.GetFollow() {
			_, err := o.stream(ctx, a, c)
			return err
		}
		f := follower{patience: followPatience, pause: followPause, now: time.Now,
			lost: func(err error) {
				fmt.Fprintf(a.err, "cut off after revision %d: %s; going on\n", o.req.GetAfterRevision(), message(err))
			}}
		err := f.run(ctx, func() (bool, error) { return o.stream(ctx, a, c) })
		// A follower that is told to end has done what it was asked for.
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

// stream prints events until the node that was asked ends it. The request then is for what comes behind the last one.
func (o *events) stream(ctx context.Context, a *app, c *api.Client) (heard bool, err error) {
	stream, err := c.Cluster.Events(ctx, &o.req)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for stream.Receive() {
		if err := a.printEvent(stream.Msg()); err != nil {
			return true, printError{err}
		}
		heard = true
		o.req.AfterRevision, o.req.Since, o.req.Limit = stream.Msg().GetRevision(), nil, 0
	}
	return heard, stream.Err()
}

// printError is one of our own output: asking again would not help.
type printError struct{ error }

func (e printError) Unwrap() error { return e.error }

const (
	followPatience = 30 * time.Second
	followPause    = time.Second
)

// follower goes on with a stream whose node has ended, at the node that answers now.
type follower struct {
	patience, pause time.Duration
	now             func() time.Time
	lost            func(error) // called once for each time that it was cut off
}

// run ends with ctx, with an error that asking again does not help against, or when no stream has lasted for a while.
func (f *follower) run(ctx context.Context, stream func() (heard bool, err error)) error {
	var since time.Time // of the loss that lasts
	for {
		begun := f.now()
		heard, err := stream()
		if err == nil {
			err = errors.New("the node has ended the stream")
		}
		lasted := heard || f.now().Sub(begun) > f.patience
		if ctx.Err() != nil || !passing(err) || since.IsZero() && !lasted { // or it was never there
			return err
		}
		if lasted {
			since = f.now()
			f.lost(err)
		}
		if f.now().Sub(since) > f.patience {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(f.pause):
		}
	}
}

// passing: a node that ended, or could not be reached, says nothing about the next one.
func passing(err error) bool {
	if _, ok := errors.AsType[printError](err); ok {
		return false
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeNotFound, connect.CodeUnimplemented:
		return false
	case connect.CodeInvalidArgument: // what connect calls a stream that was cut within a message
		return errors.Is(err, io.ErrUnexpectedEOF)
	}
	return true
}

func (a *app) printEvent(e *dozov1.Event) error {
	if a.format != view.Table {
		return a.format.Line(a.out, e)
	}
	note := e.GetNote()
	if note == "" {
		note = changes(e.GetBefore(), e.GetAfter())
	}
	if note != "" {
		note = "  " + note
	}
	_, err := fmt.Fprintf(a.out, "%d  %s  %s  %s  %s%s\n", e.GetRevision(), when(e.GetTime()), e.GetActor(), e.GetAction(), e.GetObject(), note)
	return err
}

// changeMax is how much of one value a line of the audit log shows.
const changeMax = 60

// changes says in a few words what an event changed, of the fields that were there before and are after; -o json has
// both states whole.
func changes(before, after string) string {
	var was, is map[string]json.RawMessage
	if json.Unmarshal([]byte(before), &was) != nil || json.Unmarshal([]byte(after), &is) != nil || was == nil || is == nil {
		return ""
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(union(was, is))) {
		if a, b := was[key], is[key]; !bytes.Equal(a, b) {
			out = append(out, key+" "+brief(a)+" to "+brief(b))
		}
	}
	return strings.Join(out, ", ")
}

func union[V any](a, b map[string]V) map[string]V {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// brief is a value of JSON as people write it, not too long.
func brief(v json.RawMessage) string {
	text := strings.Trim(string(v), `"`)
	switch {
	case len(v) == 0:
		return "none"
	case len(text) > changeMax:
		return strings.ToValidUTF8(text[:changeMax], "") + "..."
	}
	return text
}
