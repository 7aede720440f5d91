package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Role is what a certificate or token entitles to.
type Role string

// RoleNode and RoleWitness are of nodes, the others of API users: an admin may do everything, an operator
// everything but change who may do what, a viewer only look.
const (
	RoleNode     Role = "node"
	RoleWitness  Role = "witness"
	RoleAdmin    Role = "admin"
	RoleOperator Role = "operator"
	RoleViewer   Role = "viewer"
)

// IsNode reports whether r is the role of a node.
func (r Role) IsNode() bool { return r == RoleNode || r == RoleWitness }

// IsUser reports whether r is the role of an API user.
func (r Role) IsUser() bool { return r == RoleAdmin || r == RoleOperator || r == RoleViewer }

// Allows reports whether somebody with role r may do what needs role need.
func (r Role) Allows(need Role) bool {
	rank := map[Role]int{RoleViewer: 1, RoleOperator: 2, RoleAdmin: 3}
	return rank[need] > 0 && rank[r] >= rank[need]
}

// ParseUserRole takes admin, operator or viewer.
func ParseUserRole(text string) (Role, error) {
	if r := Role(text); r.IsUser() {
		return r, nil
	}
	return "", fmt.Errorf("role %q: want admin, operator or viewer", text)
}

// Revocation is a certificate that counts no more.
type Revocation struct {
	Serial  string    `json:"serial"` // hexadecimal, as SerialText gives it
	Subject string    `json:"subject"`
	Reason  string    `json:"reason,omitempty"`
	By      string    `json:"by,omitempty"`
	At      time.Time `json:"at"`
	Expires time.Time `json:"expires"` // of the certificate: the entry may go afterwards
}

// JoinTokenRecord is what is kept of a join token.
type JoinTokenRecord struct {
	Hash    string    `json:"hash"`
	Node    string    `json:"node,omitempty"` // the only name it may be used for; empty: any new one
	Role    Role      `json:"role"`           // node or witness
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	By      string    `json:"by,omitempty"`
}

// APITokenRecord is what is kept of an API token.
type APITokenRecord struct {
	Name    string    `json:"name"` // of the user, unique; also the actor in the audit log
	Hash    string    `json:"hash"`
	Role    Role      `json:"role"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	By      string    `json:"by,omitempty"`
}

// Valid reports whether the token may be used at now.
func (r APITokenRecord) Valid(now time.Time) bool { return r.Expires.IsZero() || now.Before(r.Expires) }

// Prefixes tell the two kinds of token apart, for people and for secret scanners.
const (
	joinPrefix = "dozo-join-"
	apiPrefix  = "dozo-api-"
)

// secretLen is 256 bits: enough that a plain hash of the secret is safe to store.
const secretLen = 32

// ErrBadToken is text that is no token of the kind asked for.
var ErrBadToken = errors.New("not a valid token")

// JoinToken lets one new node join: Secret proves to the cluster that it may, Fingerprint lets it verify the
// cluster before it sends anything.
type JoinToken struct {
	Secret      [secretLen]byte
	Fingerprint Fingerprint // of the CA's certificate
}

// String is the text that the operator carries to the new node. It is a secret.
func (t JoinToken) String() string {
	return joinPrefix + base64.RawURLEncoding.EncodeToString(append(t.Secret[:], t.Fingerprint[:]...))
}

// Hash is what is stored and looked up.
func (t JoinToken) Hash() string { return hashSecret("join", t.Secret[:]) }

// NewJoinToken makes a token and its record.
func NewJoinToken(ca Fingerprint, role Role, node string, now time.Time, ttl time.Duration) (JoinToken, JoinTokenRecord, error) {
	if !role.IsNode() {
		return JoinToken{}, JoinTokenRecord{}, fmt.Errorf("join token of role %q: want node or witness", role)
	}
	if ttl <= 0 {
		return JoinToken{}, JoinTokenRecord{}, fmt.Errorf("join token valid for %v: want a positive time", ttl)
	}
	t := JoinToken{Fingerprint: ca}
	_, _ = rand.Read(t.Secret[:])
	return t, JoinTokenRecord{Hash: t.Hash(), Node: node, Role: role, Created: now.UTC(), Expires: now.Add(ttl).UTC()}, nil
}

// ParseJoinToken takes what JoinToken.String gives.
func ParseJoinToken(text string) (JoinToken, error) {
	var t JoinToken
	body, ok := strings.CutPrefix(strings.TrimSpace(text), joinPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if !ok || err != nil || len(raw) != len(t.Secret)+len(t.Fingerprint) {
		return t, fmt.Errorf("join token: %w: it begins with %s and is copied whole", ErrBadToken, joinPrefix)
	}
	copy(t.Secret[:], raw)
	copy(t.Fingerprint[:], raw[len(t.Secret):])
	return t, nil
}

// NewAPIToken makes a bearer token and its record. A ttl of 0 is for ever.
func NewAPIToken(name string, role Role, now time.Time, ttl time.Duration) (token string, rec APITokenRecord, err error) {
	if name == "" || !role.IsUser() {
		return "", rec, fmt.Errorf("API token for %q with role %q: want a name, and admin, operator or viewer", name, role)
	}
	var secret [secretLen]byte
	_, _ = rand.Read(secret[:])
	rec = APITokenRecord{Name: name, Hash: hashSecret("api", secret[:]), Role: role, Created: now.UTC()}
	if ttl > 0 {
		rec.Expires = now.Add(ttl).UTC()
	}
	return apiPrefix + base64.RawURLEncoding.EncodeToString(secret[:]), rec, nil
}

// HashAPIToken gives the hash under which a token's record is found. Looking up by the hash of 256 random
// bits tells nothing by its timing.
func HashAPIToken(token string) (string, error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(token), apiPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if !ok || err != nil || len(raw) != secretLen {
		return "", fmt.Errorf("API token: %w", ErrBadToken)
	}
	return hashSecret("api", raw), nil
}

// hashSecret keeps the two kinds of token apart, so that neither can be used as the other.
func hashSecret(kind string, secret []byte) string {
	sum := sha256.Sum256(append([]byte("dozo "+kind+" token\x00"), secret...))
	return hex.EncodeToString(sum[:])
}

// Fingerprint is the SHA-256 of a certificate as it is on the wire.
type Fingerprint [sha256.Size]byte

func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }
