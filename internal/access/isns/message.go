package isns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// What RFC 4171 fixes.
const (
	headerLen = 12
	version   = 1

	fnDevAttrReg    = 0x0001
	fnDevDereg      = 0x0004
	fnESI           = 0x000d
	responseBit     = 0x8000
	flagClient      = 0x8000
	flagServer      = 0x4000
	flagLast        = 0x0800
	flagFirst       = 0x0400
	statusInvalid   = 2 // message format error
	statusNoVersion = 8

	tagDelimiter      = 0
	tagEntityID       = 1
	tagEntityProtocol = 2
	tagPortalIP       = 16
	tagPortalPort     = 17
	tagPortalName     = 18
	tagESIInterval    = 19
	tagESIPort        = 20
	tagName           = 32
	tagNodeType       = 33
	tagAlias          = 34
	tagGroupName      = 48
	tagGroupIP        = 49
	tagGroupPort      = 50
	tagGroupTag       = 51

	protocolISCSI = 2
	nodeTarget    = 1
)

// messageMax bounds a message: the length field has 16 bits.
const messageMax = 1<<16 - 4

// message is one iSNSP message of one PDU.
type message struct {
	function    uint16
	flags       uint16
	transaction uint16
	status      uint32 // of responses
	attrs       []attr
}

// attr is one attribute, with its value as it is on the wire, padded.
type attr struct {
	tag   uint32
	value []byte
}

func (m *message) isResponse() bool { return m.function&responseBit != 0 }

// text makes a string attribute: it ends with a null and is padded to four bytes (RFC 4171 6.1).
func text(tag uint32, s string) attr {
	n := (len(s) + 4) &^ 3
	b := make([]byte, n)
	copy(b, s)
	return attr{tag, b}
}

func number(tag, v uint32) attr { return attr{tag, binary.BigEndian.AppendUint32(nil, v)} }

// address makes an address attribute: IPv4 addresses are mapped into IPv6 (RFC 4171 6.3.1).
func address(tag uint32, a netip.Addr) attr {
	b := a.As16()
	return attr{tag, b[:]}
}

func delimiter() attr { return attr{tagDelimiter, nil} }

// append encodes the message.
func (m *message) append(b []byte) []byte {
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, version)
	b = binary.BigEndian.AppendUint16(b, m.function)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.flags|flagFirst|flagLast)
	b = binary.BigEndian.AppendUint16(b, m.transaction)
	b = append(b, 0, 0) // sequence number of the only PDU
	if m.isResponse() {
		b = binary.BigEndian.AppendUint32(b, m.status)
	}
	for _, a := range m.attrs {
		b = binary.BigEndian.AppendUint32(b, a.tag)
		b = binary.BigEndian.AppendUint32(b, uint32(len(a.value)))
		b = append(b, a.value...)
	}
	binary.BigEndian.PutUint16(b[at+4:], uint16(len(b)-at-headerLen))
	return b
}

var errFormat = errors.New("malformed iSNS message")

// bodyLen takes a header and says how much follows.
func bodyLen(h []byte) (int, error) {
	n := int(binary.BigEndian.Uint16(h[4:]))
	switch flags := binary.BigEndian.Uint16(h[6:]); {
	case binary.BigEndian.Uint16(h) != version:
		return 0, fmt.Errorf("%w: version %d", errFormat, binary.BigEndian.Uint16(h))
	case n%4 != 0:
		return 0, fmt.Errorf("%w: %d bytes", errFormat, n)
	case flags&(flagFirst|flagLast) != flagFirst|flagLast || binary.BigEndian.Uint16(h[10:]) != 0:
		// Answers to what we ask for fit one PDU.
		return 0, fmt.Errorf("%w: in several parts", errFormat)
	}
	return n, nil
}

// decode takes a header and what follows. The attributes refer to body.
func decode(h, body []byte) (*message, error) {
	m := &message{function: binary.BigEndian.Uint16(h[2:]), flags: binary.BigEndian.Uint16(h[6:]), transaction: binary.BigEndian.Uint16(h[8:])}
	if m.isResponse() {
		if len(body) < 4 {
			return nil, fmt.Errorf("%w: a response without status", errFormat)
		}
		m.status, body = binary.BigEndian.Uint32(body), body[4:]
	}
	for len(body) > 0 {
		if len(body) < 8 {
			return nil, fmt.Errorf("%w: an attribute of %d bytes", errFormat, len(body))
		}
		a := attr{tag: binary.BigEndian.Uint32(body)}
		n := binary.BigEndian.Uint32(body[4:])
		body = body[8:]
		if uint64(n) > uint64(len(body)) || n%4 != 0 {
			return nil, fmt.Errorf("%w: attribute %d of %d bytes in %d", errFormat, a.tag, n, len(body))
		}
		a.value, body = body[:n], body[n:]
		m.attrs = append(m.attrs, a)
	}
	return m, nil
}

// StatusError is a refusal by the server.
type StatusError uint32

// statusTexts are those of RFC 4171 5.4.
var statusTexts = map[StatusError]string{
	1: "unknown error", 2: "message format error", 3: "invalid registration", 5: "invalid query", 6: "source unknown",
	7: "source absent", 8: "source unauthorized", 9: "no such entry", 10: "version not supported", 11: "internal error",
	12: "busy", 13: "option not understood", 14: "invalid update", 15: "message not supported", 16: "SCN event rejected",
	17: "SCN registration rejected", 18: "attribute not implemented", 21: "ESI not available", 22: "invalid deregistration",
	23: "registration feature not supported",
}

func (e StatusError) Error() string {
	if s, ok := statusTexts[e]; ok {
		return "iSNS server answers: " + s
	}
	return fmt.Sprintf("iSNS server answers status %d", uint32(e))
}

// noSuchEntry is what a server may answer when something is to be taken out that it doesn't have.
const noSuchEntry StatusError = 9
