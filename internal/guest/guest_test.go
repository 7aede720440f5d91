package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dozo/internal/guest/agent"
	"dozo/internal/lab"
)

func TestCpio(t *testing.T) {
	var b bytes.Buffer
	c := &cpioWriter{w: &b}
	c.dir("dir")
	c.file("dir/file", 5, strings.NewReader("hello"))
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 {
		t.Errorf("%d bytes", b.Len())
	}
	// Read it as the kernel does: head, name, padding, content, padding.
	var found []string
	for rest := b.Bytes(); ; {
		var size, name int
		if string(rest[:6]) != "070701" {
			t.Fatalf("no head in %q", rest[:6])
		}
		for _, f := range []struct {
			off int
			to  *int
		}{{54, &size}, {94, &name}} {
			if _, err := fmt.Sscanf(string(rest[f.off:f.off+8]), "%08x", f.to); err != nil {
				t.Fatal(err)
			}
		}
		text := string(rest[110 : 110+name-1])
		if text == "TRAILER!!!" {
			break
		}
		begin := (110 + name + 3) &^ 3
		found = append(found, text+"="+string(rest[begin:begin+size]))
		rest = rest[(begin+size+3)&^3:]
	}
	if got := strings.Join(found, " "); got != "dir= dir/file=hello" {
		t.Error(got)
	}
	c = &cpioWriter{w: io.Discard}
	c.file("short", 5, strings.NewReader("hell"))
	if err := c.close(); !errors.Is(err, io.EOF) {
		t.Errorf("a file that is too short: %v", err)
	}
}

