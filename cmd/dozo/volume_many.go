package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

// numbered names several volumes by one name and consecutive numbers.
type numbered struct {
	count, first uint32
}

const (
	numberedMax   = 10000 // as the API takes in one call
	numberedWidth = 4     // digits at least, so that names are in the order of the numbers up to 9,999
)

func (n *numbered) flags(c *cobra.Command, verb string) {
	c.Flags().Uint32Var(&n.count, "count", 0, verb+" so many volumes: NAME-0001, NAME-0002, ...")
	c.Flags().Uint32Var(&n.first, "first", 1, "number of the first, with --count")
}

// names gives the names, nil without --count.
func (n *numbered) names(c *cobra.Command, name string) ([]string, error) {
	switch {
	case !c.Flags().Changed("count"):
		if c.Flags().Changed("first") {
			return nil, usageError{fmt.Errorf("--first goes with --count")}
		}
		return nil, nil
	case n.count == 0 || n.count > numberedMax:
		return nil, usageError{fmt.Errorf("--count %d: want 1 to %d", n.count, numberedMax)}
	}
	last := uint64(n.first) + uint64(n.count) - 1
	width := max(numberedWidth, len(fmt.Sprint(last)))
	out := make([]string, n.count)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%0*d", name, width, uint64(n.first)+uint64(i))
	}
	return out, nil
}

// manyNames says which volumes, for people.
func manyNames(list []string) string {
	switch n := len(list); {
	case n == 1:
		return "volume " + list[0]
	case n <= 3:
		return fmt.Sprintf("%d volumes, %s", n, strings.Join(list, ", "))
	default:
		return fmt.Sprintf("%d volumes, %s to %s", n, list[0], list[n-1])
	}
}

// createMany makes the volumes. What was made is said in any case, also where it ends with an error.
func (o *volumeCreate) createMany(ctx context.Context, a *app, names []string) error {
	return a.with(func(c *api.Client) error {
		stream, err := c.Volumes.CreateMany(ctx, &dozov1.CreateVolumesRequest{Like: &o.req, Names: names})
		if err != nil {
			return err
		}
		defer stream.Close()
		var made []*dozov1.Volume
		p := progress{a: a, show: isTerminal(a.err)}
		for stream.Receive() {
			made = append(made, stream.Msg().GetVolumes()...)
			p.line(fmt.Sprintf("%d of %d volumes made", stream.Msg().GetMade(), stream.Msg().GetTotal()))
		}
		p.end()
		return a.printMany("created", len(names), made, stream.Err())
	})
}

// deleteMany deletes the volumes, and says which also where it ends with an error.
func (o *volumeDelete) deleteMany(ctx context.Context, a *app, names []string) error {
	return a.with(func(c *api.Client) error {
		stream, err := c.Volumes.DeleteMany(ctx, &dozov1.DeleteVolumesRequest{Volumes: names, Tenant: o.req.GetTenant(), Force: o.req.GetForce(), IfExists: o.ifExists})
		if err != nil {
			return err
		}
		defer stream.Close()
		var gone []*dozov1.Volume
		p := progress{a: a, show: isTerminal(a.err)}
		there := len(names)
		for stream.Receive() {
			gone = append(gone, stream.Msg().GetVolumes()...)
			there = int(stream.Msg().GetTotal())
			p.line(fmt.Sprintf("%d of %d volumes deleted", stream.Msg().GetDeleted(), there))
		}
		p.end()
		err = stream.Err()
		if err != nil && len(gone) > 0 {
			err = fmt.Errorf("%w; the others can be deleted by the same command with --if-exists", err)
		}
		if err == nil && o.ifExists && there < len(names) && a.format == view.Table {
			fmt.Fprintf(a.err, "%d of %d volumes were not there\n", len(names)-there, len(names))
		}
		return a.printMany("deleted", there, gone, err)
	})
}

// printMany prints the volumes that something was done to, in the order of names, out of want that it was to be done to.
func (a *app) printMany(done string, want int, list []*dozov1.Volume, err error) error {
	slices.SortFunc(list, func(x, y *dozov1.Volume) int { return strings.Compare(x.GetName(), y.GetName()) }) // several were under way at a time
	if err == nil && len(list) < want {
		err = fmt.Errorf("the node ended the answer early")
	}
	if a.format != view.Table && (err == nil || len(list) > 0) {
		if perr := view.List(a.format, a.out, list); perr != nil {
			return perr
		}
	} else if len(list) > 0 {
		text := ""
		if len(list) == want {
			got := make([]string, len(list))
			for i, v := range list {
				got[i] = v.GetName()
			}
			text = fmt.Sprintf("%s %s\n", done, manyNames(got))
		} else { // one a line: which they are can not be told by the first and the last
			for _, v := range list {
				text += fmt.Sprintf("%s %s\n", done, v.GetName())
			}
		}
		if _, perr := fmt.Fprint(a.out, text); perr != nil {
			return perr
		}
	}
	if err != nil && len(list) > 0 {
		return fmt.Errorf("%d of %d volumes were %s, then: %w", len(list), want, done, err)
	}
	return err
}
