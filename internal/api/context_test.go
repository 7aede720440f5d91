package api

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestContextIsFoundInOrder(t *testing.T) {
	t.Chdir(t.TempDir())
	home := t.TempDir()
	endpoint := func(s ContextSource) string {
		t.Helper()
		c, err := s.Find()
		if err != nil {
			t.Fatal(err)
		}
		return c.Endpoints[0]
	}
	if _, err := (ContextSource{Home: home}).Find(); !errors.Is(err, ErrNoContext) {
		t.Errorf("nothing there: %v", err)
	}
	write(t, filepath.Join(home, ".config/dozo/config.yaml"), "endpoints: [https://home]\n")
	if got := endpoint(ContextSource{Home: home}); got != "https://home" {
		t.Error(got)
	}
	write(t, "dozo-data/client.yaml", "endpoints: [https://here]\nca_file: ca.crt\ntoken_file: admin.token\n")
	if got := endpoint(ContextSource{Home: home}); got != "https://here" {
		t.Error(got)
	}
	write(t, "env.yaml", "endpoints: [https://env]\n")
	if got := endpoint(ContextSource{Home: home, Env: "env.yaml"}); got != "https://env" {
		t.Error(got)
	}
	write(t, "d/client.yaml", "endpoints: [\"unix:api.sock\"]\n")
	dir, err := filepath.Abs("d")
	if err != nil {
		t.Fatal(err)
	}
	if got := endpoint(ContextSource{Home: home, Env: "env.yaml", Dir: "d"}); got != "unix://"+dir+"/api.sock" {
		t.Error(got)
	}
	if got := endpoint(ContextSource{Dir: "d", Flags: Context{Endpoints: []string{"https://flag"}}}); got != "https://flag" {
		t.Error(got)
	}
	if _, err := (ContextSource{Home: home, Env: "none.yaml"}).Find(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was named and is not there: %v", err)
	}
	c, err := ContextSource{Flags: Context{TokenFile: "mine"}}.Find()
	if err != nil || c.TokenFile != "mine" || filepath.Base(c.CAFile) != "ca.crt" || !filepath.IsAbs(c.CAFile) {
		t.Errorf("%+v, %v", c, err)
	}
	write(t, "dozo-data/client.yaml", "endpoints: [https://here]\ntoken: secret\n")
	if _, err := (ContextSource{}).Find(); err == nil {
		t.Error("an unknown key was taken")
	}
}

func TestEndpoints(t *testing.T) {
	for text, want := range map[string]string{
		"https://127.0.1.1:7070": "tcp 127.0.1.1:7070", "https://node1": "tcp node1:7070", "https://[::1]": "tcp [::1]:7070", "unix:///run/x.sock": "unix /run/x.sock",
		"http://127.0.0.1": "", "127.0.0.1:7070": "", "unix://x": "", "https://": "", "https://a/b": "", "": "",
	} {
		e, err := parseEndpoint(text)
		got := e.network + " " + e.address
		if want == "" && err == nil || want != "" && got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"https://127.0.1.1:7070", "unix:///x", "https://[::1", "http://a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if e, err := parseEndpoint(text); err == nil && (e.address == "" || e.network == "") {
			t.Fatalf("%q: %+v", text, e)
		}
	})
}
