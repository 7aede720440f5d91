//go:build e2e

package isns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestOpenISNS registers with Debian's isnsd, as two access servers of one cluster do, and looks with its own client what
// is there. Needs open-isns-server and open-isns-utils.
func TestOpenISNS(t *testing.T) {
	for _, tool := range []string{"isnsd", "isnsadm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	conf := func(name, extra string) string {
		path := filepath.Join(dir, name)
		text := fmt.Sprintf("SourceName = iqn.2005-01.org.open-iscsi:test\nServerAddress = %s\nSecurity = 0\nControlSocket = %s/socket\nPIDFile = %s/pid\nDatabase = %s/db\n%s",
			addr, dir, dir, dir, extra)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	d := exec.Command("isnsd", "-f", "-c", conf("isnsd.conf", "BindAddress = "+addr+"\nDefaultDiscoveryDomain = 1\nESIMinInterval = 1s\nESIMaxInterval = 1s\nESIRetries = 60\n"))
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	d.Stdout, d.Stderr = out, out
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = d.Process.Kill()
		_ = d.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(out.Name())
			t.Logf("isnsd:\n%s", text)
		}
	}()
	admin := conf("isnsadm.conf", "")
	query := func(what ...string) string {
		b, err := exec.Command("isnsadm", append([]string{"-c", admin, "--local", "--query"}, what...)...).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%v: %s", err, b)
		}
		return string(b)
	}
	wait := func(what string, ok func() bool, show func() string) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not so: %s\n%s", what, show())
			}
		}
	}
	var mu sync.Mutex
	targets := []Target{{"iqn.2026-11.dev.dozo:1", "one"}, {"iqn.2026-11.dev.dozo:2", ""}}
	start := func(portal string, group uint16) (change func(), stop func()) {
		events := make(chan struct{}, 1)
		c := New(Config{Server: addr, Entity: "dozo-test", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Portals: []Portal{{Addr: netip.MustParseAddrPort(portal), Group: group}},
			Targets: func() []Target { mu.Lock(); defer mu.Unlock(); return append([]Target(nil), targets...) },
			Changed: func() (<-chan struct{}, func()) { return events, func() {} }})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { c.Run(ctx) })
		return func() { events <- struct{}{} }, func() { cancel(); wg.Wait() }
	}
	wait("isnsd listens", func() bool {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
		}
		return err == nil
	}, func() string { return "" })
	change, stop := start("127.0.0.1:3260", 1)
	_, stop2 := start("127.0.0.2:3260", 2)
	const portal1, portal2 = "Portal IP address = 127.0.0.1", "Portal IP address = 127.0.0.2"
	everything := func() string {
		return query("entity-id=dozo-test")
	}
	has := func(list ...string) func() bool {
		return func() bool {
			text := everything()
			for _, x := range list {
				want := !strings.HasPrefix(x, "!")
				if strings.Contains(text, strings.TrimPrefix(x, "!")) != want {
					return false
				}
			}
			return true
		}
	}
	wait("both portals and both targets", has("dozo:1", "dozo:2", portal1, portal2), everything)
	mu.Lock()
	targets = []Target{{"iqn.2026-11.dev.dozo:2", ""}, {"iqn.2026-11.dev.dozo:3", "three"}}
	mu.Unlock()
	change()
	wait("the change", has("!dozo:1", "dozo:3", "three"), everything)
	stop2()
	wait("the second node's portal is gone", has("!"+portal2, portal1, "dozo:3"), everything)
	stop()
	wait("everything is gone", has("!"+portal1), everything)
}
