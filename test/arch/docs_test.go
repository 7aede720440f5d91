package arch

import (
	"bytes"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// testFunc is the head of a test function.
var testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)

// TestEndToEndTestsAreDocumented: the tables of docs/testing.md name the end-to-end tests that there are, and no others.
func TestEndToEndTestsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	root := os.DirFS("../..")
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (name == ".git" || name == "dozo-data" || name == "bin") {
			return fs.SkipDir // not sources, and changing meanwhile
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			all[string(m[1])] = true
			if (strings.HasPrefix(name, "test/e2e/") || strings.HasPrefix(name, "test/robust/")) && !bytes.Contains(doc, []byte("`"+string(m[1])+"`")) {
				t.Errorf("docs/testing.md does not name %s of %s", m[1], name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`(Test\\w+)[`/]").FindAllSubmatch(doc, -1) {
		if !all[string(m[1])] {
			t.Errorf("docs/testing.md names %s, which is not there", m[1])
		}
	}
}
