package wire

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"dozo/internal/ident"
)

// Message is anything that can be a payload. All are pointers to the structs of messages.go, forward.go and
// node.go.
type Message interface {
	// Type is that of the request; a reply has the type of what it answers.
	Type() Type
	// walk encodes or decodes the fields, whichever c does. One function for both: they can't disagree.
	walk(c *coder)
}

// AppendFields appends all of m but its data, as the newest version has it.
func AppendFields(b []byte, m Message) []byte { return AppendFieldsAt(b, m, VersionMax) }

// AppendFieldsAt is AppendFields of a version that both sides speak: what it does not have is left out.
func AppendFieldsAt(b []byte, m Message, version uint16) []byte {
	c := coders.Get().(*coder)
	*c = coder{b: b, enc: true, version: version}
	m.walk(c)
	b = c.b
	*c = coder{}
	coders.Put(c)
	return b
}

// coders saves an allocation a message: what walk takes escapes to the heap.
var coders = sync.Pool{New: func() any { return new(coder) }}

// DataOf appends to pieces the data of m that follow its fields: nothing is copied.
func DataOf(pieces [][]byte, m Message) [][]byte {
	switch m := m.(type) {
	case *Append:
		return append(pieces, m.Data...)
	case *Forward:
		return append(pieces, m.Data...)
	case *Unit:
		return append(pieces, m.Data)
	case *ReadReply:
		return append(pieces, m.Data)
	case *ForwardReply:
		return append(pieces, m.Data)
	}
	return pieces
}

// Decode reads a payload into m, overwriting it; room that m's slices already have is used again. The data
// of m alias payload. Whatever payload holds, Decode returns an error or a message, and allocates no more
// than a small multiple of len(payload).
func Decode(m Message, payload []byte) error { return DecodeAt(m, payload, VersionMax) }

// DecodeAt is Decode of a version that both sides speak: what it does not have is zero.
func DecodeAt(m Message, payload []byte, version uint16) error {
	c := coders.Get().(*coder)
	*c = decoder(payload)
	c.version = version
	defer func() { *c = coder{}; coders.Put(c) }()
	m.walk(c)
	switch m := m.(type) {
	case *Append:
		m.Data = append(m.Data[:0], c.b)
		m.Trusted = false
		c.b = nil
	case *Forward:
		m.Data = m.Data[:0]
		if len(c.b) > 0 {
			m.Data = append(m.Data, c.b)
		}
		c.b = nil
	case *Unit:
		// Copied: it is worked on by a goroutine of its own, after the payload's buffer has gone back.
		m.Data, c.b = append(m.Data[:0:0], c.b...), nil
	case *ReadReply:
		m.Data, m.Release, c.b = c.b, nil, nil
	case *ForwardReply:
		m.Data, m.Release, c.b = c.b, nil, nil
	}
	if c.err == nil && len(c.b) != 0 {
		c.fail("%d bytes behind the last field", len(c.b))
	}
	if c.err != nil {
		return fmt.Errorf("decode %s: %w", m.Type(), c.err)
	}
	return nil
}

// coder is either an encoder, appending to b, or a decoder, consuming b. After the first error it goes on
// with nothing left to read and every field zero.
type coder struct {
	b       []byte
	enc     bool
	version uint16 // of the messages
	err     error
}

// since reports whether fields that came with a version are there; a decoder is told to empty them where they are not.
func (c *coder) since(version uint16) bool { return c.version >= version }

func decoder(b []byte) coder { return coder{b: b} }

func (c *coder) fail(format string, args ...any) {
	if c.err == nil {
		c.err = malformed(format, args...)
	}
	c.b = nil
}

// take consumes n bytes; nil if they aren't there.
func (c *coder) take(n int) []byte {
	if len(c.b) < n {
		c.fail("%d bytes missing", n-len(c.b))
		return nil
	}
	p := c.b[:n:n]
	c.b = c.b[n:]
	return p
}

func (c *coder) u8(v *uint8) {
	if c.enc {
		c.b = append(c.b, *v)
	} else if p := c.take(1); p != nil {
		*v = p[0]
	} else {
		*v = 0
	}
}

func (c *coder) u16(v *uint16) {
	if c.enc {
		c.b = binary.LittleEndian.AppendUint16(c.b, *v)
	} else if p := c.take(2); p != nil {
		*v = binary.LittleEndian.Uint16(p)
	} else {
		*v = 0
	}
}

func (c *coder) u32(v *uint32) {
	if c.enc {
		c.b = binary.LittleEndian.AppendUint32(c.b, *v)
	} else if p := c.take(4); p != nil {
		*v = binary.LittleEndian.Uint32(p)
	} else {
		*v = 0
	}
}

