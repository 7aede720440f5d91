package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

func newReservation(a *app) *cobra.Command {
	c := &cobra.Command{Use: "reservation", Short: "Show and clear the SCSI reservations of volumes"}
	c.AddCommand(newReservationList(a), newReservationClear(a))
	return c
}

type reservationList struct{ req dozov1.GetReservationsRequest }

func newReservationList(a *app) *cobra.Command {
	var o reservationList
	c := &cobra.Command{
		Use: "list VOLUME", Aliases: []string{"ls"}, Short: "List who has registered and reserved at a volume",
		Long: `List the initiator ports that have registered keys or reserved a volume, by PERSISTENT RESERVE OUT or by RESERVE, and whether
they are logged in. They are the volume's, the same at all access servers, and stay when hosts and servers go.`,
		Args: names("VOLUME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *reservationList) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Reservations.Get(ctx, &o.req)
		if err != nil {
			return err
		}
		r := resp.GetReservations()
		if len(r.GetUnheard()) > 0 {
			fmt.Fprintf(a.err, "dozo: not asked for their sessions, as they can not be reached: %s\n", strings.Join(r.GetUnheard(), ", "))
		}
		if a.format != view.Table {
			return a.format.Message(a.out, r)
		}
		list := r.GetRegistrations()
		if x := r.GetReserved(); x != nil {
			list = append(list, x)
		}
		return a.registrations(r, list)
	})
}

// registrations prints those of a list; is says of what type the persistent reservation is.
func (a *app) registrations(is *dozov1.Reservations, list []*dozov1.Registration) error {
	g := view.NewGrid("INITIATOR", "ISID", "HOST", "NODE", "KEY", "HOLDS", "LOGGED IN")
	for _, x := range list {
		holds := "-"
		switch {
		case x.GetKey() == "":
			holds = "RESERVE"
		case x.GetHolder():
			holds = is.GetType()
		}
		in := "no"
		if x.GetLoggedIn() {
			in = "yes"
		}
		g.Row(x.GetInitiatorName(), x.GetIsid(), x.GetHost(), x.GetNode(), x.GetKey(), holds, in)
	}
	return g.Write(a.out)
}

type reservationClear struct {
	yes bool
	req dozov1.ClearReservationsRequest
}

func newReservationClear(a *app) *cobra.Command {
	var o reservationClear
	c := &cobra.Command{
		Use: "clear VOLUME", Short: "Remove what hosts that are gone have reserved at a volume",
		Long: `Remove registrations and reservations of a volume, of one initiator or of all, so that others can use it: those of a host that is
gone for good are given back by nobody. A host that is still there and believes to have reserved the volume may write at the
same time as another one. Hosts that are logged in are told by a unit attention; with them the command is refused unless it is
forced. It can not be taken back: the hosts have to register and reserve again.`,
		Args: names("VOLUME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.InitiatorName, "initiator", "", "only those of this `initiator`")
	c.Flags().BoolVar(&o.req.Force, "force", false, "also if one of them is logged in, or that can not be found out")
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *reservationClear) run(ctx context.Context, a *app) error {
	whose := "all initiators"
	if n := o.req.GetInitiatorName(); n != "" {
		whose = n
	}
	if err := a.confirm(o.yes, fmt.Sprintf("What %s reserved at volume %s is gone then: others may write.", whose, o.req.GetVolume())); err != nil {
		return err
	}
	return a.with(func(c *api.Client) error {
		resp, err := c.Reservations.Clear(ctx, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return view.List(a.format, a.out, resp.GetCleared())
		}
		if len(resp.GetCleared()) == 0 {
			fmt.Fprintf(a.out, "nothing is registered or reserved at %s\n", o.req.GetVolume())
			return nil
		}
		for _, x := range resp.GetCleared() {
			fmt.Fprintf(a.out, "cleared: %s, ISID %s\n", x.GetInitiatorName(), x.GetIsid())
		}
		return nil
	})
}
