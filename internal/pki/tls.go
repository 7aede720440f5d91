package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"os"
	"slices"
	"time"
)

// Revoked reports whether the certificate of that serial number (SerialText) counts no more. It is asked in
// every handshake and must not block. nil revokes nothing.
type Revoked func(serial string) bool

// base is common to all: TLS 1.3, and the certificate that is current at the handshake.
func (id *Identity) base(nextProtos []string) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		NextProtos:           nextProtos,
		Time:                 id.now,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.current.Load(), nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.current.Load(), nil },
	}
}

// NodeServer is for listeners that only nodes may reach. Session resumption does not get around the checks:
// crypto/tls calls VerifyConnection for resumed sessions too.
func (id *Identity) NodeServer(revoked Revoked, nextProtos ...string) *tls.Config {
	c := id.base(nextProtos)
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ClientCAs = id.pool
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := id.Check(cs, revoked, RoleNode, RoleWitness)
		return err
	}
	return c
}

// NodeClient is for dialling a node. Where name is not empty the node must be that one.
func (id *Identity) NodeClient(name string, revoked Revoked, nextProtos ...string) *tls.Config {
	c := id.base(nextProtos)
	c.RootCAs = id.pool
	c.ServerName = nodeServerName(id.clusterID)
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		p, err := id.Check(cs, revoked, RoleNode, RoleWitness)
		if err == nil && name != "" && p.Name != name {
			err = fmt.Errorf("dialled %s, answered by %s: %w", name, p.Name, ErrName)
		}
		return err
	}
	return c
}

// APIServer is for the API's listener: a client certificate is optional, as there are tokens, but one that is
// shown must count. Check tells who it is.
func (id *Identity) APIServer(revoked Revoked, nextProtos ...string) *tls.Config {
	c := id.base(nextProtos)
	c.ClientAuth = tls.VerifyClientCertIfGiven
	c.ClientCAs = id.pool
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		_, err := id.Check(cs, revoked)
		return err
	}
	return c
}

// APIClient is for calling the API with the Identity's certificate.
func (id *Identity) APIClient(nextProtos ...string) *tls.Config {
	return id.NodeClient("", nil, nextProtos...)
}

// APIClientWithoutCert is for calling the API with a token: only the CA's certificate is needed.
func APIClientWithoutCert(caPEM []byte, nextProtos ...string) (*tls.Config, error) {
	cert, clusterID, err := parseCACert(caPEM)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: nextProtos, RootCAs: pool, ServerName: nodeServerName(clusterID)}, nil
}

// JoinClient is for a node that has only a token: it talks to a server whose chain holds the CA certificate of
// that fingerprint and a node's certificate signed by it, and to nobody else. Nothing is sent before that is
// checked. caPEM, which may be nil, is called with the CA's certificate once it is.
func JoinClient(fp Fingerprint, caPEM func([]byte), nextProtos ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: nextProtos,
		// There is no pool to verify against before the chain was seen; VerifyConnection does what would
		// have been done, against the fingerprint.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return ErrNoPeerCert
			}
			i := slices.IndexFunc(cs.PeerCertificates, func(c *x509.Certificate) bool {
				sum := sha256.Sum256(c.Raw)
				return subtle.ConstantTimeCompare(sum[:], fp[:]) == 1
			})
			if i < 0 {
				return ErrFingerprint
			}
			ca, clusterID, err := parseCACert(encodeCert(cs.PeerCertificates[i].Raw))
			if err != nil {
				return err
			}
			pool := x509.NewCertPool()
			pool.AddCert(ca)
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: nodeServerName(clusterID)}); err != nil {
				return fmt.Errorf("%w: %w", ErrForeign, err)
			}
			if !peerFields(leaf).Role.IsNode() {
				return fmt.Errorf("%s: %w: want a node", leaf.Subject.CommonName, ErrRole)
			}
			if caPEM != nil {
				caPEM(encodeCert(ca.Raw))
			}
			return nil
		},
	}
}

// Check says who is at the other end of a verified connection, and refuses what is revoked or has none of
// the roles (any, where none is given). Handshakes do it; long-lived connections repeat it when the
// revocations change.
func (id *Identity) Check(cs tls.ConnectionState, revoked Revoked, roles ...Role) (Peer, error) {
	if len(cs.VerifiedChains) == 0 || len(cs.PeerCertificates) == 0 {
		return Peer{}, ErrNoPeerCert
	}
	p, err := id.peerOf(cs.PeerCertificates[0])
	if err != nil {
		return Peer{}, err
	}
	if revoked != nil && revoked(p.Serial) {
		return Peer{}, fmt.Errorf("%s, serial %s: %w", p.Name, p.Serial, ErrRevoked)
	}
	if len(roles) > 0 && !slices.Contains(roles, p.Role) {
		return Peer{}, fmt.Errorf("%s: %w: %s, want one of %v", p.Name, ErrRole, p.Role, roles)
	}
	return p, nil
}

// EtcdFiles are the paths and names that etcd's own TLS code wants. It reads the files at every handshake, so
// that renewal and revocation need no restart.
type EtcdFiles struct {
	CAFile   string
	CertFile string // also the key's
	CRLFile  string
	// ServerName is in every node's certificate and in no user's: as AllowedHostname it keeps users out.
	ServerName string
}

// Etcd writes what etcd needs beside the identity's own file and says where it is. The identity must have
// come from Load. A revocation list that is there stays: until the control store has said which one is newer, a
// certificate that was revoked before a restart must not count again after it.
func (id *Identity) Etcd(caFile, crlFile string) (EtcdFiles, error) {
	if id.path == "" {
		return EtcdFiles{}, fmt.Errorf("certificate files for etcd: the identity of %s is only in memory", id.Self().Name)
	}
	if _, err := ReadCRL(crlFile); err != nil {
		if err := WriteCRL(crlFile, nil, id.now()); err != nil {
			return EtcdFiles{}, err
		}
	}
	return EtcdFiles{CAFile: caFile, CertFile: id.path, CRLFile: crlFile, ServerName: nodeServerName(id.clusterID)}, nil
}

// WriteCRL replaces the list of revoked certificates that the embedded etcd reads. It is signed by a key made
// and thrown away here: etcd looks at the serial numbers only, the content comes from the control store and
// the file is ours, mode 0600.
func WriteCRL(path string, revoked []Revocation, now time.Time) error {
	list := &x509.RevocationList{Number: big.NewInt(now.UnixNano()), ThisUpdate: now, NextUpdate: now.Add(caLifetime)}
	for _, r := range revoked {
		serial, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok {
			return fmt.Errorf("write %s: serial number %q: want hexadecimal digits", path, r.Serial)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: r.At})
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: "dozo local revocation list"}, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return WriteFileAtomic(path, der)
}

// ReadCRL gives the serial numbers on a list that WriteCRL has written, as Peer.Serial has them.
func ReadCRL(path string) (serials []string, err error) {
	der, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for _, e := range list.RevokedCertificateEntries {
		serials = append(serials, SerialText(e.SerialNumber))
	}
	return serials, nil
}
