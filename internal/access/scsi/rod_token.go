package scsi

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"

	"dozo/internal/ident"
)

// Range is a run of bytes of a disk.
type Range struct{ Off, N int64 }

// TokenID names a token at the unit that made it.
type TokenID struct {
	ID   [16]byte
	Made ident.Epoch // of the unit's owner; zero: see Token.Bare
}

// Token is one that an initiator has.
type Token struct {
	TokenID
	Digest [32]byte // of its bytes
}

// Bare tokens are those of a cluster of which not all nodes know more of a token than its ID.
func (t *Token) Bare() bool { return t.Made == ident.Epoch{} }

// TokenTimes say when a token ends by itself: when it was not used for the one, and after the other.
type TokenTimes struct{ Idle, Life time.Duration }

// ROD types (SPC-4 5.17.6.2, SBC-3 4.24).
const (
	rodPointInTime      = 0x00800000 // a copy of one moment, kept in a way of our own: it ends when its source changes
	rodVulnerable       = 0x00800001 // the same, by a name that says so
	rodAny              = 0x0080ffff // asks for one or the other
	rodZero             = 0xffff0001
	tokenDefaultSeconds = 60
	tokenSecondsMax     = 3600
	tokenLifeSeconds    = 24 * 3600 // of every token; a copy by it takes seconds
)

// The bytes of a ROD token (SPC-4 tables 112, 113; SBC-3 6.7). The copy manager's identifier is the beginning of the ID. Those
// of the extended data are ours, and all that says nothing is random; the digest is of all before it. So what is not as it was made is seen
// by whoever is shown it, and that it was made at all by the owner, who keeps the digest.
const (
	tokenLength     = 512
	rodID           = 8   // COPY MANAGER ROD TOKEN IDENTIFIER, 8
	rodCreator      = 16  // CREATOR LOGICAL UNIT DESCRIPTOR, 32
	rodRepresented  = 48  // NUMBER OF BYTES REPRESENTED, 16
	rodDevice       = 96  // device type specific data, 32
	rodTarget       = 128 // TARGET DEVICE DESCRIPTOR, 128
	rodExtended     = 256 // EXTENDED ROD TOKEN DATA, 256: ID, 16
	rodMade         = 272 // epoch: number, 8, and lineage, 4
	rodRandom       = 284 // SPC-4 5.17.6.5.1: at least 32 of them
	rodDigest       = 480
	rodTargetLength = rodExtended - rodTarget
)

// sealToken makes a token's bytes, and gives their digest.
func (u *Unit) sealToken(kind uint32, id TokenID, total int64) (t [tokenLength]byte, digest [32]byte) {
	be := binary.BigEndian
	be.PutUint32(t[:], kind)
	be.PutUint16(t[6:], tokenLength-8)
	copy(t[rodID:rodCreator], id.ID[:])
	g, naa := u.disk.Geometry(), u.disk.Identity().NAA()
	c := t[rodCreator:rodRepresented]
	be.PutUint32(c[28:], g.BlockSize) // DISK BLOCK LENGTH, below a byte of other things
	c[0], c[4], c[5], c[7] = cscdIdentification, 0x01, 0x03, byte(len(naa))
	copy(c[8:], naa[:])
	be.PutUint64(t[rodRepresented+8:], uint64(total))
	if (&Token{TokenID: id}).Bare() {
		copy(t[rodTarget:], id.ID[:])
		return t, digest
	}
	copy(t[rodDevice:], u.appendCapacity(nil, g)[8:16])
	copy(t[rodTarget:rodExtended], u.targetDescriptor())
	copy(t[rodExtended:], id.ID[:])
	be.PutUint64(t[rodMade:], id.Made.Number)
	be.PutUint32(t[rodMade+8:], id.Made.Lineage)
	_, _ = rand.Read(t[rodRandom:rodDigest]) // it never fails
	digest = sha256.Sum256(t[:rodDigest])
	copy(t[rodDigest:], digest[:])
	return t, digest
}

// targetDescriptor is the designation descriptor of the target device that the unit was reached by: its name or, where there is no
// room for that, an NAA identifier made of it.
func (u *Unit) targetDescriptor() []byte {
	const device = 0x20
	if b := appendName(nil, device, u.nexus.target); len(b) <= rodTargetLength {
		return b
	}
	sum := sha256.Sum256([]byte(u.nexus.target))
	return append([]byte{0x51, 0xa3, 0, 8, 0x30 | sum[0]&0x0f}, sum[1:8]...)
}

// parsedToken is what the bytes of a token say.
type parsedToken struct {
	Token
	kind    uint32
	creator designator
	intact  bool // it is as some unit of a cluster like ours has made it
	ours    bool // it names our target device
}

// parseToken reads a token; false: it has no form that a token has (SPC-4 5.17.6.5.2.3, list entry 1).
func (u *Unit) parseToken(t []byte) (p parsedToken, ok bool) {
	be := binary.BigEndian
	p.kind = be.Uint32(t)
	c := t[rodCreator:rodRepresented]
	n := int(c[7])
	p.creator = designator{c[5] & 0x0f, bytes.Clone(c[8 : 8+min(20, n)])}
	switch {
	case c[0] != cscdIdentification || c[5]&0x30 != 0: // association: the logical unit
		return p, false
	case p.creator.kind == 2 && (n == 8 || n == 12 || n == 16), p.creator.kind == 3 && (n == 8 || n == 16):
	default:
		return p, false
	}
	if zero(t[rodCreator+32+16:rodTarget]) && zero(t[rodTarget+16:]) { // bare
		copy(p.ID[:], t[rodTarget:])
		p.intact = true
		return p, true
	}
	copy(p.ID[:], t[rodExtended:])
	p.Made = ident.Epoch{Number: be.Uint64(t[rodMade:]), Lineage: be.Uint32(t[rodMade+8:])}
	p.Digest = sha256.Sum256(t[:rodDigest])
	p.intact = bytes.Equal(p.Digest[:], t[rodDigest:]) && !p.Bare()
	own := u.targetDescriptor()
	p.ours = strings.HasPrefix(string(t[rodTarget:]), string(own))
	return p, true
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
