package initiator

import (
	"strings"
	"testing"
)

// FuzzParseURL: a secret is in nothing that is printed of a URL, and what is printed without one is the same unit.
func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"iscsi://127.0.1.1/iqn.2026-01.example:vol1/0", "iscsi://user%secret@host:3261/iqn.x/17", "iscsi://[fd00::1]:3260/eui.02004567A425678D",
		"iscsi://u:p%40@h/iqn.a%3Ab/0?x=y", "iscsi://host", "iscsi://@/x/-1", "iscsi://h/%zz/0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseURL(text)
		if err != nil {
			rest, _ := strings.CutPrefix(text, "iscsi://")
			if cred, _, ok := strings.Cut(rest, "@"); ok {
				if _, secret, ok := strings.Cut(cred, "%"); ok && len(secret) > 11 && !strings.Contains(rest[len(cred):], secret) && strings.Contains(err.Error(), secret) {
					t.Errorf("%q: the error says the secret: %v", text, err)
				}
			}
			return
		}
		if u.Portal == "" || u.LUN < 0 {
			t.Fatalf("%q is %+v", text, u)
		}
		if u.Secret != "" && len(u.Secret) > 11 && !strings.Contains(u.User+u.Portal+u.Target, u.Secret) && strings.Contains(u.String(), u.Secret) {
			t.Errorf("%q is printed with its secret: %s", text, u)
		}
	})
}
