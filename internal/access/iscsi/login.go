package iscsi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Stages of a login (RFC 7143 6.3).
const (
	stageSecurity    = 0
	stageOperational = 1
	stageFullFeature = 3
)

// login is the login phase of one connection. It takes requests and says what to answer; it asks the Provider
// for credentials and leaves opening the target to the caller of step, who does so when finished is set.
//
//	security (0) ──> operational (1) ──> full feature (3)
//	       └───────────────────────────────────^
type login struct {
	provider Provider
	peer     Peer
	alias    string

	first     bool // no request was seen yet
	stage     int
	cid       uint16
	isid      [6]byte
	tsih      uint16
	itt       uint32
	target    string // empty in a discovery session
	discovery bool
	auth      *chap // nil: no authentication is needed, or none was chosen yet
	required  bool
	proved    bool
	text      []byte // of requests with the C bit
	received  int    // bytes of text altogether
	reply     []byte // what is left of an answer that didn't fit one response
	ops       *negotiator
}

func newLogin(p Provider, peer Peer, o Offers) *login {
	return &login{provider: p, peer: peer, first: true, ops: newNegotiator(o)}
}

// loginReply is one Login Response: a status, stages and text. finished says that it is the last: the session
// may begin once the target is open.
type loginReply struct {
	status   loginStatus
	transit  bool
	more     bool // C bit
	csg, nsg int
	text     []byte
	finished bool
	why      error // for the log, if status isn't success
}

func refuse(s loginStatus, format string, args ...any) loginReply {
	return loginReply{status: s, why: fmt.Errorf(format, args...)}
}

// replyTextMax is the longest text of one Login Response: the default MaxRecvDataSegmentLength, which holds
// until the login is over.
const replyTextMax = 8192

// step takes one Login Request.
func (l *login) step(ctx context.Context, h *header, data []byte) loginReply {
	transit, more := h[1]&0x80 != 0, h[1]&0x40 != 0
	csg, nsg := int(h[1]>>2&3), int(h[1]&3)
	versionMin := h[3]
	switch {
	case h.opcode() != opLogin:
		return refuse(statusInvalidRequest, "opcode %#02x during login", h.opcode())
	case versionMin > 0:
		return refuse(statusVersion, "version %d or newer is wanted", versionMin)
	case csg != stageSecurity && csg != stageOperational:
		return refuse(statusInitiatorError, "login in stage %d", csg)
	case transit && more:
		return refuse(statusInitiatorError, "login request with T and C")
	case transit && (nsg <= csg || nsg == 2):
		return refuse(statusInitiatorError, "login from stage %d to %d", csg, nsg)
	}
	if l.first {
		l.stage, l.itt = csg, h.itt()
		copy(l.isid[:], h[8:14])
		l.tsih = uint16(h[14])<<8 | uint16(h[15])
		l.cid = uint16(h[20])<<8 | uint16(h[21])
		l.ops.joins = l.tsih != 0
	} else if csg != l.stage || h.itt() != l.itt || [6]byte(h[8:14]) != l.isid || l.cid != uint16(h[20])<<8|uint16(h[21]) {
		return refuse(statusInitiatorError, "login request in stage %d (tag %#x) during stage %d (tag %#x)", csg, h.itt(), l.stage, l.itt)
	}
	// All of it, since what was sent is remembered until the login is over.
	if l.received += len(data); l.received > textLenMax {
		return refuse(statusInitiatorError, "login text longer than %d bytes", textLenMax)
	}
	l.text = append(l.text, data...)
	if more {
		return loginReply{csg: csg, nsg: 0}
	}
	if len(l.reply) > 0 && len(l.text) == 0 {
		return l.send(csg, nsg, transit)
	}
	pairs, err := parseText(l.text)
	l.text = l.text[:0]
	if err != nil {
		return refuse(statusInitiatorError, "login text: %w", err)
	}
	if r := l.begin(ctx, &pairs); r.status != statusSuccess {
		return r
	}
	reply, r := l.answer(pairs)
	if r.status != statusSuccess {
		return r
	}
	l.reply = reply
	return l.send(csg, nsg, transit)
}

// send gives as much of the answer as fits, and moves on if the initiator wants to and nothing stands against.
func (l *login) send(csg, nsg int, transit bool) loginReply {
	r := loginReply{csg: csg}
	if len(l.reply) > replyTextMax {
		r.text, l.reply, r.more = l.reply[:replyTextMax], l.reply[replyTextMax:], true
		return r
	}
	r.text, l.reply = l.reply, nil
	if !transit || l.stage == stageSecurity && l.auth != nil && !l.proved {
		return r
	}
	if l.required && !l.proved {
		return refuse(statusAuthFailure, "%w: the initiator skips it", errAuthentication)
	}
	r.transit, r.nsg = true, nsg
	l.stage = nsg
	r.finished = nsg == stageFullFeature
	return r
}

