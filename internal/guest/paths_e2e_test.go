//go:build e2e

package guest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dozo/internal/guest"
	"dozo/internal/lab"
)

// recipe is the indented block that follows a line of docs/guide/multipath.md: what it tells people to write is what is
// tested.
func recipe(t *testing.T, after string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/guide/multipath.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), after)
	if _, rest, _ = strings.Cut(rest, "\n\n"); !ok {
		t.Fatalf("docs/guide/multipath.md has no %q", after)
	}
	var b strings.Builder
	for line := range strings.Lines(rest) {
		own, ok := strings.CutPrefix(line, "    ")
		if !ok {
			break
		}
		b.WriteString(own)
	}
	if b.Len() == 0 {
		t.Fatalf("docs/guide/multipath.md has nothing after %q", after)
	}
	return b.String()
}

// configure writes the guide's recipes.
func configure(t *testing.T, g *guest.Guest) {
	t.Helper()
	for file, text := range map[string]string{
		"/etc/iscsi/iscsid.conf": recipe(t, "`/etc/iscsi/iscsid.conf`:"),
		"/etc/multipath.conf":    recipe(t, "`/etc/multipath.conf`:"),
	} {
		res, err := g.Run(t.Context(), guest.Command{Args: []string{"sh", "-c", "cat >>" + file}, Stdin: []byte(text)})
		if err != nil || res.Status != 0 {
			t.Fatalf("%s: %+v, %v", file, res, err)
		}
	}
}

// tools is what sg3-utils do with a unit that has two paths. It ends with 0 if all of it came out as it should; the first
// lines are the path devices. What is on the unit is lost.
const tools = `
set -eu
paths=$(multipathd show paths format '%d' | sed 1d | tr -d ' ')
set -- $paths
[ $# -ge 2 ]
a=/dev/$1 b=/dev/$2
echo "paths $a $b"
state() { sg_rtpg -d "$1" | sed -n "/group id : $(group "$1") /,/asymmetric access state/s/.*state : 0x0*\([0-9a-f]\).*/\1/p"; }
group() { sg_vpd -p 0x83 "$1" | sed -n 's/.*[Tt]arget port group: \(0x[0-9a-f]*\).*/\1/p'; }
same() { cmp "$1" "$2"; }
read_at() { dd if="$1" bs=512 skip="$2" count="$3" iflag=direct status=none; }

# SPC-4 6.37, 6.45: the path that is not optimized asks for the unit.
echo "states $(state $a)$(state $b)"
case $(state $a)$(state $b) in
01|0?) to=$b from=$a ;;
*) to=$a from=$b ;;
esac
sg_stpg --optimized $to
[ "$(state $to)" = 0 ]
[ "$(state $from)" = 1 ]
echo stpg

# SPC-4 6.15, 6.16: registered by one path, seen by the other.
sg_turs $a || true # unit attentions are taken
sg_turs $b || true
sg_persist --out --register --param-sark=0xd020 $a >/dev/null
sg_persist --out --register --param-sark=0xd021 $b >/dev/null
sg_persist --out --reserve --param-rk=0xd020 --prout-type=5 $a >/dev/null
sg_persist --in --read-keys $b | grep -q 0xd021
sg_persist --in --read-reservation $b | grep -q 'Write Exclusive, registrants only'
sg_persist --out --preempt --param-rk=0xd021 --param-sark=0xd020 --prout-type=1 $b >/dev/null
sg_turs $a || true
sg_persist --in --read-reservation $a | grep -q 'Write Exclusive'
sg_persist --out --clear --param-rk=0xd021 $b >/dev/null
sg_persist --in --read-keys $a | grep -qi 'no registered'
sg_turs $a || true
sg_turs $b || true
echo persist

# SBC-3 5.43: one block many times.
head -c 512 /dev/urandom >/tmp/block
sg_write_same --16 --in=/tmp/block --xferlen=512 --lba=2048 --num=512 $a
cp /tmp/block /tmp/want
for i in 1 2 3 4 5 6 7 8 9; do cat /tmp/want /tmp/want >/tmp/twice; mv /tmp/twice /tmp/want; done
read_at $b 2048 512 >/tmp/got
same /tmp/want /tmp/got
echo write_same

# SBC-3 5.28, 5.5: what was unmapped by one path reads as zeros by the other, and has no space.
sg_unmap --lba=2048 --num=256 $b
head -c 131072 /dev/zero >/tmp/zeros
read_at $a 2048 256 >/tmp/got
same /tmp/zeros /tmp/got
[ "$(sg_get_lba_status -bb --lba=2048 $a)" = 1 ]
[ "$(sg_get_lba_status -bb --lba=2304 $a)" = 0 ]
echo unmap

# SPC-4 6.4: copied inside the store.
modprobe sg
sg_xcopy if=$a of=$a skip=2304 seek=8192 count=256 bs=512 id_usage=disable >/dev/null
read_at $b 2304 256 >/tmp/want
read_at $b 8192 256 >/tmp/got
same /tmp/want /tmp/got
sg_copy_results --params $a >/dev/null 2>&1
echo xcopy
`

