package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api/view"
	"dozo/internal/lab"
)

func newLabPlay(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "play FILE", Short: "Play a scenario: a timeline of changes", Args: names("FILE"),
		Long: `Play a scenario, a file in YAML with steps, each a time since the beginning and one command or a list of them, as
dozo lab set, partition and heal take them:

  steps:
    - {at: 0s, do: set all rtt=18ms}
    - {at: 5s, do: [partition east west, set north up=100mbit]}
    - {at: 9s, do: heal}
  repeat: 3    # rounds; 0: until interrupted
  length: 12s  # of a round

The whole file is checked before the first step. What the last step has set stays.`,
	}
	name := labName(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		l, err := lab.Open(*name)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		s, err := lab.ParseScenario(text, l.SiteNames())
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		return playScenario(cmd.Context(), a, l, s)
	}
	return c
}

func playScenario(ctx context.Context, a *app, l *lab.Lab, s *lab.Scenario) error {
	return l.Play(ctx, s, func(at time.Duration, words []string) {
		if a.format == view.Table {
			fmt.Fprintf(a.out, "%8s  %s\n", at.Round(time.Millisecond), lab.Words(words))
		}
	})
}
