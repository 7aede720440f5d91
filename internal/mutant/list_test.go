package mutant

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every clause has a scenario that is there, and stands in the documentation. That the scenarios fail without their
// clauses is what `make mutants` shows.
func TestEveryMutantHasAScenario(t *testing.T) {
	doc, err := os.ReadFile("../../docs/internals/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	source := map[string]string{}
	seen := map[string]bool{}
	for _, m := range All() {
		if m.Name == "" || m.Clause == "" || seen[m.Name] {
			t.Fatalf("mutant %d: %q, %q", m.ID, m.Name, m.Clause)
		}
		seen[m.Name] = true
		if !strings.Contains(string(doc), "| "+m.Name+" |") {
			t.Errorf("%s is not in the table of docs/internals/rules.md", m.Name)
		}
		for _, s := range m.Scenarios {
			if _, ok := source[s.Package]; !ok {
				source[s.Package] = tests(t, s.Package)
			}
			top, _, _ := strings.Cut(s.Test, "/")
			if !strings.Contains(source[s.Package], "\nfunc "+top+"(t *testing.T)") {
				t.Errorf("%s: there is no %s in %s", m.Name, top, s.Package)
			}
			if !strings.Contains(string(doc), top) {
				t.Errorf("%s: %s is not in the table of docs/internals/rules.md", m.Name, top)
			}
		}
	}
}

// tests gives the text of a package's tests.
func tests(t *testing.T, pkg string) string {
	files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(pkg), "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v", pkg, err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}
