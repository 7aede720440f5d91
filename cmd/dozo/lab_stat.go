package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"dozo/internal/api/view"
	"dozo/internal/lab"
	"dozo/internal/size"
)

func newLabStat(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "stat", Short: "What came of the packets, and how exact the router was", Args: names(),
		Long: `Print what came of the packets of each direction, what waits in queues, and how exact the router itself was: how many
runs of packets it sent more than 0.3 ms after they were due, and how often it did not look for new ones for as long.
A measurement during which either grew says something about this machine, too.`,
	}
	name := labName(c)
	c.RunE = func(*cobra.Command, []string) error {
		l, err := lab.Open(*name)
		if err != nil {
			return err
		}
		st, err := l.Stat()
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return a.format.Value(a.out, st)
		}
		n := func(v uint64) string { return strconv.FormatUint(v, 10) }
		g := view.NewGrid("FROM", "TO", "SENT", "DELIVERED", "BYTES", "QUEUE FULL", "LOST", "CUT", "REORDERED", "QUEUE", "QUEUE MAX")
		for _, p := range st.Paths {
			g.Row(p.From, p.To, n(p.Sent), n(p.Delivered), size.Format(p.DeliveredBytes), n(p.DroppedQueue), n(p.Lost), n(p.DroppedCut), n(p.Reordered),
				size.Format(uint64(p.Queue.Bytes)), size.Format(uint64(p.Queue.BytesMax)))
		}
		if err := g.Write(a.out); err != nil {
			return err
		}
		fmt.Fprintln(a.out)
		g = view.NewGrid("SITE", "UP", "QUEUE FULL", "QUEUE", "QUEUE MAX", "DOWN", "QUEUE FULL", "QUEUE", "QUEUE MAX")
		for _, s := range st.Access {
			g.Row(s.Site, size.Format(s.Up.PassedBytes), n(s.Up.Dropped), size.Format(uint64(s.Up.Bytes)), size.Format(uint64(s.Up.BytesMax)),
				size.Format(s.Down.PassedBytes), n(s.Down.Dropped), size.Format(uint64(s.Down.Bytes)), size.Format(uint64(s.Down.BytesMax)))
		}
		if err := g.Write(a.out); err != nil {
			return err
		}
		r := st.Router
		_, err = fmt.Fprintf(a.out, `
Router: %d writes, %d late by more than 0.3 ms (the most: %.3f ms); %d stalls (the longest: %.3f ms)
        %d packets dropped for want of memory, %d to nobody, %d malformed, %d not taken by the kernel
`, r.Written, r.Late, r.LateMaxMs, r.Stalls, r.StallMaxMs, r.Overflow, r.NoRoute, r.Malformed, r.WriteErrors)
		return err
	}
	return c
}
