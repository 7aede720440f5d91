package iscsi

import (
	"bytes"
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

// chapHash gives the algorithms that IANA lists for iSCSI, by CHAP_A's number.
func chapHash(algorithm int) hash.Hash {
	switch algorithm {
	case 5:
		return md5.New()
	case 6:
		return sha1.New()
	case 7:
		return sha256.New()
	case 8:
		return sha3.New256()
	}
	return nil
}

// chapResponse is RFC 1994's: the hash of identifier, secret and challenge.
func chapResponse(algorithm int, id byte, secret string, challenge []byte) []byte {
	h := chapHash(algorithm)
	h.Write([]byte{id})
	h.Write([]byte(secret))
	h.Write(challenge)
	return h.Sum(nil)
}

// parseBinary takes a binary value (RFC 7143 6.1): 0x hexadecimal or 0b base64.
func parseBinary(s string) ([]byte, error) {
	switch {
	case len(s) >= 2 && (s[:2] == "0x" || s[:2] == "0X"):
		s = s[2:]
		if len(s)%2 == 1 {
			s = "0" + s
		}
		return hex.DecodeString(s)
	case len(s) >= 2 && (s[:2] == "0b" || s[:2] == "0B"):
		return base64.StdEncoding.DecodeString(s[2:])
	}
	return nil, errors.New("binary value begins neither with 0x nor with 0b")
}

func formatBinary(b []byte) string { return "0x" + hex.EncodeToString(b) }

// errAuthentication is a proof that is wrong or missing; the peer hears no more than that.
var errAuthentication = errors.New("authentication failed")

// chap is the authenticator: it challenges the initiator and answers its challenge.
//
//	start ──CHAP_A──> challenged ──CHAP_N, CHAP_R [CHAP_I, CHAP_C]──> done
type chap struct {
	credentials Credentials
	algorithm   int
	id          byte
	challenge   []byte
	mutual      bool // we have proved ourselves too
	state       chapState
}

// Auth is how an initiator logged in.
type Auth struct {
	Method string // none, chap, or mutual where the target proved itself too
	Digest string // of CHAP: MD5, SHA-1, SHA-256 or SHA3-256; else empty
}

// chapNames are the digests of chapHash.
var chapNames = map[int]string{5: "MD5", 6: "SHA-1", 7: "SHA-256", 8: "SHA3-256"}

// used says how the login was proved. That credentials ask for more is no proof: an initiator need not make us
// prove ourselves.
func (l *login) used() Auth {
	switch {
	case l.auth == nil || !l.proved:
		return Auth{Method: "none"}
	case l.auth.mutual:
		return Auth{"mutual", chapNames[l.auth.algorithm]}
	}
	return Auth{"chap", chapNames[l.auth.algorithm]}
}

type chapState uint8

const (
	chapStart chapState = iota
	chapChallenged
	chapDone
)

// step takes the CHAP keys of one request, complete, and appends the answer.
func (c *chap) step(b []byte, keys map[string]string) ([]byte, error) {
	switch c.state {
	case chapStart:
		list, ok := keys["CHAP_A"]
		if !ok {
			if len(keys) > 0 {
				return b, fmt.Errorf("%w: CHAP_A is missing", errAuthentication)
			}
			return b, nil // AuthMethod was just agreed upon; CHAP_A comes next
		}
		for a := range strings.SplitSeq(list, ",") {
			if n, err := strconv.Atoi(a); err == nil && chapHash(n) != nil {
				c.algorithm = n
				break
			}
		}
		if c.algorithm == 0 {
			return b, fmt.Errorf("%w: no algorithm of %q is known", errAuthentication, list)
		}
		var random [33]byte
		if _, err := rand.Read(random[:]); err != nil {
			return b, err
		}
		// As long as the digest: RFC 7143 12.1.3 wants a challenge no shorter than the response.
		c.id, c.challenge = random[0], bytes.Clone(random[1:])
		c.state = chapChallenged
		b = appendPair(b, "CHAP_A", strconv.Itoa(c.algorithm))
		b = appendPair(b, "CHAP_I", strconv.Itoa(int(c.id)))
		return appendPair(b, "CHAP_C", formatBinary(c.challenge)), nil
	case chapChallenged:
		response, err := parseBinary(keys["CHAP_R"])
		if err != nil {
			return b, fmt.Errorf("%w: CHAP_R: %v", errAuthentication, err)
		}
		in := c.credentials.In
		want := chapResponse(c.algorithm, c.id, in.Secret, c.challenge)
		nameOK := subtle.ConstantTimeCompare([]byte(keys["CHAP_N"]), []byte(in.Name))
		if in.Secret == "" || nameOK&subtle.ConstantTimeCompare(response, want) != 1 {
			return b, fmt.Errorf("%w: wrong name or secret", errAuthentication)
		}
		c.state = chapDone
		return c.prove(b, keys)
	}
	if len(keys) > 0 {
		return b, fmt.Errorf("%w: CHAP keys after the exchange", errAuthentication)
	}
	return b, nil
}

// prove answers the initiator's challenge, if it made one.
func (c *chap) prove(b []byte, keys map[string]string) ([]byte, error) {
	id, hasID := keys["CHAP_I"]
	text, hasChallenge := keys["CHAP_C"]
	if !hasID && !hasChallenge {
		return b, nil
	}
	n, err := strconv.ParseUint(id, 0, 8)
	if err != nil {
		return b, fmt.Errorf("%w: CHAP_I %.20q", errAuthentication, id)
	}
	challenge, err := parseBinary(text)
	switch {
	case err != nil:
		return b, fmt.Errorf("%w: CHAP_C: %v", errAuthentication, err)
	case len(challenge) == 0 || len(challenge) > binaryMax:
		return b, fmt.Errorf("%w: CHAP_C of %d bytes", errAuthentication, len(challenge))
	case bytes.Equal(challenge, c.challenge):
		// RFC 7143 9.2.1: a challenge thrown back would make us compute the very answer that was asked for.
		return b, fmt.Errorf("%w: the challenge was reflected", errAuthentication)
	case c.credentials.Out.Secret == "":
		return b, fmt.Errorf("%w: the initiator asks for a proof that isn't configured", errAuthentication)
	}
	c.mutual = true
	b = appendPair(b, "CHAP_N", c.credentials.Out.Name)
	return appendPair(b, "CHAP_R", formatBinary(chapResponse(c.algorithm, byte(n), c.credentials.Out.Secret, challenge))), nil
}
