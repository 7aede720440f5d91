package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dozo/internal/guest/records"
)

// host is the other end of a server that runs commands on this machine.
type host struct {
	t    *testing.T
	conn net.Conn
	done chan error
}

func newHost(t *testing.T) *host {
	a, b := net.Pipe()
	h := &host{t, a, make(chan error, 1)}
	go func() { h.done <- NewServer(b, false).Serve() }()
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	if f := h.read(); f.Kind != KindHello {
		t.Fatalf("greeted by %+v", f)
	}
	return h
}

func (h *host) send(k Kind, id uint32, payload []byte) {
	h.t.Helper()
	if _, err := h.conn.Write(AppendFrame(nil, Frame{k, id, payload})); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) exec(id uint32, e Exec) {
	h.t.Helper()
	text, err := json.Marshal(e)
	if err != nil {
		h.t.Fatal(err)
	}
	h.send(KindExec, id, text)
}

func (h *host) read() Frame {
	h.t.Helper()
	f, err := ReadFrame(h.conn)
	if err != nil {
		h.t.Fatal(err)
	}
	return f
}

// finish reads until a command has ended.
func (h *host) finish(id uint32) (out, errs string, e Exit) {
	h.t.Helper()
	for {
		f := h.read()
		if f.ID != id {
			h.t.Fatalf("frame of command %d", f.ID)
		}
		switch f.Kind {
		case KindStdout:
			out += string(f.Payload)
		case KindStderr:
			errs += string(f.Payload)
		case KindExit:
			if err := json.Unmarshal(f.Payload, &e); err != nil {
				h.t.Fatal(err)
			}
			return out, errs, e
		}
	}
}

func TestCommands(t *testing.T) {
	h := newHost(t)
	for i, c := range []struct {
		exec      Exec
		stdin     string
		out, errs string
		exit      Exit
	}{
		{exec: Exec{Args: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}}, out: "out\n", errs: "err\n", exit: Exit{Status: 3}},
		{exec: Exec{Args: []string{"cat"}}, stdin: strings.Repeat("some input ", 20000), out: strings.Repeat("some input ", 20000)},
		{exec: Exec{Args: []string{"sh", "-c", "echo $A; pwd"}, Env: []string{"A=b c"}, Dir: "/"}, out: "b c\n/\n"},
		{exec: Exec{Args: []string{"sh", "-c", "kill -TERM $$"}}, exit: Exit{Status: 128 + 15, Signal: 15}},
		// One that is left behind and holds the output open is not waited for.
		{exec: Exec{Args: []string{"sh", "-c", "sleep 20 & echo left"}}, out: "left\n"},
	} {
		id := uint32(i + 1)
		c.exec.StdinBytes = len(c.stdin)
		h.exec(id, c.exec)
		for rest := []byte(c.stdin); len(rest) > 0; {
			n := min(len(rest), PayloadMax)
			h.send(KindStdin, id, rest[:n])
			rest = rest[n:]
		}
		out, errs, exit := h.finish(id)
		if out != c.out || errs != c.errs || exit != c.exit {
			t.Errorf("%v: %.100q %q %+v", c.exec.Args, out, errs, exit)
		}
	}
	h.exec(100, Exec{Args: []string{"/no/such/program"}})
	if _, _, exit := h.finish(100); exit.Status != 127 || exit.Error == "" {
		t.Errorf("no such program: %+v", exit)
	}
	h.exec(101, Exec{Args: []string{"sh", "-c", "echo ready; sleep 60"}})
	if f := h.read(); string(f.Payload) != "ready\n" {
		t.Errorf("%+v", f)
	}
	h.send(KindSignal, 101, []byte{byte(syscall.SIGKILL)})
	if _, _, exit := h.finish(101); exit.Signal != int(syscall.SIGKILL) {
		t.Errorf("killed: %+v", exit)
	}
	h.send(KindSignal, 101, []byte{byte(syscall.SIGKILL)}) // it has ended already: no mistake
	_ = h.conn.Close()
	if err := <-h.done; err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

func TestWritesRecords(t *testing.T) {
	h := newHost(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 8*records.BlockBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	h.exec(1, Exec{Records: &records.Job{Device: disk, Run: 5, Slots: 8}})
	var acked uint64
	for acked < 20 {
		f := h.read()
		if f.Kind == KindExit {
			// A file system in memory may not know O_DIRECT.
			t.Skipf("records: %s", f.Payload)
		}
		a, err := records.ParseAck(f.Payload)
		if err != nil || a.Number != acked+1 {
			t.Fatalf("%+v %v", a, err)
		}
		acked = a.Number
	}
	// The server may be in the middle of a frame that nobody reads.
	go func() { _, _ = h.conn.Write(AppendFrame(nil, Frame{KindSignal, 1, []byte{9}})) }()
	for {
		f := h.read()
		if f.Kind == KindExit {
			break
		}
		if a, err := records.ParseAck(f.Payload); err == nil {
			acked = a.Number
		}
	}
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := records.Check(f, 8, 5, acked); err != nil || !got.OK() || got.Checked != 8 {
		t.Errorf("%+v %v", got, err)
	}
}

func TestMalformed(t *testing.T) {
	for name, bad := range map[string][]byte{
		"magic":              []byte("nonsense...."),
		"long":               {0x20, 0xd0, 2, 0, 1, 0, 0, 0, 1, 0, 1, 0},
		"kind":               {0x20, 0xd0, 9, 0, 1, 0, 0, 0, 0, 0, 0, 0},
		"exec that is none":  AppendFrame(nil, Frame{KindExec, 1, []byte("{}")}),
		"input for nobody":   AppendFrame(nil, Frame{KindStdin, 1, []byte("x")}),
		"output by the host": AppendFrame(nil, Frame{KindStdout, 1, []byte("x")}),
		"signal of no bytes": AppendFrame(nil, Frame{KindSignal, 1, nil}),
	} {
		h := newHost(t)
		_, _ = h.conn.Write(bad)
		if err := <-h.done; !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInitIsNotForHosts(t *testing.T) {
	if err := Init(nil); err == nil || !strings.Contains(err.Error(), "init of a guest") {
		t.Error(err)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(AppendFrame(nil, Frame{KindHello, 0, nil}))
	f.Add(AppendFrame(AppendFrame(nil, Frame{KindExec, 1, []byte(`{"args":["true"]}`)}), Frame{KindExit, 1, []byte("{}")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		fr, err := ReadFrame(r)
		if err != nil {
			return
		}
		if n := len(b) - r.Len(); !bytes.Equal(AppendFrame(nil, fr), b[:n]) {
			t.Fatalf("%d bytes are another frame when written: %+v", n, fr)
		}
	})
}

func FuzzParseExec(f *testing.F) {
	for _, e := range []Exec{{Args: []string{"true"}}, {Records: &records.Job{Run: 1, Slots: 8}}, {StdinBytes: StdinMax + 1}} {
		text, err := json.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseExec(b)
		if err == nil && (e.StdinBytes > StdinMax || len(e.Args) == 0 && e.Records == nil) {
			t.Fatalf("%+v is fine", e)
		}
	})
}
