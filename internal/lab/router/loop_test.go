package router

import (
	"strings"
	"testing"
)

// TestLoopThatCanNotBegin: whatever is missing (memory, /dev/net/tun, a namespace) is an error, never a panic on the way out.
func TestLoopThatCanNotBegin(t *testing.T) {
	sites := []SiteConfig{{Name: "a"}, {Name: "b"}}
	if l, err := newLoop(Config{Sites: sites, MemoryBytes: 1}); err == nil || l != nil || !strings.Contains(err.Error(), "too little") {
		t.Errorf("with a byte of memory: %v, %v", l, err)
	}
	sites[0].NetNS = "/nowhere"
	if l, err := newLoop(Config{Sites: sites, MemoryBytes: 1 << 20}); err == nil || l != nil {
		t.Errorf("in a namespace that is not there: %v, %v", l, err)
	}
}
