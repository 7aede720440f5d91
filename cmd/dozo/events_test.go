package main

import (
	"strings"
	"testing"
)

func TestChanges(t *testing.T) {
	for _, c := range []struct{ before, after, want string }{
		{``, `{"a":1}`, ""}, // made
		{`{"a":1}`, ``, ""}, // gone
		{`{"a":1,"b":"x"}`, `{"a":2,"b":"x"}`, "a 1 to 2"},
		{`{"a":1,"b":"x"}`, `{"b":"y","c":true}`, "a 1 to none, b x to y, c none to true"},
		{`{"a":1}`, `{"a":1}`, ""},
		{`null`, `{"a":1}`, ""},
		{`[1]`, `[2]`, ""},
	} {
		if got := changes(c.before, c.after); got != c.want {
			t.Errorf("%s to %s: %q, want %q", c.before, c.after, got, c.want)
		}
	}
	if got := changes(`{"a":"`+strings.Repeat("é", 100)+`"}`, `{"a":1}`); len(got) > changeMax+20 || !strings.HasSuffix(got, "... to 1") || strings.ToValidUTF8(got, "?") != got {
		t.Errorf("a long value: %q", got)
	}
}
