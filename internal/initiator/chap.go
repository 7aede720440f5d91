package initiator

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
)

// CHAP holds the names and secrets of RFC 1994 authentication as iSCSI uses it (RFC 7143 12.1.3).
type CHAP struct {
	User, Secret string
	// TargetSecret, if set, makes authentication mutual: the target must prove that it knows it. TargetUser, if
	// set, must be the name that it gives.
	TargetUser, TargetSecret string
	// Digests are offered in this order, by their number in the IANA registry: 5 MD5, 6 SHA-1, 7 SHA-256,
	// 8 SHA3-256. None means 7 and 5: SHA-256, then MD5, which every target has.
	Digests []int
}

// offer is the value of CHAP_A.
func (c CHAP) offer() (string, error) {
	if len(c.Digests) == 0 {
		return "7,5", nil
	}
	list := make([]string, 0, len(c.Digests))
	for _, d := range c.Digests {
		if chapHash(d) == nil {
			return "", fmt.Errorf("CHAP digest %d is none that we know", d)
		}
		list = append(list, strconv.Itoa(d))
	}
	return strings.Join(list, ","), nil
}

func (c CHAP) used() bool { return c.User != "" || c.Secret != "" }

// ErrAuthentication: the target did not prove who it is, or refused our proof.
var ErrAuthentication = errors.New("authentication failed")

// chapAlgorithms are the digests by their number in the IANA registry, strongest first.
var chapAlgorithms = []struct {
	id  int
	new func() hash.Hash
}{
	{8, func() hash.Hash { return sha3.New256() }},
	{7, sha256.New},
	{6, sha1.New},
	{5, md5.New},
}

func chapHash(id int) func() hash.Hash {
	for _, a := range chapAlgorithms {
		if a.id == id {
			return a.new
		}
	}
	return nil
}

func chapResponse(newHash func() hash.Hash, id byte, secret string, challenge []byte) []byte {
	h := newHash()
	h.Write([]byte{id})
	h.Write([]byte(secret))
	h.Write(challenge)
	return h.Sum(nil)
}

// parseBinary decodes the large binary values of RFC 7143 6.1: 0x hexadecimal, 0b base64.
func parseBinary(s string) ([]byte, error) {
	const limit = 1024 // RFC 7143 12.1.3: at most 1024 bytes
	var b []byte
	var err error
	switch {
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		digits := s[2:]
		if len(digits)%2 == 1 {
			digits = "0" + digits
		}
		b, err = hex.DecodeString(digits)
	case strings.HasPrefix(s, "0b"), strings.HasPrefix(s, "0B"):
		b, err = base64.StdEncoding.DecodeString(s[2:])
	default:
		return nil, fmt.Errorf("binary value %.20q has no 0x or 0b", s)
	}
	if err != nil {
		return nil, fmt.Errorf("binary value: %w", err)
	}
	if len(b) == 0 || len(b) > limit {
		return nil, fmt.Errorf("binary value of %d bytes", len(b))
	}
	return b, nil
}

func formatBinary(b []byte) string { return "0x" + hex.EncodeToString(b) }

// chapExchange answers the target's challenge and, if mutual, makes one of its own.
type chapExchange struct {
	chap      CHAP
	offer     string // of digests
	id        byte
	challenge []byte
	newHash   func() hash.Hash
}

// answer takes CHAP_A, CHAP_I, CHAP_C and returns CHAP_N, CHAP_R and for mutual CHAP_I, CHAP_C.
func (x *chapExchange) answer(get func(string) string) ([]KeyValue, error) {
	alg, err := strconv.Atoi(get("CHAP_A"))
	if err != nil || !listHas(x.offer, strconv.Itoa(alg)) {
		return nil, fmt.Errorf("CHAP_A=%q was not offered: %w", get("CHAP_A"), ErrAuthentication)
	}
	x.newHash = chapHash(alg)
	id, err := strconv.ParseUint(get("CHAP_I"), 0, 8)
	if err != nil {
		return nil, fmt.Errorf("CHAP_I=%q: %w", get("CHAP_I"), ErrAuthentication)
	}
	challenge, err := parseBinary(get("CHAP_C"))
	if err != nil {
		return nil, fmt.Errorf("CHAP_C: %w: %w", err, ErrAuthentication)
	}
	out := []KeyValue{
		{"CHAP_N", x.chap.User},
		{"CHAP_R", formatBinary(chapResponse(x.newHash, byte(id), x.chap.Secret, challenge))},
	}
	if x.chap.TargetSecret == "" {
		return out, nil
	}
	x.challenge = make([]byte, 16)
	one := make([]byte, 1)
	rand.Read(x.challenge)
	rand.Read(one)
	x.id = one[0]
	return append(out, KeyValue{"CHAP_I", strconv.Itoa(int(x.id))}, KeyValue{"CHAP_C", formatBinary(x.challenge)}), nil
}

// verify checks the target's CHAP_N and CHAP_R.
func (x *chapExchange) verify(get func(string) string) error {
	if x.challenge == nil {
		return nil
	}
	if x.chap.TargetUser != "" && get("CHAP_N") != x.chap.TargetUser {
		return fmt.Errorf("target calls itself %q: %w", get("CHAP_N"), ErrAuthentication)
	}
	got, err := parseBinary(get("CHAP_R"))
	if err != nil {
		return fmt.Errorf("CHAP_R of the target: %w: %w", err, ErrAuthentication)
	}
	if subtle.ConstantTimeCompare(got, chapResponse(x.newHash, x.id, x.chap.TargetSecret, x.challenge)) != 1 {
		return fmt.Errorf("target's CHAP response is wrong: %w", ErrAuthentication)
	}
	return nil
}