func TestFindAndNames(t *testing.T) {
	cache := t.TempDir()
	if _, err := Find(cache, nil); !errors.Is(err, ErrNoImage) {
		t.Errorf("an empty cache: %v", err)
	}
	if _, err := Find(cache, []string{"x; rm -rf /"}); !errors.Is(err, ErrUsage) {
		t.Errorf("a bad package: %v", err)
	}
	a, _ := linkName([]string{"bb", "aa", "bb"})
	b, _ := linkName([]string{"aa", "bb"})
	c, _ := linkName([]string{"aa"})
	if a != b || a == c {
		t.Error(a, b, c)
	}
	dir := filepath.Join(cache, a+"-1")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Symlink(filepath.Base(dir), filepath.Join(cache, a)),
		os.WriteFile(filepath.Join(dir, filePackages), []byte("x=1\ny=2\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	i, err := Find(cache, []string{"aa", "bb"})
	if err != nil || filepath.Base(i.Dir) != filepath.Base(dir) {
		t.Fatal(i, err)
	}
	if p, err := i.Packages(); err != nil || len(p) != 2 {
		t.Error(p, err)
	}
}

func TestOptions(t *testing.T) {
	script := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"too little memory":    {MemoryBytes: 1 << 20},
		"no processors":        {CPUs: -1},
		"a site without a lab": {Site: "east"},
		"a nic without a lab":  {NICs: []NIC{{Site: "east"}}},
		"nine disks":           {Disks: make([]Disk, 9)},
		"a comma":              {Name: "a,b"},
		"no address":           {Lab: &lab.Lab{}, NICs: []NIC{{Site: "east", Reach: []string{"portal"}}}},
	} {
		if _, err := o.withDefaults(); !errors.Is(err, ErrUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Options{Agent: script}).withDefaults(); err == nil || errors.Is(err, ErrUsage) {
		t.Errorf("an agent that is no program: %v", err)
	}
	if err := checkStatic("/bin/sh"); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("an agent with libraries: %v", err)
	}
}

func TestArgs(t *testing.T) {
	o := Options{Image: &Image{"/cache/g"}, Name: "g", Accel: "tcg", CPUs: 2, MemoryBytes: 256 << 20, incoming: &Guest{}, Disks: []Disk{{Source: "/a,b.qcow2", Format: "qcow2"}, {Source: "iscsi://h/t/0"}}}
	taps := []*lab.Tap{{Site: 1, Number: 201}, {Site: 2, Number: 202}}
	got := strings.Join(qemuArgs(o, taps), " ")
	for _, want := range []string{
		"-kernel /cache/g/vmlinux", "-initrd /proc/self/fd/5", "-m 256", "-smp 2", "accel=tcg", "-incoming defer", "-- lab guest agent",
		"format=qcow2,cache=none,discard=unmap,file=/a,,b.qcow2", "drive=disk1,serial=disk1", "initiator-name=iqn.2008-11.org.linux-kvm:g",
		"tap,id=net1,fd=8", "mac=52:54:00:77:02:ca", "readonly=on",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

func TestNetworkScript(t *testing.T) {
	tap := func(site, n int) *lab.Tap {
		return &lab.Tap{Site: site, Number: n, Addr4: netip.AddrFrom4([4]byte{10, 77, byte(site), byte(n)}), Gateway4: netip.AddrFrom4([4]byte{10, 77, byte(site), 1}),
			Addr6: netip.MustParseAddr(fmt.Sprintf("fd77:0:0:%d::%x", site, n)), Gateway6: netip.MustParseAddr("fe80::1")}
	}
	got := networkScript([]NIC{{Site: "a", Reach: []string{"10.77.1.1"}}, {Site: "b", Reach: []string{"fd77:0:0:2::1", "10.9.0.0/16"}}}, []*lab.Tap{tap(1, 201), tap(2, 202)})
	for _, want := range []string{
		"route add 10.77.1.1/32 via 10.77.1.1 dev eth0 onlink src 10.77.1.201", "route add fd77:0:0:2::1/128 via fe80::1 dev eth1 onlink\n",
		"route add 10.9.0.0/16 via 10.77.2.1 dev eth1", "rule add from 10.77.2.202 table 101", "ip -6 rule add from fd77:0:0:2::ca table 101",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if got := networkScript(nil, nil); strings.Contains(got, "virtio_net") {
		t.Error(got)
	}
}

// monitor is a QEMU that answers as told.
func monitor(t *testing.T, answer func(command string, id int) string) (*qmp, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_, _ = io.WriteString(theirs, `{"QMP": {"version": {}}}`+"\n")
		for d := json.NewDecoder(theirs); ; {
			var c struct {
				Execute string `json:"execute"`
				ID      int    `json:"id"`
			}
			if d.Decode(&c) != nil {
				return
			}
			_, _ = io.WriteString(theirs, answer(c.Execute, c.ID))
		}
	}()
	q, err := newQMP(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Close(); q.close() })
	return q, theirs
}

func TestQMP(t *testing.T) {
	q, theirs := monitor(t, func(command string, id int) string {
		switch command {
		case "ask":
			// An event may come before the answer.
			return fmt.Sprintf(`{"event":"STOP","timestamp":{"seconds":5,"microseconds":250000}}`+"\n"+`{"id":%d,"return":{"x":7}}`+"\n", id)
		case "refuse":
			return fmt.Sprintf(`{"id":%d,"error":{"class":"GenericError","desc":"no"}}`+"\n", id)
		case "ignore":
			return ""
		}
		return fmt.Sprintf(`{"id":%d,"return":{}}`+"\n", id)
	})
	var got struct{ X int }
	if err := q.do(t.Context(), "ask", nil, &got); err != nil || got.X != 7 {
		t.Errorf("%+v %v", got, err)
	}
	if e, err := q.waitEvent(t.Context(), "STOP", time.Unix(5, 0)); err != nil || e.At.UnixMilli() != 5250 {
		t.Errorf("%+v %v", e, err)
	}
	if err := q.do(t.Context(), "refuse", nil, nil); err == nil || err.Error() != "qemu: refuse: no" {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := q.do(ctx, "ignore", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	go func() { _ = theirs.Close() }()
	if _, err := q.waitEvent(t.Context(), "STOP", time.Unix(6, 0)); !errors.Is(err, errGone) && !errors.Is(err, io.EOF) {
		t.Errorf("its end: %v", err)
	}
	if err := q.do(t.Context(), "ask", nil, nil); err == nil {
		t.Error("it answers after its end")
	}
}

// TestChannelGoesOn: a frame begins on one connection and ends on the next, as in a migration.
func TestChannelGoesOn(t *testing.T) {
	first, firstQEMU := net.Pipe()
	second, secondQEMU := net.Pipe()
	c := newChannel(first)
	defer c.close()
	if _, err := firstQEMU.Write(agent.AppendFrame(nil, agent.Frame{Kind: agent.KindHello})); err != nil {
		t.Fatal(err)
	}
	<-c.hello
	var out strings.Builder
	asked := make(chan agent.Frame, 1)
	go func() {
		f, _ := agent.ReadFrame(firstQEMU)
		asked <- f
	}()
	id, k, err := c.start(agent.Exec{Args: []string{"x"}}, nil, func(fd int, b []byte, at time.Time) { fmt.Fprintf(&out, "%d:%s ", fd, b) })
	if err != nil {
		t.Fatal(err)
	}
	if f := <-asked; f.Kind != agent.KindExec || f.ID != id {
		t.Errorf("%+v", f)
	}
	c.follow(second)
	bytes := agent.AppendFrame(nil, agent.Frame{Kind: agent.KindStdout, ID: id, Payload: []byte("one")})
	bytes = agent.AppendFrame(bytes, agent.Frame{Kind: agent.KindStderr, ID: id, Payload: []byte("two")})
	cut := len(bytes) - 5
	bytes = agent.AppendFrame(bytes, agent.Frame{Kind: agent.KindExit, ID: id, Payload: []byte(`{"status":3}`)})
	// The second begins before the first is known to have ended.
	go func() { _, _ = secondQEMU.Write(bytes[cut:]) }()
	if _, err := firstQEMU.Write(bytes[:cut]); err != nil {
		t.Fatal(err)
	}
	c.switchOver()
	_ = firstQEMU.Close()
	if e := <-k.exit; e.Status != 3 || out.String() != "1:one 2:two " {
		t.Errorf("%+v %q", e, out.String())
	}
	go func() {
		f, _ := agent.ReadFrame(secondQEMU)
		asked <- f
	}()
	if _, k, err = c.start(agent.Exec{Args: []string{"y"}}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if f := <-asked; f.Kind != agent.KindExec {
		t.Errorf("%+v", f)
	}
	_ = secondQEMU.Close()
	if _, ok := <-k.exit; ok {
		t.Error("a command ended well in a guest that is gone")
	}
	if _, _, err := c.start(agent.Exec{Args: []string{"z"}}, nil, nil); err == nil {
		t.Error("a command began in a guest that is gone")
	}
}

// TestChannelStays: a migration that fails leaves the first connection as it was.
func TestChannelStays(t *testing.T) {
	first, firstQEMU := net.Pipe()
	second, secondQEMU := net.Pipe()
	c := newChannel(first)
	defer c.close()
	c.follow(second)
	_ = secondQEMU.Close()
	c.unfollow()
	if _, err := firstQEMU.Write(agent.AppendFrame(nil, agent.Frame{Kind: agent.KindHello})); err != nil {
		t.Fatal(err)
	}
	<-c.hello
	_ = firstQEMU.Close()
	<-c.done
}

func FuzzQMPMessage(f *testing.F) {
	f.Add([]byte(`{"QMP": {}}`))
	f.Add([]byte(`{"event":"STOP","timestamp":{"seconds":-1,"microseconds":1000000000}}`))
	f.Add([]byte(`{"id":1,"return":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		q := &qmp{conn: ours, done: make(chan struct{}), waiting: map[int]chan qmpMessage{1: make(chan qmpMessage, 1)}, changed: make(chan struct{})}
		go q.read()
		_, _ = theirs.Write(b)
		_ = theirs.Close()
		<-q.done
		if len(q.waiting) > 0 {
			t.Fatal("somebody still waits")
		}
	})
}
