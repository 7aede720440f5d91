package arch

import (
	"bytes"
	"os"
	"os/exec"
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
	files, err := exec.Command("git", "-C", "../..", "ls-files", "-z", "*_test.go").Output()
	if err != nil {
		t.Skip("not a git checkout")
	}
	all := map[string]bool{}
	for name := range strings.SplitSeq(strings.TrimRight(string(files), "\x00"), "\x00") {
		text, err := os.ReadFile("../../" + name)
		if err != nil {
			continue // deleted, and not committed yet
		}
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			all[string(m[1])] = true
			if (strings.HasPrefix(name, "test/e2e/") || strings.HasPrefix(name, "test/robust/")) && !bytes.Contains(doc, []byte("`"+string(m[1])+"`")) {
				t.Errorf("docs/testing.md does not name %s of %s", m[1], name)
			}
		}
	}
	for _, m := range regexp.MustCompile("`(Test\\w+)[`/]").FindAllSubmatch(doc, -1) {
		if !all[string(m[1])] {
			t.Errorf("docs/testing.md names %s, which is not there", m[1])
		}
	}
}
