package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/guest"
)

// stdinMax bounds what is given to a command from a file or a pipe; a terminal is not read.
const stdinMax = 16 << 20

type labGuestRun struct {
	guestFlags
	site    string
	nics    []string
	disks   []string
	timeout time.Duration
	verbose bool
	stdin   bool
}

func newLabGuestRun(a *app) *cobra.Command {
	var o labGuestRun
	c := &cobra.Command{
		Use: "run [-- COMMAND [ARG...]]", Short: "Boot a guest, run a command in it, and turn it off",
		Long: `Boot a guest, run a command in it, and turn it off. The command's exit code is this command's; one that is not ended by
--timeout is killed, and the code is 7. Without a command a shell runs on this terminal.

Each --nic SITE gives the guest an interface at a site of the lab: eth0, eth1 and so on, with the addresses 10.77.SITE.201
and up. What begins in the guest leaves by the first; SITE=ADDRESS[+ADDRESS...] names what is reached by another, so that
each portal is a path of its own. Each --disk is a file or an iscsi:// URL: /dev/vdb, /dev/vdc and so on. A URL is opened
by QEMU at --at, or else at the first interface's site. Whatever else the guest writes is in its memory, and gone with it.`,
		Example: `  dozo lab guest run -- sh -c 'modprobe dm_multipath; uname -a'
  dozo lab guest run --nic east=10.77.1.1 --nic east=10.77.1.2 -- iscsiadm -m discovery -t st -p 10.77.1.1
  dozo lab guest run --disk disk.raw -- fio --name=x --filename=/dev/vdb --rw=randwrite --verify=crc32c --size=64M`,
	}
	o.add(c)
	f := c.Flags()
	f.StringVar(&o.site, "at", "", "`site` at which QEMU itself runs")
	f.StringArrayVar(&o.nics, "nic", nil, "an interface: `SITE[=ADDRESS[+ADDRESS...]]`; can be repeated")
	f.StringArrayVar(&o.disks, "disk", nil, "a disk: a `file` or an iscsi:// URL; can be repeated")
	f.DurationVar(&o.timeout, "timeout", 0, "how long the command may take (default: any time)")
	f.BoolVar(&o.stdin, "stdin", false, "give the command what is on standard input, up to 16 MiB")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "say what the boot took")
	c.Flags().SetInterspersed(false)
	c.RunE = func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) }
	return c
}

// parseNIC takes SITE[=ADDRESS[+ADDRESS...]].
func parseNIC(text string) guest.NIC {
	site, reach, found := strings.Cut(text, "=")
	n := guest.NIC{Site: site}
	if found {
		n.Reach = strings.Split(reach, "+")
	}
	return n
}

// parseDisk takes a file, whose format its name tells, or a URL.
func parseDisk(text string) guest.Disk {
	d := guest.Disk{Source: text}
	if !strings.HasPrefix(text, "iscsi:") && strings.HasSuffix(text, ".qcow2") {
		d.Format = "qcow2"
	}
	return d
}

func (o *labGuestRun) run(ctx context.Context, a *app, args []string) (err error) {
	if len(args) == 0 && !isTerminal(a.in) {
		return usageError{errors.New("missing COMMAND: a shell needs a terminal")}
	}
	opts, err := o.options(ctx, a, len(o.nics) > 0 || o.site != "")
	if err != nil {
		return err
	}
	opts.Site, opts.Terminal = o.site, len(args) == 0
	for _, n := range o.nics {
		opts.NICs = append(opts.NICs, parseNIC(n))
	}
	for _, d := range o.disks {
		opts.Disks = append(opts.Disks, parseDisk(d))
	}
	var input []byte
	if o.stdin {
		if input, err = io.ReadAll(io.LimitReader(a.in, stdinMax+1)); err != nil {
			return err
		}
		if len(input) > stdinMax {
			return usageError{errors.New("more than 16 MiB on standard input: give the guest a --disk")}
		}
	}
	if opts.Terminal {
		defer keepTerminal(os.Stdin)()
	}
	g, err := guest.Start(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	if o.verbose {
		fmt.Fprintf(a.err, "booted in %v, %v of processor time\n", g.Boot.Round(10*time.Millisecond), g.BootCPU)
		for i, addresses := range g.Addresses {
			fmt.Fprintf(a.err, "eth%d at %s: %s %s\n", i, opts.NICs[i].Site, addresses[0], addresses[1])
		}
	}
	status := 0
	if opts.Terminal {
		status, err = g.Shell(ctx)
	} else {
		var res guest.Result
		res, err = g.Run(ctx, guest.Command{Args: args, Dir: "/root", Stdin: input, Timeout: o.timeout, Stdout: a.out, Stderr: a.err})
		status = res.Status
	}
	if err == nil && status != 0 {
		err = exitError{status}
	}
	return err
}
