//go:build mutants

package mutant

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestScenariosFail runs each clause's scenarios twice: as the program is, where they pass, and with the clause left out,
// where they fail. So nobody writes a scenario that can not fail.
func TestScenariosFail(t *testing.T) {
	dir := t.TempDir()
	bins := map[string]string{}
	sound := map[Scenario]bool{}
	only := os.Getenv("MUTANTS") // names, comma separated; all if empty
	for _, m := range All() {
		if only != "" && only != "all" && !strings.Contains(","+only+",", ","+m.Name+",") {
			continue
		}
		for _, s := range m.Scenarios {
			if bins[s.Package] == "" {
				bin := filepath.Join(dir, strings.ReplaceAll(s.Package, "/", "_")+".test")
				if out, err := exec.Command("go", "test", "-tags", "mutants", "-c", "-o", bin, "dozo/internal/"+s.Package).CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				bins[s.Package] = bin
			}
			if !sound[s] {
				sound[s] = true
				if out, err := run(bins[s.Package], s, ""); err != nil || !strings.Contains(out, "--- PASS: ") {
					t.Errorf("%s of %s, nothing left out: %v\n%s", s.Test, s.Package, err, out)
				}
			}
			out, err := run(bins[s.Package], s, m.Name)
			if err == nil || !strings.Contains(out, "--- FAIL: ") {
				t.Errorf("%s passes in %s without what it stands for: %s", s.Test, s.Package, m.Clause)
			} else {
				t.Logf("%-18s %s", m.Name, firstFailure(out))
			}
		}
	}
}

// run runs one test of a package, with a clause left out if mutant names one.
func run(bin string, s Scenario, mutant string) (string, error) {
	var parts []string
	for part := range strings.SplitSeq(s.Test, "/") {
		parts = append(parts, "^"+part+"$")
	}
	cmd := exec.Command(bin, "-test.v", "-test.timeout", "2m", "-test.run", strings.Join(parts, "/"))
	cmd.Dir = filepath.Join("..", filepath.FromSlash(s.Package))
	cmd.Env = append(os.Environ(), "DOZO_MUTANT="+mutant)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// firstFailure is the line of a test's output that says what is wrong.
func firstFailure(out string) string {
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); strings.Contains(line, "_test.go:") || strings.HasPrefix(line, "panic:") {
			return line
		}
	}
	return "--- FAIL"
}
