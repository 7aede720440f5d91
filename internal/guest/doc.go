// Package guest boots virtual machines with Debian's kernel and tools, for experiments and tests with real clients: the
// kernel's own initiator, dm-multipath, NFS (dozo lab guest). QEMU emulates the processor, so nothing but a Linux host is
// needed; the guest's network interfaces are tap devices at the sites of a lab.
//
// Start at Build, which makes the image from Debian's packages once, and Start, which boots it. Run runs a command
// in it, SetLink pulls a cable, Close ends it. Migrate (migrate.go) moves a running one to another QEMU; internal/guest/migrate
// measures that.
//
//	image.go, build.sh   files of the guest, in a cache
//	cpio.go              the first file system: kernel modules, and this program as init (internal/guest/agent)
//	qemu.go              the command line and the process
//	qmp.go               QEMU's monitor
//	channel.go           frames to the guest's agent
//	guest.go, network.go what callers see
//
// Channels to QEMU are inherited socket pairs and its other files have no names, so nothing has to be removed after a crash;
// QEMU dies with the process that started it, and a tap device with its QEMU.
//
// Who owns what: a Guest has one goroutine that waits for QEMU, one that reads the monitor, and one for each channel
// to an agent with one more that takes the frames apart; Close returns when all are gone.
//
// Times are the host's unless their names say guest: software emulation is slow and a guest's clock stands still while it
// is stopped.
package guest