// testTools runs sg3-utils against a unit with two paths or more.
func testTools(t *testing.T, g *guest.Guest) {
	t.Helper()
	out := sh(t, g, tools)
	t.Logf("sg3-utils:\n%s", out)
	for _, done := range []string{"stpg", "persist", "write_same", "unmap", "xcopy"} {
		if !strings.Contains(out, "\n"+done+"\n") {
			t.Errorf("%s was not come to", done)
		}
	}
}

// labNode finds a node of the lab.
func labNode(t *testing.T, l *lab.Lab, name string) lab.NodeStatus {
	t.Helper()
	st, err := l.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("the lab has no node %s", name)
	return lab.NodeStatus{}
}

// killNode ends a node by SIGKILL.
func killNode(t *testing.T, l *lab.Lab, name string) {
	t.Helper()
	n := labNode(t, l, name)
	if n.PID == 0 {
		t.Fatalf("%s does not run", name)
	}
	if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// startNode starts a node that was killed.
func startNode(t *testing.T, l *lab.Lab, name string) {
	t.Helper()
	n := labNode(t, l, name)
	dir := filepath.Dir(n.Log)
	log, err := os.OpenFile(n.Log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "serve", "--config", filepath.Join(dir, "dozo.yaml"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := l.Start(n.Site, cmd); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // lab.Down ends it, after the test that started it
}

// dozoAt runs a command of the program at the lab.
func dozoAt(t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	c := exec.Command(program, args...)
	c.Env = append(os.Environ(), l.Env()...)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("dozo %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func ownerOf(t *testing.T, l *lab.Lab, volume string) string {
	t.Helper()
	var v struct {
		Volume struct{ Owner string }
	}
	text := dozoAt(t, l, "volume", "show", volume, "-o", "json")
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v.Volume.Owner
}

// awaitPaths waits until so many paths of the only multipath device are there.
func awaitPaths(t *testing.T, g *guest.Guest, want int, when string) {
	t.Helper()
	began := time.Now()
	for {
		text := strings.TrimSpace(sh(t, g, "sleep 0.5; multipath -ll | grep -cE 'active ready +running' || true"))
		if n, err := strconv.Atoi(text); err == nil && n == want {
			t.Logf("%s: %d paths after %v", when, want, time.Since(began).Round(100*time.Millisecond))
			return
		}
		if time.Since(began) > 5*time.Minute {
			t.Fatalf("%s: %s paths, want %d:\n%s", when, text, want, sh(t, g, "multipath -ll; iscsiadm -m session"))
		}
	}
}

// fioReport is what is looked at of fio's JSON.
type fioReport struct {
	Jobs []struct {
		Error       int
		Read, Write struct {
			TotalIOs uint64                `json:"total_ios"`
			Clat     struct{ Max float64 } `json:"clat_ns"`
		}
	}
}

// load runs fio with verify on a device until stop, which gives what it says.
func load(t *testing.T, g *guest.Guest, dev string) (stop func() fioReport) {
	t.Helper()
	type outcome struct {
		res guest.Result
		err error
	}
	done := make(chan outcome, 1)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		res, err := g.Run(ctx, guest.Command{Args: []string{"fio", "--name=f", "--filename=" + dev, "--size=64M", "--rw=randwrite", "--bs=4k", "--direct=1",
			"--ioengine=libaio", "--iodepth=4", "--rate_iops=60", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64",
			"--time_based", "--runtime=900", "--write_lat_log=/tmp/fio", "--disable_slat=1", "--log_max_value=1", "--output-format=json", "--output=/tmp/fio.json"}})
		done <- outcome{res, err}
	}()
	return func() (r fioReport) {
		t.Helper()
		sh(t, g, "kill -INT $(pidof fio)")
		o := <-done
		// Ended by a signal it says 128; nothing else but success would do.
		if o.err != nil || o.res.Status != 0 && o.res.Status != 128 {
			t.Errorf("fio: %v, %+v", o.err, o.res)
		}
		text := sh(t, g, "cat /tmp/fio.json")
		if at := strings.Index(text, "{"); at < 0 || json.Unmarshal([]byte(text[at:]), &r) != nil || len(r.Jobs) != 1 {
			t.Fatalf("fio says %q", text)
		}
		j := r.Jobs[0]
		if j.Error != 0 || j.Write.TotalIOs == 0 || j.Read.TotalIOs == 0 {
			t.Errorf("fio: error %d, %d writes, %d reads", j.Error, j.Write.TotalIOs, j.Read.TotalIOs)
		}
		return r
	}
}

// guestUptime is the guest's clock, the one of its kernel's messages.
func guestUptime(t *testing.T, g *guest.Guest) float64 {
	t.Helper()
	up, err := strconv.ParseFloat(strings.Fields(sh(t, g, "cat /proc/uptime"))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return up
}

// saidSince gives the kernel's messages about connections and paths since a moment, and when the slowest I/Os of fio ended:
// what a stall consists of.
// Those of fio's first seconds, while it starts, are left out.
func saidSince(t *testing.T, g *guest.Guest, started, began float64) string {
	t.Helper()
	return sh(t, g, fmt.Sprintf(`dmesg | tr -d '[]' | awk -v b=%f '$1 >= b && /connection|session|multipath|alua|Failing|Reinstating|I\/O error|rejecting/ {$1 = sprintf("%%7.2f", $1 - b); print}' | tail -n 60
echo "slowest, as fio has them (ended at ms of its run, took ns):"
awk -F, -v from=%d '$1 >= from' /tmp/fio_clat.*.log | sort -t , -k 2 -n -r | head -n 8`, began, int((began-started-2)*1000)))
}

// TestServers: an access server is killed, comes back, is drained and comes back, while fio writes and verifies through the
// kernel's initiator and multipathd, set up as the guide says: no error reaches it.
func TestServers(t *testing.T) {
	if testing.Short() {
		t.Skip("minutes long: make guest-test")
	}
	l, iqn, _ := newLab(t)
	for _, x := range []struct {
		paths int
		nics  []guest.NIC
	}{
		{2, []guest.NIC{{Site: "east", Reach: []string{"10.77.1.1"}}, {Site: "east", Reach: []string{"10.77.1.2"}}}},
		{4, []guest.NIC{{Site: "east", Reach: []string{"10.77.1.1", "10.77.2.1"}}, {Site: "east", Reach: []string{"10.77.1.2", "10.77.2.2"}}}},
	} {
		t.Run(fmt.Sprintf("%dPaths", x.paths), func(t *testing.T) { testServers(t, l, iqn, x.nics) })
	}
}

func testServers(t *testing.T, l *lab.Lab, iqn string, nics []guest.NIC) {
	var portals []string
	for _, n := range nics {
		portals = append(portals, n.Reach...)
	}
	g := boot(t, guest.Options{Lab: l, NICs: nics})
	configure(t, g)
	dev := strings.TrimSpace(sh(t, g, "guest-iscsi "+iqn+" "+strings.Join(portals, " ")))
	t.Logf("\n%s", sh(t, g, "multipath -ll"))
	for _, event := range []struct {
		name string
		do   func()
	}{
		{"killed", func() {
			owner := ownerOf(t, l, "disk")
			killNode(t, l, owner)
			awaitPaths(t, g, len(portals)-1, owner+" was killed")
			startNode(t, l, owner)
			awaitPaths(t, g, len(portals), owner+" is back")
		}},
		{"drained", func() {
			owner := ownerOf(t, l, "disk")
			dozoAt(t, l, "node", "drain", owner, "--wait", "--timeout", "60s")
			// The initiator logs out as it is asked to, and is sent to another server when it logs in again.
			time.Sleep(20 * time.Second)
			awaitPaths(t, g, len(portals), owner+" is drained")
			dozoAt(t, l, "node", "undrain", owner)
			if now := ownerOf(t, l, "disk"); now == owner {
				t.Errorf("%s was drained, and is the owner", now)
			}
			awaitPaths(t, g, len(portals), owner+" is back")
		}},
	} {
		started := guestUptime(t, g)
		stop := load(t, g, dev)
		time.Sleep(5 * time.Second)
		began := guestUptime(t, g)
		event.do()
		time.Sleep(5 * time.Second)
		r := stop().Jobs[0]
		t.Logf("%s: what the guest's kernel said, in seconds after the event began:\n%s", event.name, saidSince(t, g, started, began))
		t.Logf("%s: %d writes and %d reads, the longest took %.2f s and %.2f s", event.name, r.Write.TotalIOs, r.Read.TotalIOs, r.Write.Clat.Max/1e9, r.Read.Clat.Max/1e9)
	}
	sh(t, g, "multipath -f "+filepath.Base(dev)+" && iscsiadm -m node -u")
}

// TestFileSystem: authenticated discovery, mutual CHAP and xfs, with the kernel's initiator.
func TestFileSystem(t *testing.T) {
	if testing.Short() {
		t.Skip("needs an image with more packages: make guest-test")
	}
	cache, err := guest.Cache()
	if err != nil {
		t.Fatal(err)
	}
	withXFS, err := guest.Build(t.Context(), cache, []string{"xfsprogs"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	l, _, _ := newLab(t)
	const initiator, in, out = "iqn.2026-01.dozo.guest:xfs", "abcdefgh-in-secret", "abcdefgh-out-secret"
	secrets := t.TempDir()
	for name, text := range map[string]string{"in": in, "out": out} {
		if err := os.WriteFile(filepath.Join(secrets, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dozoAt(t, l, "host", "add", "guest", "--initiator", initiator, "--chap-user", "guest", "--chap-secret-file", filepath.Join(secrets, "in"),
		"--chap-target-user", "store", "--chap-target-secret-file", filepath.Join(secrets, "out"))
	dozoAt(t, l, "volume", "create", "xfs", "512M", "--at", "east", "--host", "guest")
	iqn := strings.Split(strings.Fields(dozoAt(t, l, "volume", "targets", "xfs"))[0], "/")[3]

	o := guest.Options{Lab: l, NICs: []guest.NIC{{Site: "east", Reach: []string{"10.77.1.1"}}, {Site: "east", Reach: []string{"10.77.1.2"}}}}
	o.Image, o.Agent = withXFS, program
	g, err := guest.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	configure(t, g)
	sh(t, g, `modprobe -a iscsi_tcp sd_mod; echo InitiatorName=`+initiator+` >/etc/iscsi/initiatorname.iscsi; iscsid`)
	// Without the secret nothing is told.
	if out, err := g.Output(t.Context(), time.Minute, "iscsiadm -m discovery -t sendtargets -p 10.77.1.1"); err == nil || strings.Contains(out, iqn) {
		t.Errorf("discovery without CHAP: %q, %v", out, err)
	}
	var conf strings.Builder
	for _, kind := range []string{"discovery.sendtargets", "node.session"} {
		for key, value := range map[string]string{"authmethod": "CHAP", "username": "guest", "password": in, "username_in": "store", "password_in": out} {
			fmt.Fprintf(&conf, "%s.auth.%s = %s\n", kind, key, value)
		}
	}
	res, err := g.Run(t.Context(), guest.Command{Args: []string{"sh", "-c", "cat >>/etc/iscsi/iscsid.conf; kill $(pidof iscsid); sleep 1; iscsid"}, Stdin: []byte(conf.String())})
	if err != nil || res.Status != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	found := sh(t, g, "iscsiadm -m discovery -t sendtargets -p 10.77.1.1")
	t.Logf("discovered:\n%s", found)
	if strings.Count(found, iqn) != 4 {
		t.Errorf("want four portals of %s", iqn)
	}
	sh(t, g, "iscsiadm -m node -o delete; kill $(pidof iscsid) || true") // of its two processes one may be gone with the other
	dev := strings.TrimSpace(sh(t, g, "INITIATOR="+initiator+" guest-iscsi "+iqn+" 10.77.1.1 10.77.1.2"))
	if auth := sh(t, g, "iscsiadm -m session -P 2 | grep -c 'username_in: store' || true"); auth != "2\n" {
		t.Errorf("sessions with mutual CHAP: %s", auth)
	}
	sh(t, g, "modprobe xfs && mkfs.xfs -q "+dev+" && mount "+dev+" /mnt && fio --name=f --directory=/mnt --size=16M --rw=randwrite --bs=4k --direct=1 "+
		"--ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --fallocate=none && umount /mnt && xfs_repair -n "+dev)
}
