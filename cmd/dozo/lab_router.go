package main

import (
	"github.com/spf13/cobra"

	"dozo/internal/lab"
)

func newLabRouter(a *app) *cobra.Command {
	c := &cobra.Command{Use: "router", Short: "The router of a lab, which dozo lab up starts", Hidden: true, Args: names()}
	name := labName(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error { return lab.ServeRouter(cmd.Context(), *name, a.err) }
	return c
}
