package access

import (
	"flag"
	"os"
	"testing"
)

// TestMain lets more tests run at a time than there are processors: the long ones wait for timers, not for a processor.
func TestMain(m *testing.M) {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		if err := flag.Set("test.parallel", "8"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
