package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// How long certificates hold. The CA outlives the cluster's hardware; a node's certificate is renewed long
// before its end (RenewAt), and a leaked one is revoked.
const (
	caLifetime   = 30 * 365 * 24 * time.Hour
	NodeLifetime = 365 * 24 * time.Hour
	UserLifetime = 365 * 24 * time.Hour
)

// clockSkew is how far the clocks of two hosts may be apart when a fresh certificate is first used.
const clockSkew = time.Hour

// File names within a state directory.
const (
	CAFile    = "ca.crt"
	CAKeyFile = "ca.key"
	NodeFile  = "node.pem" // certificate chain and key
	CRLFile   = "revoked.crl"
)

// CA signs. Only the nodes that hold its key file can make one; everybody else knows its certificate.
type CA struct {
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
	clusterID string
}

var clusterIDForm = regexp.MustCompile(`^[0-9a-f]{32}$`)

// nameForm is what may stand in a certificate's subject as a node's or user's name.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._@-]{0,61}[A-Za-z0-9])?$`)

// NewClusterID makes a random cluster ID.
func NewClusterID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// NewCA makes a CA for a cluster. ECDSA P-256: its signatures are quick in Go (assembly) and every TLS stack,
// hardware token and browser takes it, which does not hold for Ed25519.
func NewCA(clusterID, clusterName string, now time.Time) (*CA, error) {
	if !clusterIDForm.MatchString(clusterID) {
		return nil, fmt.Errorf("cluster ID %q: want 32 hexadecimal digits", clusterID)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "dozo CA " + clusterName, Organization: []string{clusterID}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLifetime),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	return &CA{cert: cert, key: key, clusterID: clusterID}, nil
}

// ParseCA takes what CertPEM and KeyPEM give.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, id, err := parseCACert(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("CA: the key is not that of the certificate")
	}
	return &CA{cert: cert, key: key, clusterID: id}, nil
}

func parseCACert(certPEM []byte) (*x509.Certificate, string, error) {
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil, "", fmt.Errorf("CA: %w", err)
	}
	c := certs[0]
	if !c.IsCA || len(c.Subject.Organization) != 1 || !clusterIDForm.MatchString(c.Subject.Organization[0]) {
		return nil, "", errors.New("CA: the certificate is not of a dozo cluster's CA")
	}
	return c, c.Subject.Organization[0], nil
}

// LoadCA reads certificate and key from two files.
func LoadCA(certFile, keyFile string) (*CA, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	key, err := readPrivate(keyFile)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	return ParseCA(cert, key)
}

// Save writes ca.key and then ca.crt to dir: a CA whose certificate is there is complete. It does not replace
// another CA.
func (ca *CA) Save(dir string) error {
	certFile := filepath.Join(dir, CAFile)
	if old, err := os.ReadFile(certFile); err == nil {
		if string(old) == string(ca.CertPEM()) {
			return nil
		}
		return fmt.Errorf("save CA: %s is there already", certFile)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	if err := WriteFileAtomic(filepath.Join(dir, CAKeyFile), key); err != nil {
		return err
	}
	return WriteFileAtomic(certFile, ca.CertPEM())
}

// CertPEM is the CA's certificate, which everybody may know.
func (ca *CA) CertPEM() []byte { return encodeCert(ca.cert.Raw) }

// KeyPEM is the CA's private key.
func (ca *CA) KeyPEM() ([]byte, error) { return encodeKey(ca.key) }

// ClusterID is the cluster whose CA this is.
func (ca *CA) ClusterID() string { return ca.clusterID }

// Fingerprint is that of the CA's certificate, for join tokens.
func (ca *CA) Fingerprint() Fingerprint { return sha256.Sum256(ca.cert.Raw) }

// Grant is what a certificate shall say. The issuer decides it; nothing of it is taken from the request.
type Grant struct {
	Name     string // of the node or user
	Role     Role
	IPs      []netip.Addr // of a node: where it is reached
	Lifetime time.Duration
}

// nodeServerName is a name that every node's certificate of a cluster has and no user's: dialers verify it, so
// that an address may change without a new certificate, and etcd admits by it.
func nodeServerName(clusterID string) string { return "node." + clusterID + ".dozo" }

// Issue makes a certificate for the public key of a request (PEM, as NewRequest makes it), after checking
// that the requester has the private key. The answer is the chain: leaf, then the CA's certificate, so that a
// joining node finds there what its token's fingerprint names.
func (ca *CA) Issue(csrPEM []byte, g Grant, now time.Time) (chainPEM []byte, err error) {
	b, _ := pem.Decode(csrPEM)
	if b == nil || b.Type != pemCSR {
		return nil, errors.New("issue certificate: no certificate request in PEM text")
	}
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("issue certificate: request: %w", err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("issue certificate: request: want an ECDSA P-256 key")
	}
	if !nameForm.MatchString(g.Name) {
		return nil, fmt.Errorf("issue certificate: name %q: want letters, digits, and . _ @ - between them, 63 at most", g.Name)
	}
	if g.Lifetime <= 0 {
		return nil, fmt.Errorf("issue certificate: lifetime %v: want a positive time", g.Lifetime)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: g.Name, Organization: []string{ca.clusterID}, OrganizationalUnit: []string{string(g.Role)}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(g.Lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	switch {
	case g.Role.IsNode():
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		tmpl.DNSNames = []string{nodeServerName(ca.clusterID)}
		if isDNSName(g.Name) {
			tmpl.DNSNames = append(tmpl.DNSNames, g.Name)
		}
		for _, ip := range g.IPs {
			if !ip.IsValid() || ip.IsUnspecified() {
				return nil, fmt.Errorf("issue certificate for %s: address %v: want one that can be dialled", g.Name, ip)
			}
			tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.Unmap().WithZone("").AsSlice()))
		}
	case g.Role.IsUser():
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	default:
		return nil, fmt.Errorf("issue certificate for %s: role %q is unknown", g.Name, g.Role)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", g.Name, err)
	}
	return append(encodeCert(der), ca.CertPEM()...), nil
}

// IssueLocal makes key and certificate at once, where the CA and the holder are one machine. The result is
// what a node's file holds.
func (ca *CA) IssueLocal(g Grant, now time.Time) (pemText []byte, err error) {
	csr, key, err := NewRequest(g.Name)
	if err != nil {
		return nil, err
	}
	chain, err := ca.Issue(csr, g, now)
	if err != nil {
		return nil, err
	}
	return append(chain, key...), nil
}

// NewRequest makes a private key and the request for a certificate of it. Name is only for the reader of the
// request: the issuer decides what the certificate says.
func NewRequest(name string) (csrPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCSR, Bytes: der}), keyPEM, nil
}

// SerialText is the form in which serial numbers are recorded and shown.
func SerialText(serial *big.Int) string { return fmt.Sprintf("%032x", serial) }

// newSerial is 127 random bits: RFC 5280 4.1.2.2 wants a positive number of at most 20 octets.
func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] &= 0x7f
	b[15] |= 1
	return new(big.Int).SetBytes(b[:])
}

var dnsLabels = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)

func isDNSName(name string) bool { return dnsLabels.MatchString(name) }
