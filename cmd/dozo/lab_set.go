package main

import (
	"github.com/spf13/cobra"

	"dozo/internal/lab"
)

func newLabSet(a *app) *cobra.Command {
	var oneWay bool
	c := &cobra.Command{
		Use: "set (SITE SITE | all | SITE) KEY=VALUE...", Short: "Change a path or an access link", Args: someNames(0, "SITE", "KEY=VALUE"),
		Long: `Change the path between two sites, both directions of it or with --one-way only the one from the first to the second;
all paths; or the access link of one site. What is not named stays.

Of a path: rtt (half of it each way), delay (one way), jitter, rate, buffer (bytes, or auto), loss, reorder (shares of
packets in percent), reorder-by (how long those are held back). Of an access link: rate or up and down, buffer or
up-buffer and down-buffer. A rate is 100mbit or unlimited, and counts IP packets with their headers.`,
		Example: "  dozo lab set east west rtt=100ms loss=0.1%\n  dozo lab set east west --one-way rate=20mbit buffer=256KiB\n  dozo lab set north rate=500mbit",
	}
	name := labName(c)
	c.Flags().BoolVar(&oneWay, "one-way", false, "only from the first site to the second")
	c.ValidArgsFunction = completeSites(name)
	c.RunE = func(_ *cobra.Command, args []string) error { return labDo(*name, "set", oneWay, args) }
	return c
}

// labDo carries out a command that changes a lab.
func labDo(name, verb string, oneWay bool, args []string) error {
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	words := append([]string{verb}, args...)
	if oneWay {
		words = append(words, "one-way")
	}
	return l.Do(words...)
}
