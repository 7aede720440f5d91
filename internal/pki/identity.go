package pki

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// Identity is a node's (or, for a command-line client, a user's) own certificate with its key, and the CA
// that others are verified against. Handshakes take the certificate that is current when they happen: Install
// and Reload change it without a restart. Safe for concurrent use.
type Identity struct {
	path      string // of the file with chain and key; empty: only in memory
	caCert    *x509.Certificate
	pool      *x509.CertPool
	clusterID string
	current   atomic.Pointer[tls.Certificate]
	// now is the clock of certificate validity; a test may set another before first use.
	now func() time.Time
}

// Load reads the CA's certificate and the node's file.
func Load(caFile, nodeFile string) (*Identity, error) {
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("load certificates: %w", err)
	}
	own, err := readPrivate(nodeFile)
	if err != nil {
		return nil, fmt.Errorf("load certificates: %w", err)
	}
	id, err := NewIdentity(ca, own)
	if err != nil {
		return nil, fmt.Errorf("load certificates: %s: %w", nodeFile, err)
	}
	id.path = nodeFile
	return id, nil
}

// NewIdentity takes the CA's certificate, and chain and key of the holder, without files.
func NewIdentity(caPEM, ownPEM []byte) (*Identity, error) {
	caCert, clusterID, err := parseCACert(caPEM)
	if err != nil {
		return nil, err
	}
	id := &Identity{caCert: caCert, pool: x509.NewCertPool(), clusterID: clusterID, now: time.Now}
	id.pool.AddCert(caCert)
	cert, err := id.parse(ownPEM)
	if err != nil {
		return nil, err
	}
	id.current.Store(cert)
	return id, nil
}

// parse checks that the text is a certificate of this cluster with its key. It may have expired: the node must
// still be able to start and renew it.
func (id *Identity) parse(ownPEM []byte) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(ownPEM, ownPEM)
	if err != nil {
		return nil, err
	}
	leaf := cert.Leaf
	if err := leaf.CheckSignatureFrom(id.caCert); err != nil {
		return nil, fmt.Errorf("certificate of %s: %w: %w", leaf.Subject.CommonName, ErrForeign, err)
	}
	// The chain that is sent always ends with the CA's certificate (see Issue), however the file was made.
	cert.Certificate = [][]byte{leaf.Raw, id.caCert.Raw}
	if _, err := id.peerOf(leaf); err != nil {
		return nil, err
	}
	return &cert, nil
}

// Install takes a renewed chain with its key: it is checked, written to the file, and used from the next
// handshake on. The name and role must stay.
func (id *Identity) Install(ownPEM []byte) error {
	cert, err := id.parse(ownPEM)
	if err != nil {
		return fmt.Errorf("install certificate: %w", err)
	}
	was, is := id.Self(), peerFields(cert.Leaf)
	if was.Name != is.Name || was.Role != is.Role {
		return fmt.Errorf("install certificate: it is of %s (%s), not of %s (%s)", is.Name, is.Role, was.Name, was.Role)
	}
	if id.path != "" {
		if err := WriteFileAtomic(id.path, ownPEM); err != nil {
			return fmt.Errorf("install certificate: %w", err)
		}
	}
	id.current.Store(cert)
	return nil
}

// Reload reads the file again, for a certificate that was put there by hand. On an error the old one stays.
func (id *Identity) Reload() error {
	if id.path == "" {
		return nil
	}
	own, err := readPrivate(id.path)
	if err != nil {
		return fmt.Errorf("reload certificate: %w", err)
	}
	cert, err := id.parse(own)
	if err != nil {
		return fmt.Errorf("reload certificate: %s: %w", id.path, err)
	}
	id.current.Store(cert)
	return nil
}

// ClusterID is the cluster of the CA.
func (id *Identity) ClusterID() string { return id.clusterID }

// CAPEM is the CA's certificate.
func (id *Identity) CAPEM() []byte { return encodeCert(id.caCert.Raw) }

// Fingerprint is that of the CA's certificate.
func (id *Identity) Fingerprint() Fingerprint { return sha256.Sum256(id.caCert.Raw) }

// Self is what the current certificate says of its holder.
func (id *Identity) Self() Peer { return peerFields(id.current.Load().Leaf) }

// RenewAt is when the current certificate should be renewed: after two thirds of its life, which leaves
// months for a control store or CA holder that is away.
func (id *Identity) RenewAt() time.Time {
	leaf := id.current.Load().Leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3 * 2)
}

// KeepFresh renews the certificate when it is due, until ctx ends. sign has the request signed by a holder of
// the CA's key and gives the chain; where it fails it is asked again after retry, for as long as it takes.
// report hears of each outcome (nil: renewed) and may be nil.
func (id *Identity) KeepFresh(ctx context.Context, retry time.Duration, sign func(ctx context.Context, csrPEM []byte) (chainPEM []byte, err error), report func(error)) {
	// A certificate is looked at at least once an hour, so that a clock that was set, or a suspended
	// machine, delays no more than that.
	const look = time.Hour
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		wait := id.RenewAt().Sub(id.now())
		if wait <= 0 {
			err := id.renew(ctx, sign)
			if report != nil {
				report(err)
			}
			wait = id.RenewAt().Sub(id.now())
			if err != nil || wait < retry {
				wait = retry
			}
		}
		timer.Reset(min(wait, look))
	}
}

func (id *Identity) renew(ctx context.Context, sign func(context.Context, []byte) ([]byte, error)) error {
	csr, key, err := NewRequest(id.Self().Name)
	if err != nil {
		return err
	}
	chain, err := sign(ctx, csr)
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	return id.Install(append(append([]byte(nil), chain...), key...))
}

// Peer is what a certificate says of its holder.
type Peer struct {
	Name    string
	Role    Role
	Serial  string
	Expires time.Time
}

func peerFields(c *x509.Certificate) Peer {
	p := Peer{Name: c.Subject.CommonName, Serial: SerialText(c.SerialNumber), Expires: c.NotAfter}
	if len(c.Subject.OrganizationalUnit) == 1 {
		p.Role = Role(c.Subject.OrganizationalUnit[0])
	}
	return p
}

// Why a peer is refused.
var (
	ErrForeign     = errors.New("not signed by this cluster's CA")
	ErrOtherID     = errors.New("certificate of another cluster")
	ErrRole        = errors.New("certificate has the wrong role")
	ErrName        = errors.New("certificate of another node")
	ErrRevoked     = errors.New("certificate was revoked")
	ErrNoPeerCert  = errors.New("peer showed no certificate")
	ErrFingerprint = errors.New("the server's CA is not the one that the token names")
)

// peerOf takes a certificate that the CA signed and checks that it speaks of this cluster.
func (id *Identity) peerOf(c *x509.Certificate) (Peer, error) {
	if len(c.Subject.Organization) != 1 || c.Subject.Organization[0] != id.clusterID {
		return Peer{}, fmt.Errorf("%s: %w", c.Subject.CommonName, ErrOtherID)
	}
	p := peerFields(c)
	if !p.Role.IsNode() && !p.Role.IsUser() {
		return Peer{}, fmt.Errorf("%s: %w: %q is unknown", p.Name, ErrRole, p.Role)
	}
	return p, nil
}
