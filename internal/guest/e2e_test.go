//go:build e2e

package guest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"dozo/internal/guest"
	"dozo/internal/guest/migrate"
	"dozo/internal/lab"
)

// These tests boot guests: QEMU, and apt with Debian 12's packages for the image, are needed. Those at sites of a lab need root.
// In the short form (go test -short) cables stay in.

var (
	program string // dozo, statically linked
	image   *guest.Image
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if program = os.Getenv("DOZO_BIN"); program == "" {
		dir, err := os.MkdirTemp("", "dozo-bin")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "dozo")
		build := exec.Command("go", "build", "-o", program, "dozo/cmd/dozo")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	cache, err := guest.Cache()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if image, err = guest.Build(ctx, cache, nil, os.Stderr); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// stalled is what a kernel says of virtual processors that did not run for seconds.
var stalled = regexp.MustCompile(`soft lockup|rcu.*(stall|starved)|clocksource|hrtimer: interrupt took|blocked for more than|ping timeout of`)

// boot starts a guest that ends with the test.
func boot(t *testing.T, o guest.Options) *guest.Guest {
	t.Helper()
	o.Image, o.Agent = image, program
	g, err := guest.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", g.Console())
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", g.PID())); err == nil {
			t.Errorf("qemu, pid %d, is left", g.PID())
		}
	})
	t.Logf("booted in %v, %v of processor time", g.Boot.Round(10*time.Millisecond), g.BootCPU)
	return g
}

// sh runs a command line in a guest.
func sh(t *testing.T, g *guest.Guest, line string) string {
	t.Helper()
	out, err := g.Output(t.Context(), 8*time.Minute, line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGuest(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	g := boot(t, guest.Options{Disks: []guest.Disk{{Source: disk}}})
	// About 4 s on a machine of 2020, and two or three times that where other work takes the caches and half of each core; the
	// bound is for what would make it useless.
	if g.BootCPU > time.Minute {
		t.Errorf("a boot takes %v of processor time", g.BootCPU)
	}
	ctx := t.Context()
	for _, c := range []struct {
		cmd       guest.Command
		status    int
		out, errs string
	}{
		{guest.Command{Args: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}}, 7, "out\n", "err\n"},
		{guest.Command{Args: []string{"sh", "-c", "kill -9 $$"}}, 137, "", ""},
		{guest.Command{Args: []string{"wc", "-c"}, Stdin: make([]byte, 300000)}, 0, "300000\n", ""},
		{guest.Command{Args: []string{"sh", "-c", "echo $PWD $A"}, Dir: "/tmp", Env: []string{"A=1"}}, 0, "/tmp 1\n", ""},
		// A daemon does not keep its starter from ending, and its children do not stay as zombies.
		{guest.Command{Args: []string{"sh", "-c", "(sleep 0.1; sleep 30) & exit 4"}}, 4, "", ""},
	} {
		res, err := g.Run(ctx, c.cmd)
		if err != nil || res.Status != c.status || res.Stdout != c.out || res.Stderr != c.errs {
			t.Errorf("%v: %+v %v", c.cmd.Args, res, err)
		}
	}
	if _, err := g.Run(ctx, guest.Command{Args: []string{"no-such-program"}}); err == nil {
		t.Error("no-such-program runs")
	}
	res, err := g.Run(ctx, guest.Command{Args: []string{"sleep", "1000"}, Timeout: 500 * time.Millisecond})
	if !errors.Is(err, guest.ErrTimeout) || res.Status != 137 {
		t.Errorf("a command that does not end: %+v %v", res, err)
	}
	sh(t, g, "i=0; while ps -o stat,args | grep -E '^Z|[s]leep 1000'; do i=$((i+1)); [ $i -lt 1200 ] || exit 1; sleep 0.1; done")
	for _, tool := range []string{"iscsiadm --version", "multipath -h 2>&1 | grep -q multipath-tools", "fio --version", "sg_inq --version 2>&1", "mount.nfs -V", "mkfs.ext4 -V 2>&1"} {
		sh(t, g, tool)
	}
	sh(t, g, "mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && echo kept >/mnt/file && umount /mnt")
	if out, err := exec.Command("/sbin/debugfs", "-R", "cat /file", disk).Output(); err != nil || string(out) != "kept\n" {
		t.Errorf("on the disk: %q %v", out, err)
	}
	testMigrationsThatFail(t, g, disk)
	// One that turns itself off.
	_, _ = g.Run(ctx, guest.Command{Args: []string{"poweroff", "-f"}})
	wait, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := g.Wait(wait); err != nil {
		t.Error(err)
	}
	if _, err := g.Run(ctx, guest.Command{Args: []string{"true"}}); err == nil {
		t.Error("a guest that is off runs commands")
	}
}

// testMigrationsThatFail: the guest and what runs in it go on, and the next migration succeeds.
func testMigrationsThatFail(t *testing.T, g *guest.Guest, disk string) {
	t.Helper()
	ctx := t.Context()
	counting := make(chan error, 1)
	go func() {
		res, err := g.Run(ctx, guest.Command{Args: []string{"sh", "-c", "i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); echo $i; sleep 0.05; done"}})
		for i, line := range strings.Fields(res.Stdout) {
			if line != fmt.Sprint(i+1) && err == nil {
				err = fmt.Errorf("line %d is %q", i+1, line)
			}
		}
		counting <- err
	}()
	for name, to := range map[string]guest.Destination{
		"no such disk":   {Disks: []guest.Disk{{Source: disk + ".missing"}}},
		"too many disks": {},
	} {
		if _, err := g.Migrate(ctx, to); err == nil {
			t.Errorf("%s: it migrates", name)
		}
	}
	// Most of it is spent in the stream, unless the machine is very busy.
	slow, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	to := guest.Destination{Disks: []guest.Disk{{Source: disk}}, BandwidthBytes: 1 << 20}
	if _, err := g.Migrate(slow, to); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that does not end in time: %v", err)
	}
	sh(t, g, "true")
	to.BandwidthBytes = 0
	pid := g.PID()
	m, err := g.Migrate(ctx, to)
	if err != nil {
		t.Fatal(err)
	}
	if g.PID() == pid || m.TransferredBytes == 0 || m.Resumed.Before(m.Stopped) {
		t.Errorf("%+v", m)
	}
	sh(t, g, "touch /tmp/enough; blockdev --getsize64 /dev/vdb")
	if err := <-counting; err != nil {
		t.Errorf("a command that ran meanwhile: %v", err)
	}
}