// begin takes the keys that say who is there, from the first request (RFC 7143 6.3), and asks for
// credentials.
func (l *login) begin(ctx context.Context, pairs *[]pair) loginReply {
	if !l.first {
		return loginReply{}
	}
	l.first = false
	found := map[string]string{}
	rest := (*pairs)[:0:0]
	for _, p := range *pairs {
		switch p.key {
		case "InitiatorName", "TargetName", "SessionType", "InitiatorAlias":
			if _, twice := found[p.key]; twice {
				return refuse(statusInitiatorError, "key %s was sent twice", p.key)
			}
			found[p.key] = p.value
		default:
			rest = append(rest, p)
		}
	}
	*pairs = rest
	name, ok := found["InitiatorName"]
	if !ok {
		return refuse(statusMissingParameter, "InitiatorName is missing")
	}
	if err := checkName(name); err != nil {
		return refuse(statusInitiatorError, "InitiatorName: %w", err)
	}
	l.peer.Initiator, l.alias = strings.ToLower(name), found["InitiatorAlias"]
	switch found["SessionType"] {
	case "", "Normal":
		l.target = strings.ToLower(found["TargetName"])
		if l.target == "" {
			return refuse(statusMissingParameter, "TargetName is missing")
		}
		if checkName(l.target) != nil {
			return refuse(statusNotFound, "TargetName %.60q is no iSCSI name", l.target)
		}
	case "Discovery":
		l.discovery, l.ops.discovery = true, true
	default:
		return refuse(statusSessionType, "SessionType=%.40q", found["SessionType"])
	}
	c, err := l.provider.Credentials(ctx, l.peer, l.target)
	if err != nil {
		return loginReply{status: loginStatusOf(err), why: err}
	}
	l.required = c.Required
	if c.Required {
		l.auth = &chap{credentials: c}
	}
	return loginReply{}
}

// checkName takes the iqn., eui. and naa. formats, loosely: what matters is that names are comparable and
// printable (RFC 7143 4.2.7).
func checkName(s string) error {
	if len(s) == 0 || len(s) > 223 {
		return fmt.Errorf("a name of %d bytes", len(s))
	}
	if !strings.HasPrefix(strings.ToLower(s), "iqn.") && !strings.HasPrefix(strings.ToLower(s), "eui.") && !strings.HasPrefix(strings.ToLower(s), "naa.") {
		return fmt.Errorf("%.60q has none of the name formats", s)
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f || strings.ContainsRune("=,;/\\\"'", r) {
			return fmt.Errorf("%.60q has characters that no name has", s)
		}
	}
	return nil
}

// answer takes the keys of a stage.
func (l *login) answer(pairs []pair) ([]byte, loginReply) {
	var b []byte
	if !l.discovery && !l.ops.seen[groupSent] {
		// RFC 7143 13.9: in the first response of a normal session.
		l.ops.seen[groupSent] = true
		b = appendPair(b, "TargetPortalGroupTag", strconv.Itoa(int(l.peer.Group)))
	}
	// What DefaultTime2Retain is answered with depends on the level of recovery, and FirstBurstLength on MaxBurstLength.
	first := func(p pair) uint64 { return boolNumber(p.key == "ErrorRecoveryLevel" || p.key == "MaxBurstLength") }
	slices.SortStableFunc(pairs, func(a, b pair) int { return int(first(b)) - int(first(a)) })
	exchange := map[string]string{}
	for _, p := range pairs {
		switch {
		case slices.Contains([]string{"InitiatorName", "TargetName", "SessionType"}, p.key):
			return nil, refuse(statusInitiatorError, "key %s after the first request", p.key)
		case p.key == "InitiatorAlias":
			l.alias = p.value
		case p.key == "AuthMethod":
			if l.stage != stageSecurity || l.ops.seen[p.key] {
				return nil, refuse(statusInitiatorError, "AuthMethod out of place")
			}
			l.ops.seen[p.key] = true
			method := valueNone
			if l.auth != nil {
				method = "CHAP"
			}
			if !slices.Contains(strings.Split(p.value, ","), method) {
				return nil, refuse(statusAuthFailure, "%w: %s is needed, the initiator offers %.60q", errAuthentication, method, p.value)
			}
			b = appendPair(b, p.key, method)
		case strings.HasPrefix(p.key, "CHAP_"):
			if l.stage != stageSecurity || l.auth == nil {
				return nil, refuse(statusInitiatorError, "key %s out of place", p.key)
			}
			exchange[p.key] = p.value
		case l.stage == stageSecurity && isOperational(p.key):
			// RFC 7143 6.3.2: operational keys have no place here; initiators exist that send some. Those that
			// matter come again or keep their defaults.
			return nil, refuse(statusInitiatorError, "key %s in the security stage", p.key)
		default:
			var err error
			if b, err = l.ops.answer(b, p); err != nil {
				return nil, refuse(statusInitiatorError, "%w", err)
			}
		}
	}
	if l.stage == stageOperational {
		if l.required && !l.proved {
			return nil, refuse(statusAuthFailure, "%w: the initiator skips it", errAuthentication)
		}
		b = l.ops.declare(b)
	}
	if l.stage == stageSecurity && l.auth != nil && (len(exchange) > 0 || l.auth.state == chapStart) {
		var err error
		if b, err = l.auth.step(b, maps.Clone(exchange)); err != nil {
			status := statusTargetError
			if errors.Is(err, errAuthentication) {
				status = statusAuthFailure
			}
			return nil, refuse(status, "%w", err)
		}
		l.proved = l.auth.state == chapDone
	}
	return b, loginReply{}
}

// groupSent marks, among the keys seen, that we told our portal group; no key has this name.
const groupSent = "\x00group"

func isOperational(key string) bool { _, ok := operationalKeys[key]; return ok }
