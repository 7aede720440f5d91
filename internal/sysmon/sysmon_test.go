package sysmon

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestWith(t *testing.T) {
	for _, c := range []struct {
		name      string
		env, want []string
		done      bool
	}{
		{"nothing set", []string{"A=1"}, []string{"A=1", "GODEBUG=" + setting}, false},
		{"empty", []string{"GODEBUG=", "A=1"}, []string{"A=1", "GODEBUG=" + setting}, false},
		{"others are kept", []string{"GODEBUG=gctrace=1", "A=1"}, []string{"A=1", "GODEBUG=gctrace=1," + setting}, false},
		{"chosen by the user", []string{"GODEBUG=gctrace=1,schedtrace=0"}, []string{"GODEBUG=gctrace=1,schedtrace=0"}, true},
		{"its own", []string{"GODEBUG=" + setting}, []string{"GODEBUG=" + setting}, true},
	} {
		if env, done := with(c.env); done != c.done || !slices.Equal(env, c.want) {
			t.Errorf("%s: %q, %v", c.name, env, done)
		}
	}
}

// TestKeepAwake: the program starts anew once, as the same process, with its arguments.
func TestKeepAwake(t *testing.T) {
	if len(os.Args) > 2 && os.Args[len(os.Args)-1] == "again" {
		if err := KeepAwake(); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(os.Getenv("GODEBUG"), setting) {
			t.Fatalf("GODEBUG is %q", os.Getenv("GODEBUG"))
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKeepAwake$", "-test.v", "again")
	cmd.Env = append(os.Environ(), "GODEBUG=")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS: TestKeepAwake") {
		t.Fatalf("%v\n%s", err, out)
	}
}
