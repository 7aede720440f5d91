package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"dozo/internal/api/view"
	"dozo/internal/lab"
)

func newLabStatus(a *app) *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "What a lab looks like now: sites, paths, nodes", Args: names()}
	name := labName(c)
	c.RunE = func(*cobra.Command, []string) error {
		l, err := lab.Open(*name)
		if err != nil {
			return err
		}
		return labPrintStatus(a, l)
	}
	return c
}

func labPrintStatus(a *app, l *lab.Lab) error {
	st, err := l.Status()
	if err != nil {
		return err
	}
	if a.format != view.Table {
		return a.format.Value(a.out, st)
	}
	buffer := func(bytes int, auto bool) string {
		s := strconv.Itoa(bytes)
		if auto {
			s += " (auto)"
		}
		return s
	}
	g := view.NewGrid("SITE", "NAMESPACE", "ADDRESSES", "UP", "DOWN", "PROCESSES")
	for _, s := range st.Sites {
		g.Row(s.Name, s.NetNS, lab.AddressRange(s.Addresses), s.Up.Rate, s.Down.Rate, strconv.Itoa(len(s.Processes)))
	}
	if err := g.Write(a.out); err != nil {
		return err
	}
	if !st.Router.Running {
		fmt.Fprintf(a.out, "\nThe router does not run: nothing passes. End the lab with dozo lab down.\n")
		return exitError{exitUnhealthy}
	}
	if len(st.Paths) > 0 {
		fmt.Fprintln(a.out)
		g = view.NewGrid("FROM", "TO", "DELAY", "JITTER", "RATE", "BUFFER", "LOSS", "REORDER", "STATE")
		for _, p := range st.Paths {
			state := "open"
			if p.Cut {
				state = "cut"
			}
			g.Row(p.From, p.To, fmt.Sprintf("%gms", p.DelayMs), fmt.Sprintf("%gms", p.JitterMs), p.Rate, buffer(p.BufferBytes, p.BufferAuto),
				fmt.Sprintf("%g%%", p.LossPercent), fmt.Sprintf("%g%%", p.ReorderPercent), state)
		}
		if err := g.Write(a.out); err != nil {
			return err
		}
	}
	if len(st.Nodes) > 0 {
		fmt.Fprintln(a.out)
		g = view.NewGrid("SITE", "NODE", "ADDRESS", "PID", "LOG")
		for _, n := range st.Nodes {
			pid := strconv.Itoa(n.PID)
			if n.PID == 0 {
				pid = "-"
			}
			g.Row(n.Site, n.Name, n.Address.String(), pid, n.Log)
		}
		return g.Write(a.out)
	}
	return nil
}
