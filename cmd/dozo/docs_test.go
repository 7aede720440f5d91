package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// inDocs finds a command in a line of text: what is in backticks, and indented lines.
var inDocs = regexp.MustCompile("`((?:\\./)?dozo [a-z][^`]*)`|^ {4}(?:\\$ )?((?:[A-Z_]+=\\S* )?(?:\\./|sudo )?dozo [a-z].*)$")

// TestDocsNameCommandsThatThereAre: every command line in the documentation is one of a command that there is, with flags that it has.
func TestDocsNameCommandsThatThereAre(t *testing.T) {
	root := newRoot(&app{out: io.Discard, err: io.Discard, env: func(string) string { return "" }})
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	lines := 0
	check := func(path string, number int, text string) {
		text, _, _ = strings.Cut(text, " #")
		text = text[strings.Index(text, "dozo ")+len("dozo "):]
		for _, end := range []string{"|", ";", "&&", ">", "2>", ")"} {
			if i := strings.Index(text, " "+end); i >= 0 {
				text = text[:i]
			}
		}
		words := strings.Fields(strings.NewReplacer("[", " ", "]", " ", "…", "", "...", "", "\\", "", ",", "").Replace(text))
		c, _, err := root.Find(words)
		if err != nil {
			t.Errorf("%s:%d: %q: %v", path, number, text, err)
			return
		}
		lines++
		c.InitDefaultHelpFlag()
		for _, w := range words {
			if w == "--" {
				break
			}
			name, ok := strings.CutPrefix(w, "--")
			if name, _, _ = strings.Cut(name, "="); !ok || name == "" {
				continue
			}
			name = strings.TrimRight(name, ").:;'\"")
			if c.Flags().Lookup(name) == nil && c.InheritedFlags().Lookup(name) == nil {
				t.Errorf("%s:%d: %s has no flag --%s", path, number, c.CommandPath(), name)
			}
		}
	}
	file := func(path string) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(b), "\n") {
			for _, m := range inDocs.FindAllStringSubmatch(line, -1) {
				check(path, i+1, m[1]+m[2])
			}
		}
	}
	file("../../README.md")
	if err := filepath.WalkDir("../../docs", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
			file(path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if lines < 100 {
		t.Errorf("only %d command lines were found", lines)
	}
}
