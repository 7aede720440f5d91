//go:build e2e

package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// get asks a node's unix socket by HTTP.
func (s *system) get(node, path string) (int, string) {
	s.t.Helper()
	c := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.dir, "nodes", node, "api.sock"))
		},
	}}
	r, err := c.Get("http://node" + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

// TestMetricsAreDocumented compares what a node serves with docs/reference/metrics.md, both ways.
func TestMetricsAreDocumented(t *testing.T) {
	s := start(t, 1, 2)
	s.create("v", "64M")
	page, err := os.ReadFile("../../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(dozo_[a-z_0-9]+)`").FindAllStringSubmatch(string(page), -1) {
		documented[m[1]] = true
	}
	// Those of an owner are there once it owns.
	until(t, "what is served and what docs/reference/metrics.md has are the same", 20*time.Second, func() (bool, string) {
		served := map[string]bool{}
		for _, node := range []string{"s1n1", "s1n2"} {
			code, text := s.get(node, "/metrics")
			if code != http.StatusOK {
				t.Fatalf("%s: /metrics answers %d: %.300s", node, code, text)
			}
			for line := range strings.Lines(text) {
				if name, ok := strings.CutPrefix(line, "# TYPE dozo_"); ok {
					served["dozo_"+strings.Fields(name)[0]] = true
				}
			}
		}
		why := ""
		for m := range served {
			if !documented[m] {
				why += "\nserved, and not on the page: " + m
			}
		}
		for m := range documented {
			if !served[m] {
				why += "\non the page, and not served: " + m
			}
		}
		return why == "", why
	})
	until(t, "/healthz says that all is well", 10*time.Second, func() (bool, string) {
		code, text := s.get("s1n1", "/healthz")
		return code == http.StatusOK, text
	})
}
