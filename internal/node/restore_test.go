package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/pki"
)

// A control store that is made anew takes its place only once the other voters have left the former one: if they can not, that one is as
// it was, and not two control stores come up. A voter that was to join another one does so until it has its own.
func TestARestoreTakesItsPlaceLast(t *testing.T) {
	tc := newTestCluster(t)
	ca, err := pki.NewCA(pki.NewClusterID(), "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	at := testNet(61)
	x := tc.configure("n1", at, func(c *config.Config) {
		c.Control = config.Control{Embedded: true,
			InitialCluster: []config.Voter{{Node: "n1", Peer: config.Endpoint{Addr: at, Port: config.PortControlPeer}}},
			Endpoints:      []config.Endpoint{{Addr: at, Port: config.PortControlClient}}}
	})
	own, err := ca.IssueLocal(pki.Grant{Name: "n1", Role: pki.RoleNode, Lifetime: pki.NodeLifetime}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	state := x.cfg.StateDir
	was := filepath.Join(state, controlDir, "VERSION")
	if err := os.MkdirAll(filepath.Dir(was), 0o700); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(state, joinFile)
	for path, text := range map[string][]byte{x.cfg.TLS.NodeFile: own, x.cfg.TLS.CAFile: ca.CertPEM(), was: []byte("former\n"), mark: nil} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	there := func(path string) bool {
		t.Helper()
		_, err := os.Lstat(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return err == nil
	}
	former := func() bool {
		text, err := os.ReadFile(was)
		return err == nil && string(text) == "former\n"
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	o := ControlRestore{Config: x.path, Now: time.Now(), Others: func() error {
		if !former() || !there(mark) || !there(filepath.Join(state, newControlDir)) {
			t.Error("it is in its place before the others have left theirs")
		}
		return control.ErrInUse
	}}
	if _, err := RestoreControl(ctx, o); !errors.Is(err, control.ErrInUse) {
		t.Errorf("restored though others can not join: %v", err)
	}
	if aside, err := finishRestore(state, time.Now()); err != nil || aside != "" || !former() || !there(mark) {
		t.Errorf("a node that starts then: %q, %v; its data are there: %v", aside, err, former())
	}
	asked := 0
	o.Others = func() error { asked++; return nil }
	r, err := RestoreControl(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if asked != 1 || former() || there(mark) || !control.HasVoterData(filepath.Join(state, controlDir)) || !strings.HasPrefix(r.Aside, filepath.Join(state, controlDir)) {
		t.Errorf("%+v, %v", r, err)
	}
	if r.Node != string(ident.NodeName("n1")) || r.Lineage == "" {
		t.Errorf("%+v", r)
	}
}