func (c *coder) u64(v *uint64) {
	if c.enc {
		c.b = binary.LittleEndian.AppendUint64(c.b, *v)
	} else if p := c.take(8); p != nil {
		*v = binary.LittleEndian.Uint64(p)
	} else {
		*v = 0
	}
}

func (c *coder) raw(v []byte) {
	if c.enc {
		c.b = append(c.b, v...)
	} else if p := c.take(len(v)); p != nil {
		copy(v, p)
	} else {
		clear(v)
	}
}

func (c *coder) boolean(v *bool) {
	var n uint8
	if *v {
		n = 1
	}
	if c.u8(&n); n > 1 {
		c.fail("%d is neither true nor false", n)
	}
	*v = n == 1 && c.err == nil
}

// enum is a byte from 1 to most.
func (c *coder) enum(v *uint8, most uint8, what string) {
	c.u8(v)
	if !c.enc && c.err == nil && (*v == 0 || *v > most) {
		c.fail("unknown %s %d", what, *v)
	}
}

func (c *coder) duration(v *time.Duration) {
	n := uint64(*v)
	if c.u64(&n); !c.enc && n > 1<<63-1 {
		c.fail("negative duration")
		n = 0
	}
	*v = time.Duration(n)
}

// text is a 16-bit length and that many bytes, at most most; longer ones are cut when encoding. A decoded
// string that equals what is there is not allocated again.
func (c *coder) text(v *string, most int) {
	if c.enc {
		c.b = appendShort(c.b, *v, most)
		return
	}
	var n uint16
	c.u16(&n)
	if int(n) > most {
		c.fail("text of %d bytes, at most %d", n, most)
	}
	var p []byte
	if c.err == nil {
		p = c.take(int(n))
	}
	if string(p) != *v {
		*v = string(p)
	}
}

func (c *coder) node(v *ident.NodeName) { s := string(*v); c.text(&s, nodeMax); *v = ident.NodeName(s) }

// list is a 32-bit count and the elements, each of at least size bytes.
func list[T any](c *coder, v *[]T, size int, walk func(*coder, *T)) {
	n := uint32(len(*v))
	c.u32(&n)
	if !c.enc {
		if int64(n)*int64(size) > int64(len(c.b)) {
			c.fail("list of %d in %d bytes", n, len(c.b))
			n = 0
		}
		if int(n) <= cap(*v) {
			*v = (*v)[:n]
		} else {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		walk(c, &(*v)[i])
	}
}

func (c *coder) journal(v *ident.JournalID) { c.raw(v[:]) }
func (c *coder) store(v *ident.StoreID)     { c.raw(v[:]) }
func (c *coder) boot(v *ident.BootID)       { c.raw(v[:]) }
func (c *coder) seq(v *ident.Seq)           { n := uint64(*v); c.u64(&n); *v = ident.Seq(n) }
func (c *coder) site(v *ident.SiteID)       { n := uint16(*v); c.u16(&n); *v = ident.SiteID(n) }

const (
	epochSize      = 12
	positionSize   = epochSize + 8 + 16
	segmentSize    = 16 + epochSize + 4 + 2
	epochStartSize = 2*positionSize + 1
)

func (c *coder) epoch(v *ident.Epoch) { c.u64(&v.Number); c.u32(&v.Lineage) }

func (c *coder) position(v *ident.Position) { c.epoch(&v.Epoch); c.seq(&v.Seq); c.raw(v.Hash[:]) }

func (c *coder) segment(v *ident.SegmentID) {
	c.journal(&v.Journal)
	c.epoch(&v.Epoch)
	c.u32(&v.Number)
	c.site(&v.Site)
}

func (c *coder) epochStart(v *EpochStart) {
	c.position(&v.At)
	c.position(&v.Before)
	c.boolean(&v.Proven)
}

// walk makes an Error a payload too: that of every reply whose header has a Code.
func (m *Error) walk(c *coder) {
	n := uint16(m.Code)
	c.u16(&n)
	m.Code = Code(n)
	c.epoch(&m.Epoch)
	c.text(&m.Detail, detailMax)
}

// AppendError appends e as a payload.
func AppendError(b []byte, e *Error) []byte {
	c := coder{b: b, enc: true}
	e.walk(&c)
	return c.b
}

// DecodeError reads the payload of a reply whose header has a code. Codes that this build doesn't know are
// kept as they are.
func DecodeError(payload []byte) (*Error, error) {
	e := new(Error)
	c := decoder(payload)
	e.walk(&c)
	if c.err == nil && e.Code == 0 {
		c.fail("error without a code")
	}
	if c.err == nil && len(c.b) != 0 {
		c.fail("%d bytes behind the last field", len(c.b))
	}
	if c.err != nil {
		return nil, fmt.Errorf("decode error: %w", c.err)
	}
	return e, nil
}

func versionRange(h *Hello) string { return fmt.Sprintf("%d to %d", h.VersionMin, h.VersionMax) }
