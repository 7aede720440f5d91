package pki

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestCASaveLoad(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(dir); err != nil {
		t.Errorf("saving the same CA again: %v", err)
	}
	if err := newTestCA(t).Save(dir); err == nil {
		t.Error("another CA was saved over it")
	}
	key := filepath.Join(dir, CAKeyFile)
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key file: %v, %v", info.Mode(), err)
	}
	got, err := LoadCA(filepath.Join(dir, CAFile), key)
	if err != nil {
		t.Fatal(err)
	}
	if got.ClusterID() != testCluster || got.Fingerprint() != ca.Fingerprint() {
		t.Error("the CA changed on the way")
	}
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(filepath.Join(dir, CAFile), key); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
	_ = os.Remove(key)
	if _, err := LoadCA(filepath.Join(dir, CAFile), key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no key file: %v", err)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	csr, _, err := NewRequest("x")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		csr []byte
		g   Grant
	}{
		"no request":       {[]byte("x"), Grant{Name: "a", Role: RoleNode, Lifetime: time.Hour}},
		"no name":          {csr, Grant{Role: RoleNode, Lifetime: time.Hour}},
		"name with spaces": {csr, Grant{Name: "a b", Role: RoleNode, Lifetime: time.Hour}},
		"no role":          {csr, Grant{Name: "a", Lifetime: time.Hour}},
		"unknown role":     {csr, Grant{Name: "a", Role: "root", Lifetime: time.Hour}},
		"no lifetime":      {csr, Grant{Name: "a", Role: RoleNode}},
	} {
		if _, err := ca.Issue(c.csr, c.g, now); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	// What the request says of itself counts for nothing.
	chain, err := ca.Issue(csr, Grant{Name: "bob", Role: RoleViewer, Lifetime: time.Hour}, now)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := parseCerts(chain)
	if err != nil || len(certs) != 2 || certs[0].Subject.CommonName != "bob" || certs[0].IsCA || len(certs[0].DNSNames) != 0 {
		t.Errorf("issued %+v, %v", certs[0].Subject, err)
	}
}

func TestKeepFreshRenewsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newTestCA(t)
		id := issueAt(t, ca, "n1", RoleNode, time.Now(), 30*24*time.Hour)
		due := id.RenewAt()
		ctx, cancel := context.WithCancel(t.Context())
		var asked, renewed int
		var renewedAt time.Time
		sign := func(_ context.Context, csr []byte) ([]byte, error) {
			if asked++; asked <= 3 {
				return nil, errors.New("nobody has the CA's key")
			}
			return ca.Issue(csr, Grant{Name: "n1", Role: RoleNode, Lifetime: 30 * 24 * time.Hour}, time.Now())
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			id.KeepFresh(ctx, time.Minute, sign, func(err error) {
				if err == nil {
					renewed++
					renewedAt = time.Now()
				}
			})
		}()
		time.Sleep(22 * 24 * time.Hour)
		synctest.Wait()
		if asked != 4 || renewed != 1 {
			t.Errorf("asked %d times, renewed %d; want 4 and 1", asked, renewed)
		}
		if renewedAt.Before(due) || renewedAt.After(due.Add(2*time.Hour)) {
			t.Errorf("renewed at %v, due at %v", renewedAt, due)
		}
		cancel()
		<-done
	})
}

func TestRevocationListForEtcd(t *testing.T) {
	ca, file := newTestCA(t), filepath.Join(t.TempDir(), "revoked.crl")
	serial := issue(t, ca, "n1", RoleNode).Self().Serial
	if err := WriteCRL(file, []Revocation{{Serial: serial, At: time.Now()}}, time.Now()); err != nil {
		t.Fatal(err)
	}
	der, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil || len(list.RevokedCertificateEntries) != 1 || SerialText(list.RevokedCertificateEntries[0].SerialNumber) != serial {
		t.Errorf("list %+v, %v; want the serial %s", list, err, serial)
	}
	if got, err := ReadCRL(file); err != nil || !slices.Equal(got, []string{serial}) {
		t.Errorf("read back %v, %v; want %s", got, err, serial)
	}
	if err := os.WriteFile(file+".bad", der[:len(der)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadCRL(file + ".bad"); err == nil {
		t.Errorf("half a list was read: %v", got)
	}
	if err := WriteCRL(file, []Revocation{{Serial: "zz"}}, time.Now()); err == nil {
		t.Error("a serial that is no number was written")
	}
	if err := WriteCRL(file, nil, time.Now()); err != nil {
		t.Errorf("empty list: %v", err)
	}
}
