package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/api"
	"dozo/internal/api/apitest"
	"dozo/internal/api/dozov1"
	"dozo/internal/pki"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dozo": main})
}

// TestScripts runs the scripts of test/cli: the real command line against a server of the API whose backend is
// in memory. Each script has a server of its own; the client's context is in dozo-data, as dozo up writes it.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "../../test/cli",
		Setup: func(env *testscript.Env) error {
			env.Setenv("TZ", "UTC")
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			return startServer(env)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"backend": backendCommand, "target": targetCommand},
	})
}

type backendKey struct{}

func startServer(env *testscript.Env) error {
	now := time.Now()
	dir := filepath.Join(env.WorkDir, "dozo-data")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ca, err := pki.NewCA(pki.NewClusterID(), "test", now)
	if err != nil {
		return err
	}
	own, err := ca.IssueLocal(pki.Grant{Name: "s1n1", Role: pki.RoleNode, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Lifetime: time.Hour}, now)
	if err != nil {
		return err
	}
	id, err := pki.NewIdentity(ca.CertPEM(), own)
	if err != nil {
		return err
	}
	b := apitest.New()
	srv := api.NewServer(api.Options{Node: "s1n1", Backend: b})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// A node that is down comes first: every command must find the one that is not.
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	deadURL := "https://" + dead.Addr().String()
	if err := dead.Close(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln, id.APIServer(nil)) })
	env.Defer(func() { _ = srv.Close(); wg.Wait() })
	env.Values[backendKey{}] = b
	env.Setenv("ENDPOINT", "https://"+ln.Addr().String())
	env.Setenv("DEAD", deadURL)

	ctx := api.Context{Endpoints: []string{deadURL, "https://" + ln.Addr().String()}, CAFile: "ca.crt", TokenFile: "admin.token"}
	text, err := ctx.Marshal()
	if err != nil {
		return err
	}
	files := map[string][]byte{api.ContextFile: text, "ca.crt": ca.CertPEM()}
	for _, role := range []pki.Role{pki.RoleAdmin, pki.RoleOperator, pki.RoleViewer} {
		files[string(role)+".token"] = []byte(b.AddToken(string(role), role, 0, now) + "\n")
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// backendCommand changes the backend under a script: backend lag N, backend down NODE, backend session VOLUME,
// backend secret HOST TEXT (the secret that arrived must be TEXT),
// backend site-down SITE, backend fork VOLUME.
func backendCommand(ts *testscript.TestScript, neg bool, args []string) {
	b, _ := ts.Value(backendKey{}).(*apitest.Backend)
	if neg || len(args) < 2 {
		ts.Fatalf("usage: backend lag|down|session|secret ARG")
	}
	switch args[0] {
	case "lag":
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		b.SetLag(n)
	case "down":
		b.SetNodeState(args[1], "down")
	case "site-down":
		b.SetSiteDown(args[1], true)
	case "fork":
		b.AddFork(args[1])
	case "session":
		b.AddSession(&dozov1.Session{Id: "s1n1-7", Node: "s1n1", Site: "site-1", Volume: args[1], Tenant: "default", InitiatorName: "iqn.1993-08.org.debian:01:abc", Auth: "chap", Peers: []string{"127.0.0.1:5000"}, ReadBytes: 5 << 20})
	case "secret":
		if got := b.ChapSecret("default", args[1]); got != args[2] {
			ts.Fatalf("the secret of %s arrived as %q", args[1], got)
		}
	default:
		ts.Fatalf("backend %s: unknown", args[0])
	}
}

// targetCommand starts an iSCSI target in memory, of 64 MiB, which ends with the script: target NAME sets $NAME to the
// URL of its unit, and $NAME_PORTAL to that of its portal.
func targetCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: target NAME")
	}
	const iqn = "iqn.2026-01.example:memory"
	p := &iscsitest.Provider{Disks: map[string][]*iscsitest.Disk{iqn: {iscsitest.NewDisk("memory", 64<<20, 512)}}}
	portal, err := iscsitest.Start(p, "127.0.0.1:0", slog.New(slog.DiscardHandler), nil)
	ts.Check(err)
	ts.Defer(portal.Close)
	ts.Setenv(args[0], "iscsi://"+portal.Address+"/"+iqn+"/0")
	ts.Setenv(args[0]+"_PORTAL", "iscsi://"+portal.Address)
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitOK}, {fmt.Errorf("x: %w", api.ErrUnreachable), exitUnreachable}, {usageError{os.ErrNotExist}, exitUsage},
		{os.ErrNotExist, exitNotFound}, {notBuilt("serve"), exitFailed}, {exitError{exitUnhealthy}, exitUnhealthy},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d; want %d", c.err, got, c.want)
		}
	}
}

func TestHelpAndReferenceHaveEveryExitCode(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	codes := []int{exitOK, exitFailed, exitUsage, exitNotFound, exitConflict, exitUnreachable, exitUnauthorised, exitTimeout, exitUnhealthy, exitInterrupted}
	for _, c := range exitTable {
		codes = append(codes, c)
	}
	for _, c := range codes {
		if !strings.Contains(string(text), fmt.Sprintf("\n| %d | ", c)) || !strings.Contains(exitHelp, fmt.Sprintf("\n  %-4d ", c)) {
			t.Errorf("exit code %d is not in both", c)
		}
	}
}

func TestReferenceHasEveryCommand(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		if !c.HasSubCommands() {
			if !strings.Contains(string(text), c.Name()) {
				t.Errorf("docs/reference/cli.md has no %s", c.CommandPath())
			}
		}
		for _, s := range c.Commands() {
			walk(s)
		}
	}
	walk(newRoot(&app{out: io.Discard, err: io.Discard, env: func(string) string { return "" }}))
}
