package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"dozo/internal/guest"
	"dozo/internal/guest/agent"
	"dozo/internal/lab"
)

func newLabGuest(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "guest", Short: "Virtual machines with Debian's kernel and tools, as clients of what is tested",
		Long: `Boot virtual machines with Debian's kernel, open-iscsi, multipath-tools, nfs-common, fio and sg3-utils, as real clients
of dozo or of any other target. QEMU emulates the processor, so no virtualisation is needed; a boot takes about 5
seconds of processor time. A guest's network interfaces are at the sites of a lab, and need root as that does; without
any, root is not needed.

Needed are the packages qemu-system-x86 and, for disks behind iscsi:// URLs, qemu-block-extra; to build the image also apt
with Debian 12's packages, xz-utils and e2fsprogs.`,
		Example: "  dozo lab guest build\n  dozo lab guest run -- uname -a\n  dozo lab guest run --nic east=10.77.1.1 --nic east=10.77.1.2",
	}
	c.AddCommand(newLabGuestBuild(a), newLabGuestRun(a), newLabGuestMigrate(a), newLabGuestAgent(a))
	return c
}

// guestFlags are what commands that boot guests have in common.
type guestFlags struct {
	lab      string
	cache    string
	packages []string
	memory   sizeFlag
	cpus     int
	accel    string
}

func (o *guestFlags) add(c *cobra.Command) {
	o.memory = guest.DefaultMemory
	f := c.Flags()
	f.StringVar(&o.lab, "name", lab.DefaultName, "of the lab")
	f.Var(&o.memory, "memory", "of the guest")
	f.IntVar(&o.cpus, "cpus", 1, "processors of the guest")
	f.StringVar(&o.accel, "accel", "tcg", "QEMU's accelerator: tcg (everywhere) or kvm")
	o.addImage(c)
}

func (o *guestFlags) addImage(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.cache, "cache", "", "`directory` for images (default $DOZO_CACHE or ~/.cache/dozo)")
	f.StringSliceVar(&o.packages, "package", nil, "further Debian `package` for the image; can be repeated")
}

func (o *guestFlags) cacheDir() (string, error) {
	if o.cache != "" {
		return o.cache, nil
	}
	return guest.Cache()
}

// image gives the image, which is made if it is not there.
func (o *guestFlags) image(ctx context.Context, a *app) (*guest.Image, error) {
	cache, err := o.cacheDir()
	if err != nil {
		return nil, err
	}
	if i, err := guest.Find(cache, o.packages); err == nil {
		return i, nil
	}
	return guest.Build(ctx, cache, o.packages, a.err)
}

// options gives what all guests of a command have in common. The lab is opened only if it is needed.
func (o *guestFlags) options(ctx context.Context, a *app, needLab bool) (guest.Options, error) {
	opts := guest.Options{MemoryBytes: int64(o.memory), CPUs: o.cpus, Accel: o.accel}
	var err error
	if needLab {
		if opts.Lab, err = lab.Open(o.lab); err != nil {
			return opts, err
		}
	}
	opts.Image, err = o.image(ctx, a)
	return opts, err
}

func newLabGuestBuild(a *app) *cobra.Command {
	var o guestFlags
	c := &cobra.Command{
		Use: "build", Short: "Make the guest's image from Debian's packages, in a cache", Args: names(),
		Long: `Download Debian's packages in the versions that apt knows now, and make the guest's image of them in the cache, unless it
is there. Nothing is installed, and no root is needed. The other commands take the image that was built last with the
same --package, and build it if there is none. About 130 MB are downloaded and 270 MB kept.`,
	}
	o.addImage(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cache, err := o.cacheDir()
		if err != nil {
			return err
		}
		i, err := guest.Build(cmd.Context(), cache, o.packages, a.err)
		if err != nil {
			return err
		}
		return a.done(nil, i.Dir)
	}
	return c
}

func newLabGuestAgent(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "agent", Short: "The init of a guest", Hidden: true, Args: names(),
		RunE: func(*cobra.Command, []string) error { return agent.Init(slog.New(slog.NewTextHandler(a.err, nil))) },
	}
}
