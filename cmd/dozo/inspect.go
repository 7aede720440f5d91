package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api/view"
)

// inspectOptions say how much dozo inspect prints.
type inspectOptions struct {
	Format  view.Format
	Records bool // every record
	Data    bool // their bytes too
	Name    bool // the file's name first
}

func newInspect(a *app) *cobra.Command {
	var o inspectOptions
	c := &cobra.Command{
		Use: "inspect FILE...", Short: "Print segment files and checkpoints as text, verifying every checksum",
		Long: `Print files that dozo wrote, segments or checkpoints, as text, and verify every checksum in them. No node need run. The
files of a volume are in dozo volume show NAME --segments; the parts of a checkpoint are records of such files too. Exit code 1: something in a file is damaged; 2: it is no such file.`,
		Args: someNames(0, "FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			o.Format = a.format
			return inspect(a, args, o)
		},
	}
	c.Flags().BoolVar(&o.Records, "records", false, "every record, not only a summary")
	c.Flags().BoolVar(&o.Data, "data", false, "the bytes of the records too, in hexadecimal")
	return c
}

// inspect goes on after a damaged file: the others are wanted too.
func inspect(a *app, files []string, o inspectOptions) error {
	if a.fn.inspect == nil {
		return notBuilt("inspect")
	}
	o.Name = len(files) > 1
	var errs []error
	for _, f := range files {
		if err := a.fn.inspect(f, o, a.out); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
		}
	}
	return errors.Join(errs...)
}
