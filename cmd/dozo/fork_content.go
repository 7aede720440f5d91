package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

var errEndedEarly = errors.New("the node ended the answer early")

type forkDiff struct {
	base bool
	req  dozov1.DiffForkRequest
}

func newForkDiff(a *app) *cobra.Command {
	var o forkDiff
	c := &cobra.Command{
		Use: "diff VOLUME [FORK] [--base]", Short: "List the ranges in which a fork differs from the volume",
		Long: `List the ranges of bytes, in blocks of 4,096, in which the volume as a fork has it differs from the volume as it is now, or,
with --base, from the volume where the two part: what the fork's writes have changed.`,
		Args: someNames(2, "VOLUME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume, o.req.Fork = args[0], second(args)
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVar(&o.base, "base", false, "compare with the volume where the two part")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *forkDiff) run(ctx context.Context, a *app) error {
	if o.base {
		o.req.Against = "base"
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Forks.Diff(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		p := progress{a: a, show: isTerminal(a.err)}
		all := &dozov1.DiffForkResponse{}
		for stream.Receive() {
			m := stream.Msg()
			m.Ranges, all.Ranges = append(all.GetRanges(), m.GetRanges()...), nil
			all = m
			p.line(fmt.Sprintf("%s of %s compared, %s differ", size.Format(m.GetComparedBytes()), size.Format(m.GetSizeBytes()), size.Format(m.GetDifferingBytes())))
		}
		p.end()
		if err := stream.Err(); err != nil {
			return err
		}
		if !all.GetDone() {
			return errEndedEarly
		}
		if a.format != view.Table {
			return a.format.Message(a.out, all)
		}
		g := view.NewGrid("OFFSET", "LENGTH")
		for _, r := range all.GetRanges() {
			g.Row(number(r.GetOffset()), number(r.GetLength()))
		}
		if err := g.Write(a.out); err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "%d bytes of %d differ\n", all.GetDifferingBytes(), all.GetSizeBytes())
		return err
	})
}

type forkExport struct {
	file  string
	force bool
	req   dozov1.ExportForkRequest
}

func newForkExport(a *app) *cobra.Command {
	var o forkExport
	c := &cobra.Command{
		Use: "export VOLUME [FORK] --file FILE", Short: "Write the volume as a fork has it to a file",
		Long: `Write the content of the volume as a fork has it to a file, as a raw image: what was never written are holes. With --file - it goes to
standard output, with zeroes for the holes. Progress is shown on standard error where that is a terminal. A file that is not
complete is removed.`,
		Args: someNames(2, "VOLUME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume, o.req.Fork = args[0], second(args)
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.file, "file", "", "`file` to write, - for standard output")
	c.Flags().BoolVar(&o.force, "force", false, "though the file is there: it is replaced")
	_ = c.MarkFlagRequired("file")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *forkExport) run(ctx context.Context, a *app) error {
	if o.file == "-" && a.format != view.Table {
		return usageError{errors.New("standard output is the image: -o json and --file - exclude each other")}
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Forks.Export(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		p := progress{a: a, show: isTerminal(a.err)}
		receive := func(put func(m *dozov1.ExportForkResponse) error) (last *dozov1.ExportForkResponse, err error) {
			defer p.end()
			for stream.Receive() {
				last = stream.Msg()
				if err := put(last); err != nil {
					return last, err
				}
				p.line(fmt.Sprintf("%s of %s", size.Format(last.GetOffset()), size.Format(last.GetSizeBytes())))
			}
			if err := stream.Err(); err != nil {
				return last, err
			}
			if !last.GetDone() {
				return last, errEndedEarly
			}
			return last, nil
		}
		if o.file == "-" {
			return exportStream(a.out, receive)
		}
		return o.exportFile(a, receive)
	})
}

// exportStream writes an image in order, holes as zeroes.
func exportStream(w io.Writer, receive func(func(*dozov1.ExportForkResponse) error) (*dozov1.ExportForkResponse, error)) error {
	out := bufio.NewWriterSize(w, 1<<20)
	at := uint64(0)
	zeroes := make([]byte, 64<<10)
	_, err := receive(func(m *dozov1.ExportForkResponse) error {
		for at < m.GetOffset() {
			n, err := out.Write(zeroes[:min(uint64(len(zeroes)), m.GetOffset()-at)])
			if at += uint64(n); err != nil {
				return err
			}
		}
		n, err := out.Write(m.GetData())
		at += uint64(n)
		return err
	})
	if err != nil {
		return err
	}
	return out.Flush()
}

// exportFile writes an image with holes.
func (o *forkExport) exportFile(a *app, receive func(func(*dozov1.ExportForkResponse) error) (*dozov1.ExportForkResponse, error)) (err error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if o.force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(o.file, flags, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = os.Remove(o.file)
		}
	}()
	written := uint64(0)
	last, err := receive(func(m *dozov1.ExportForkResponse) error {
		if len(m.GetData()) == 0 {
			return nil
		}
		n, err := f.WriteAt(m.GetData(), int64(m.GetOffset()))
		written += uint64(n)
		return err
	})
	if err == nil {
		err = f.Truncate(int64(last.GetSizeBytes()))
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return err
	}
	if a.format != view.Table {
		return a.format.Message(a.out, last)
	}
	_, err = fmt.Fprintf(a.out, "%s: %s, %s of them data\n", o.file, size.Format(last.GetSizeBytes()), size.Format(written))
	return err
}
