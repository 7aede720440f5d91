package pki

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestJoinToken(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	tok, rec, err := NewJoinToken(ca.Fingerprint(), RoleNode, "n2-1", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseJoinToken(" " + tok.String() + "\n")
	if err != nil || got != tok || got.Hash() != rec.Hash || got.Fingerprint != ca.Fingerprint() {
		t.Errorf("ParseJoinToken = %v, %v", got, err)
	}
	if !rec.Expires.Equal(now.Add(time.Hour)) || strings.Contains(tok.String(), rec.Hash) {
		t.Errorf("record %+v", rec)
	}
	for _, bad := range []string{"", "x", tok.String()[1:], tok.String()[:60], tok.String() + "AAAA"} {
		if _, err := ParseJoinToken(bad); !errors.Is(err, ErrBadToken) {
			t.Errorf("ParseJoinToken(%q) = %v, want ErrBadToken", bad, err)
		}
	}
	if _, _, err := NewJoinToken(ca.Fingerprint(), RoleAdmin, "", now, time.Hour); err == nil {
		t.Error("a join token for an admin")
	}
	if _, _, err := NewJoinToken(ca.Fingerprint(), RoleNode, "", now, 0); err == nil {
		t.Error("a join token without a lifetime")
	}
}

func TestAPIToken(t *testing.T) {
	now := time.Now()
	tok, rec, err := NewAPIToken("bob", RoleOperator, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := HashAPIToken(tok); err != nil || h != rec.Hash {
		t.Errorf("HashAPIToken = %q, %v; want %q", h, err, rec.Hash)
	}
	if !rec.Valid(now) || rec.Valid(now.Add(time.Hour)) {
		t.Error("Valid ignores the expiry")
	}
	if _, forever, _ := NewAPIToken("bob", RoleOperator, now, 0); !forever.Valid(now.Add(1e6 * time.Hour)) {
		t.Error("a token without expiry expired")
	}
	if _, err := HashAPIToken(tok + "A"); !errors.Is(err, ErrBadToken) {
		t.Errorf("a mangled token: %v", err)
	}
	if _, _, err := NewAPIToken("bob", RoleNode, now, 0); err == nil {
		t.Error("an API token for a node")
	}
}

func TestRoles(t *testing.T) {
	for _, c := range []struct {
		has, need Role
		want      bool
	}{
		{RoleAdmin, RoleAdmin, true}, {RoleAdmin, RoleViewer, true}, {RoleOperator, RoleOperator, true},
		{RoleOperator, RoleAdmin, false}, {RoleViewer, RoleOperator, false}, {RoleNode, RoleViewer, false},
		{RoleAdmin, "", false}, {"", "", false},
	} {
		if got := c.has.Allows(c.need); got != c.want {
			t.Errorf("%q allows %q = %v", c.has, c.need, got)
		}
	}
	if _, err := ParseUserRole("node"); err == nil {
		t.Error("node is no user's role")
	}
}

func FuzzTokens(f *testing.F) {
	tok, _, _ := NewJoinToken(Fingerprint{1}, RoleNode, "", time.Now(), time.Hour)
	api, _, _ := NewAPIToken("x", RoleAdmin, time.Now(), 0)
	f.Add(tok.String())
	f.Add(api)
	f.Add("dozo-join-")
	f.Fuzz(func(t *testing.T, text string) {
		if tok, err := ParseJoinToken(text); err == nil && tok.String() != strings.TrimSpace(text) {
			t.Errorf("%q is not canonical", text)
		}
		_, _ = HashAPIToken(text)
	})
}

func FuzzIdentity(f *testing.F) {
	ca, err := NewCA(testCluster, "fuzz", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	own, err := ca.IssueLocal(Grant{Name: "n", Role: RoleNode, Lifetime: time.Hour}, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ca.CertPEM(), own)
	f.Add(own, ca.CertPEM())
	f.Add([]byte{}, []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, caPEM, ownPEM []byte) {
		_, _ = NewIdentity(caPEM, ownPEM)
		_, _ = ParseCA(caPEM, ownPEM)
		_, _ = ca.Issue(ownPEM, Grant{Name: "n", Role: RoleNode, Lifetime: time.Hour}, time.Now())
	})
}
