package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dozo/internal/api"
	"dozo/internal/api/apitest"
	"dozo/internal/api/dozov1"
)

// terminal gives both ends of a pseudo terminal.
func terminal(t *testing.T) (keys, screen *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal("no pseudo terminal can be had here: ", err)
	}
	t.Cleanup(func() { _ = keys.Close() })
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal("no pseudo terminal can be had here: ", err)
	}
	n, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal("no pseudo terminal can be had here: ", err)
	}
	if screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal("no pseudo terminal can be had here: ", err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	return keys, screen
}

// What is shown before the question is for whoever is asked; standard output has the result, and with -o json that alone.
func TestWhatIsAcceptedIsPrintedOnce(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	b := apitest.New()
	if _, err := b.CreateVolume(t.Context(), &dozov1.CreateVolumeRequest{Name: "web1", Tenant: "default", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	srv := api.NewServer(api.Options{Node: "s1n1", Backend: b})
	served := make(chan error)
	go func() { served <- srv.ServeSocket(ln) }()
	defer func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil && err != http.ErrServerClosed {
			t.Error(err)
		}
	}()
	keys, screen := terminal(t)
	if _, err := io.WriteString(keys, "y\n"); err != nil {
		t.Fatal(err)
	}
	var out, said bytes.Buffer
	a := &app{in: screen, out: &out, err: &said, env: func(string) string { return "" }}
	root := newRoot(a)
	root.SetArgs([]string{"session", "accept", "web1", "-o", "json", "--endpoint", "unix://" + socket})
	if err := root.Execute(); err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	var list []map[string]any
	if err := json.Unmarshal(out.Bytes(), &list); err != nil || len(list) != 1 {
		t.Errorf("standard output: %v:\n%s", err, out.String())
	}
	if !strings.Contains(said.String(), "INITIATOR") || !strings.Contains(said.String(), "[y/N]") {
		t.Errorf("said before: %s", said.String())
	}
}