// newLab makes two sites of two nodes, and a volume; ways are the URLs of its portals.
func newLab(t *testing.T) (l *lab.Lab, iqn string, ways []string) {
	t.Helper()
	const name = "e2eguest" // test/e2e.sh removes labs called e2e...
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	spec, err := lab.NewSpec(name, lab.NodeSites([]string{"east", "west"}, 2), 2)
	if err != nil {
		t.Fatal(err)
	}
	spec.Nodes, spec.Dir = 2, t.TempDir()
	if err := lab.Down(name, 0, io.Discard); err != nil && !errors.Is(err, lab.ErrNoLab) {
		t.Fatal(err)
	}
	l, err = lab.Up(t.Context(), lab.Options{Spec: spec, Program: program, Commands: [][]string{{"set", "all", "rtt=18ms", "rate=1gbit"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		st, err := l.Status()
		if err != nil {
			t.Error(err)
		} else {
			for _, s := range st.Sites {
				for _, p := range s.Processes {
					if strings.HasPrefix(p.Name, "qemu") {
						t.Errorf("%s: %s, pid %d, is left", s.Name, p.Name, p.PID)
					}
				}
			}
		}
		if err := lab.Down(name, 5*time.Second, io.Discard); err != nil {
			t.Error(err)
		}
	})
	dozo := func(args ...string) string {
		c := exec.Command(program, args...)
		c.Env = append(os.Environ(), l.Env()...)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("dozo %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	dozo("volume", "create", "disk", "256M", "--at", "east")
	ways = strings.Fields(dozo("volume", "targets", "disk"))
	if len(ways) != 4 || !strings.HasPrefix(ways[0], "iscsi://10.77.1.1:") || !strings.HasPrefix(ways[2], "iscsi://10.77.2.1:") {
		t.Fatalf("targets: %v", ways)
	}
	return l, strings.Split(ways[0], "/")[3], ways
}

// TestLab: the kernel's initiator and a migration, with dozo nodes at two sites.
func TestLab(t *testing.T) {
	l, iqn, ways := newLab(t)
	t.Run("Multipath", func(t *testing.T) { testMultipath(t, l, iqn) })
	t.Run("Migration", func(t *testing.T) { testMigration(t, l, ways) })
}

func testMultipath(t *testing.T, l *lab.Lab, iqn string) {
	g := boot(t, guest.Options{Lab: l, NICs: []guest.NIC{{Site: "east", Reach: []string{"10.77.1.1"}}, {Site: "east", Reach: []string{"10.77.1.2"}}}})
	if len(g.Addresses) != 2 || g.Addresses[0] == g.Addresses[1] {
		t.Fatalf("addresses %v", g.Addresses)
	}
	dev := strings.TrimSpace(sh(t, g, "guest-iscsi "+iqn+" 10.77.1.1 10.77.1.2"))
	if !strings.HasPrefix(dev, "/dev/mapper/") {
		t.Fatalf("device %q", dev)
	}
	awaitPaths(t, g, 2, "logged in")
	show := sh(t, g, "multipath -ll")
	t.Log(show)
	if strings.Count(show, "active ready running") != 2 || !strings.Contains(show, "DOZO,VOLUME") || !strings.Contains(show, "hwhandler='1 alua'") {
		t.Error("want two paths of a unit with ALUA")
	}
	// Each path has a cable of its own.
	peers := sh(t, g, "iscsiadm -m session -P 1 | sed -n 's/.*Iface IPaddress: //p' | sort")
	if want := g.Addresses[0][0] + "\n" + g.Addresses[1][0] + "\n"; peers != want {
		t.Errorf("sessions from %q, want %q", peers, want)
	}
	const job = "fio --name=f --directory=/mnt --size=8M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 "
	sh(t, g, "mkfs.ext4 -q -E lazy_itable_init=0 "+dev+" && mount "+dev+" /mnt && "+job)
	if !testing.Short() {
		pullCables(t, g, job)
	}
	sh(t, g, "umount /mnt && e2fsck -fn "+dev)
	// Whatever the kernel had to complain about would be here.
	if log := sh(t, g, "dmesg -l err,crit,alert,emerg"); testing.Short() && log != "" {
		if stalled.MatchString(log) {
			t.Logf("this machine has let the guest stall:\n%s", log)
		} else {
			t.Errorf("the guest's kernel says:\n%s", log)
		}
	}
	testTools(t, g)
	sh(t, g, "multipath -f "+filepath.Base(dev)+" && iscsiadm -m node -u")
}

// pullCables takes one path away after the other while fio writes: it must not see an error.
func pullCables(t *testing.T, g *guest.Guest, job string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := g.Output(t.Context(), 4*time.Minute, job+"--rate_iops=50 --time_based --runtime=60s")
		done <- err
	}()
	for nic := range 2 {
		for _, up := range []bool{false, true} {
			if err := g.SetLink(t.Context(), nic, up); err != nil {
				t.Fatal(err)
			}
			want := 1
			if up {
				want = 2
			}
			deadline := time.Now().Add(90 * time.Second)
			for sh(t, g, "sleep 0.5; multipath -ll | grep -cE 'active ready +running' || true") != fmt.Sprintln(want) {
				if time.Now().After(deadline) {
					t.Fatalf("cable %d plugged %v: no %d paths:\n%s", nic, up, want, sh(t, g, "multipath -ll"))
				}
			}
			t.Logf("cable %d plugged: %v; %d paths", nic, up, want)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func testMigration(t *testing.T, l *lab.Lab, ways []string) {
	cfg := migrate.Config{
		Guest: guest.Options{Image: image, Agent: program, Lab: l}, From: "east", To: "west", URLFrom: ways[0], URLTo: ways[2],
		Interval: migrate.DefaultInterval, Slots: 1024, Dir: t.TempDir(),
	}
	if testing.Short() {
		cfg.Before, cfg.After = time.Second, time.Second
	}
	for again := 0; ; again++ {
		odd := migrated(t, l, cfg)
		if odd == "" {
			return
		}
		// Where this process stalls it takes the times of records late: what was before the pause then counts as after it, and the
		// second that is looked at may have none.
		if again == 3 {
			t.Fatal(odd)
		}
		t.Logf("again: %s", odd)
	}
}

// migrated holds that a migration keeps all records, and gives a measurement that makes no sense.
func migrated(t *testing.T, l *lab.Lab, cfg migrate.Config) (odd string) {
	t.Helper()
	before, err := l.Stat()
	if err != nil {
		t.Fatal(err)
	}
	rep, err := migrate.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := rep.Print(&b); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", b.String())
	if !rep.OK() {
		t.Error("records are lost, reordered or damaged")
	}
	if len(rep.Runs) != 2 || rep.Runs[0].Disk != migrate.LocalDisk || len(rep.Runs[1].Found) != 2 {
		t.Fatalf("%+v", rep)
	}
	for _, m := range rep.Runs {
		sum := 0
		for _, n := range m.Series {
			sum += n
		}
		text, _ := json.Marshal(m)
		if uint64(sum) != m.Records {
			t.Errorf("%d records in the series: %s", sum, text)
		}
		if m.Records < 50 || m.DowntimeMs == 0 || m.PausedMs == 0 || m.GapMs < m.PausedMs || m.RateAfter == 0 {
			odd = string(text)
		}
	}
	after, err := l.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range after.Paths {
		if sent := p.DeliveredBytes - before.Paths[i].DeliveredBytes; p.From == "east" && p.To == "west" && int64(sent) < rep.Runs[0].TransferredBytes+rep.Runs[1].TransferredBytes {
			t.Errorf("%d bytes passed the router", sent)
		}
	}
	return odd
}
