package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDiscoverySecrets(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, other, short := write("good", "0123456789ab\nsecond line\n"), write("other", "ba9876543210\r\n"), write("short", "hush\n")
	if in, out, err := (Discovery{}).Secrets(); in != "" || out != "" || err != nil {
		t.Errorf("%q, %q, %v", in, out, err)
	}
	if in, out, err := (Discovery{SecretFile: good, TargetSecretFile: other}).Secrets(); in != "0123456789ab" || out != "ba9876543210" || err != nil {
		t.Errorf("%q, %q, %v", in, out, err)
	}
	for _, d := range []Discovery{{SecretFile: short}, {SecretFile: good, TargetSecretFile: good}, {SecretFile: filepath.Join(dir, "none")}} {
		if _, _, err := d.Secrets(); err == nil {
			t.Errorf("%+v was taken", d)
		} else if strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "0123") {
			t.Errorf("the secret is in the error: %v", err)
		}
	}
}

func TestDiscoveryChecked(t *testing.T) {
	for text, want := range map[string]string{
		"discovery: {user: a}":                               "secret_file",
		"discovery: {target_user: a, target_secret_file: b}": "target_user",
		"isns: {servers: ['0.0.0.0:3205']}":                  "isns.servers[0]",
		"discovery: {user: a, secret_file: b}":               "",
		"isns: {servers: [10.0.0.1, '[fd00::1]:3300']}":      "",
	} {
		c, err := Parse([]byte(small+"\n"+text+"\n"), "/d")
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", text, err, want)
		case want == "" && len(c.ISNS.Servers) == 2 && (c.ISNS.Servers[0].Port != 3205 || c.ISNS.Servers[1].Port != 3300):
			t.Errorf("%v", c.ISNS.Servers)
		}
	}
}
