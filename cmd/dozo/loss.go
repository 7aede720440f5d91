package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

// Before stores are declared lost, which can not be taken back, it is said what that would mean.

// loss prints what it would mean, for a dry run.
func (a *app) loss(ctx context.Context, stores ...string) error {
	return a.with(func(c *api.Client) error {
		r, err := c.Stores.Loss(ctx, &dozov1.StoreLossRequest{Stores: stores})
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return a.format.Message(a.out, r)
		}
		return printLoss(a.out, r)
	})
}

// confirmLoss asks, having said what it would mean to whoever sits there.
func (a *app) confirmLoss(ctx context.Context, yes bool, question string, stores ...string) error {
	if !yes && isTerminal(a.in) {
		err := a.with(func(c *api.Client) error {
			r, err := c.Stores.Loss(ctx, &dozov1.StoreLossRequest{Stores: stores})
			if err != nil {
				return err
			}
			return printLoss(a.err, r)
		})
		if err != nil {
			fmt.Fprintf(a.err, "what that would mean is not known: %s\n", message(err))
		}
	}
	return a.confirm(yes, question)
}

func printLoss(w io.Writer, r *dozov1.StoreLossResponse) error {
	g := view.NewGrid("STORE", "SITE", "STATE", "USED", "ID")
	for _, s := range r.GetStores() {
		g.Row(s.GetNode()+"/"+s.GetLabel(), s.GetSite(), s.GetState(), size.Format(s.GetUsedBytes()), s.GetId())
	}
	if err := g.Write(w); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if len(r.GetHit()) > 0 {
		g = view.NewGrid("VOLUME", "ON ONE STORE ONLY", "SIZE", "ON NONE", "LAST RECORD", "LOST RECORDS", "TAKEOVER")
		for _, v := range r.GetHit() {
			lost, takeover := "none known", "proven"
			if v.GetLostRecords() > 0 {
				lost = fmt.Sprintf("at least %d", v.GetLostRecords())
			} else if !v.GetUnproven() {
				lost = "none"
			}
			if v.GetUnproven() {
				takeover = "not proven"
			}
			none := number(v.GetLostSegments()) + " segments"
			if len(r.GetSilent()) > 0 {
				if none = "not known"; v.GetLostSegments() > 0 {
					none = fmt.Sprintf("at least %d segments", v.GetLostSegments())
				}
			}
			name := v.GetVolume()
			if v.GetTenant() != "default" {
				name = v.GetTenant() + "/" + name
			}
			g.Row(name, number(v.GetSingleSegments())+" segments", size.Format(v.GetSingleBytes()), none, number(v.GetLastSeq()), lost, takeover)
		}
		if err := g.Write(w); err != nil {
			return err
		}
		for _, v := range r.GetHit() {
			if v.GetMessage() != "" {
				fmt.Fprintf(w, "%s: %s\n", v.GetVolume(), v.GetMessage())
			}
		}
	}
	fmt.Fprintf(w, "%d volumes may have something there, and %d of them would have too few copies, or not everything any more\n", r.GetVolumes(), len(r.GetHit()))
	for _, n := range r.GetNotes() {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	if u := r.GetSilent(); len(u) > 0 {
		fmt.Fprintf(w, "note: %s can not be asked: what is there and nowhere else is not known, but for records at the end of a volume's history\n", strings.Join(u, ", "))
	}
	if u := r.GetUnheard(); len(u) > 0 {
		fmt.Fprintf(w, "note: %s can not be asked: what is there does not count here\n", strings.Join(u, ", "))
	}
	return nil
}
