package main

import (
	"github.com/spf13/cobra"

	"dozo/internal/up"
)

func newDown(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop the system that dozo up runs on this machine",
		Long: `Stop every process of the system in --dir, and wait until they have ended; what does not end within 25 seconds is
killed. Data stay. A process that merely has the pid of a node that is long gone is left alone.`,
		Args: names(),
		RunE: func(*cobra.Command, []string) error { return up.Down(a.upDir(), a.out) },
	}
}
