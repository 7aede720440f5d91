package up

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dozo/internal/config"
	"dozo/internal/pki"
)

// prepared makes the directory of a system of two sites of two nodes of which nothing has run yet.
func prepared(t *testing.T) (dir string, plan []Process) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	two, netN := 2, 17
	_, plan, _, err := prepare(dir, Wish{Sites: &two, Nodes: &two, Net: &netN}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return dir, plan
}

// takeOut does to the files what a voter does when it hears that a node was removed.
func takeOut(t *testing.T, dir, node, heardBy string) {
	t.Helper()
	nd := nodeDir(dir, "x")
	at := func(node, file string) string { return filepath.Join(filepath.Dir(nd), node, file) }
	id, err := pki.Load(at(node, pki.CAFile), at(node, pki.NodeFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteCRL(at(heardBy, pki.CRLFile), []pki.Revocation{{Serial: id.Self().Serial, At: time.Now()}}, time.Now()); err != nil {
		t.Fatal(err)
	}
}

func TestControlVoters(t *testing.T) {
	dir, _ := prepared(t)
	is := func(what string, want ...string) {
		t.Helper()
		files, err := ControlVoters(dir)
		var got []string
		for _, f := range files {
			got = append(got, filepath.Base(filepath.Dir(f)))
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: voters %v, %v; want %v", what, got, err, want)
		}
	}
	is("at first", "s1n1", "s2n1", "witness")

	// The one that was removed has not heard of it, and another has its vote.
	takeOut(t, dir, "s1n1", "s2n1")
	if err := os.WriteFile(filepath.Join(dir, nodesDir, "s1n2", config.VoterFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	is("the vote was passed on", "s1n2", "s2n1", "witness")

	// What was appointed is removed itself.
	takeOut(t, dir, "s1n2", "witness")
	is("and removed", "s2n1", "witness")

	// A voter that starts does not forget who was removed before it has heard anything.
	s2n1 := filepath.Join(dir, nodesDir, "s2n1")
	id, err := pki.Load(filepath.Join(s2n1, pki.CAFile), filepath.Join(s2n1, pki.NodeFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Etcd(filepath.Join(s2n1, pki.CAFile), filepath.Join(s2n1, pki.CRLFile)); err != nil {
		t.Fatal(err)
	}
	is("a voter has started again", "s2n1", "witness")

	// A list that can not be read is no reason to bring a removed voter back.
	if err := os.WriteFile(filepath.Join(s2n1, pki.CRLFile), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ControlVoters(dir); err == nil {
		t.Errorf("voters %v though a list can not be read", got)
	}
}

func TestControlVotersMustBeStopped(t *testing.T) {
	dir, _ := prepared(t)
	self, err := newInstance(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	run := func(node string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, nodesDir, node, pidFile), []byte(self.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run("s1n2")
	if got, err := ControlVoters(dir); err != nil || len(got) != 3 {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, nodesDir, "s1n2", config.VoterFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ControlVoters(dir); !errors.Is(err, ErrVoterRuns) || !strings.Contains(err.Error(), "s1n2") {
		t.Errorf("an appointed voter runs: %v", err)
	}
}

// TestNodesThatWereTakenOutAreNotStarted: they would never become ready, and everything be stopped again for that.
func TestNodesThatWereTakenOutAreNotStarted(t *testing.T) {
	o, out := options(t, 9)
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.stop(s.all()); err != nil {
		t.Fatal(err)
	}
	s.Release()
	takeOut(t, o.Dir, "s1n1", "witness")
	if s, err = Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	defer s.Release()
	if got := s.names(); len(got) != 2 || strings.Contains(strings.Join(got, " "), "s1n1") || !strings.Contains(out.String(), "s1n1 was taken out") {
		t.Errorf("running: %v\n%s", got, out)
	}
}
