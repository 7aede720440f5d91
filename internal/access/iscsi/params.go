package iscsi

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Params are the operational parameters of a session and its connection. Directions are seen from us: Send is
// what the initiator declared to take.
type Params struct {
	HeaderDigest, DataDigest bool
	MaxConnections           uint32
	InitialR2T               bool
	ImmediateData            bool
	MaxSendDataSegment       uint32 // the initiator's MaxRecvDataSegmentLength
	MaxRecvDataSegment       uint32 // ours
	MaxBurstLength           uint32
	FirstBurstLength         uint32
	DefaultTime2Wait         uint32
	DefaultTime2Retain       uint32
	MaxOutstandingR2T        uint32
	DataPDUInOrder           bool
	DataSequenceInOrder      bool
	ErrorRecoveryLevel       uint32
	TaskReporting            string
	ProtocolLevel            uint32
}

// defaultParams are the values that hold where nothing is negotiated (RFC 7143 13).
func defaultParams() Params {
	return Params{
		MaxConnections: 1, InitialR2T: true, ImmediateData: true, MaxSendDataSegment: 8192, MaxRecvDataSegment: 8192,
		MaxBurstLength: 262144, FirstBurstLength: 65536, DefaultTime2Wait: 2, DefaultTime2Retain: 20,
		MaxOutstandingR2T: 1, DataPDUInOrder: true, DataSequenceInOrder: true, TaskReporting: reportRFC3720, ProtocolLevel: 1,
	}
}

// Offers are our side of the negotiation: what we want where the initiator leaves us the choice.
type Offers struct {
	MaxRecvDataSegment uint32
	MaxBurstLength     uint32
	FirstBurstLength   uint32
	MaxOutstandingR2T  uint32
	ImmediateData      bool
	InitialR2T         bool
	MaxConnections     uint32   // of a session
	ErrorRecoveryLevel uint32   // at most
	Time2Retain        uint32   // seconds for which the tasks of a lost connection are kept, at recovery level 2
	HeaderDigest       []string // in order of preference; empty means both, None first
	DataDigest         []string
}

// DefaultOffers let an initiator send and ask for much without waiting: a session over a long path starves
// on round trips first.
func DefaultOffers() Offers {
	return Offers{
		MaxRecvDataSegment: 1 << 20, MaxBurstLength: 16<<20 - 512, FirstBurstLength: 256 << 10, MaxOutstandingR2T: 16,
		ImmediateData: true, MaxConnections: 8, ErrorRecoveryLevel: 2, Time2Retain: 20,
	}
}

// keyKind is how a key is negotiated (RFC 7143 6.2).
type keyKind uint8

const (
	kindDeclare keyKind = iota // told, not answered
	kindMin                    // numerical, the smaller one
	kindMax                    // numerical, the larger one
	kindOr                     // boolean, Yes if either says so
	kindAnd                    // boolean, Yes if both do
	kindList                   // the first of the initiator's list that we know
)

// keyRule is one operational key. apply stores the result.
type keyRule struct {
	kind     keyKind
	low, top uint64 // range of numerical values
	// normalOnly keys are Irrelevant in a discovery session (RFC 7143 13, "Irrelevant when").
	normalOnly bool
	ours       func(*Offers) uint64
	known      []string
	apply      func(*Params, uint64, string)
}

func boolNumber(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// operationalKeys are the keys of RFC 7143 13 and RFC 7144 that are negotiated in the operational stage. The
// table is only read.
var operationalKeys = map[string]keyRule{
	"HeaderDigest":   {kind: kindList, known: []string{"CRC32C", "None"}, apply: func(p *Params, _ uint64, s string) { p.HeaderDigest = s == "CRC32C" }},
	"DataDigest":     {kind: kindList, known: []string{"CRC32C", "None"}, apply: func(p *Params, _ uint64, s string) { p.DataDigest = s == "CRC32C" }},
	"MaxConnections": {kind: kindMin, low: 1, top: 65535, normalOnly: true, ours: func(o *Offers) uint64 { return uint64(max(1, o.MaxConnections)) }, apply: func(p *Params, n uint64, _ string) { p.MaxConnections = uint32(n) }},
	"InitialR2T":     {kind: kindOr, normalOnly: true, ours: func(o *Offers) uint64 { return boolNumber(o.InitialR2T) }, apply: func(p *Params, n uint64, _ string) { p.InitialR2T = n == 1 }},
	"ImmediateData":  {kind: kindAnd, normalOnly: true, ours: func(o *Offers) uint64 { return boolNumber(o.ImmediateData) }, apply: func(p *Params, n uint64, _ string) { p.ImmediateData = n == 1 }},
	"MaxRecvDataSegmentLength": {kind: kindDeclare, low: 512, top: 16777215, apply: func(p *Params, n uint64, _ string) {
		p.MaxSendDataSegment = uint32(n)
	}},
	"MaxBurstLength":      {kind: kindMin, low: 512, top: 16777215, normalOnly: true, ours: func(o *Offers) uint64 { return uint64(o.MaxBurstLength) }, apply: func(p *Params, n uint64, _ string) { p.MaxBurstLength = uint32(n) }},
	"FirstBurstLength":    {kind: kindMin, low: 512, top: 16777215, normalOnly: true, ours: func(o *Offers) uint64 { return uint64(o.FirstBurstLength) }, apply: func(p *Params, n uint64, _ string) { p.FirstBurstLength = uint32(n) }},
	"DefaultTime2Wait":    {kind: kindMax, top: 3600, ours: func(*Offers) uint64 { return 0 }, apply: func(p *Params, n uint64, _ string) { p.DefaultTime2Wait = uint32(n) }},
	"DefaultTime2Retain":  {kind: kindMin, top: 3600, ours: func(o *Offers) uint64 { return uint64(o.Time2Retain) }, apply: func(p *Params, n uint64, _ string) { p.DefaultTime2Retain = uint32(n) }},
	"MaxOutstandingR2T":   {kind: kindMin, low: 1, top: 65535, normalOnly: true, ours: func(o *Offers) uint64 { return uint64(o.MaxOutstandingR2T) }, apply: func(p *Params, n uint64, _ string) { p.MaxOutstandingR2T = uint32(n) }},
	"DataPDUInOrder":      {kind: kindOr, normalOnly: true, ours: func(*Offers) uint64 { return 1 }, apply: func(p *Params, n uint64, _ string) { p.DataPDUInOrder = n == 1 }},
	"DataSequenceInOrder": {kind: kindOr, normalOnly: true, ours: func(*Offers) uint64 { return 1 }, apply: func(p *Params, n uint64, _ string) { p.DataSequenceInOrder = n == 1 }},
	"ErrorRecoveryLevel":  {kind: kindMin, top: 2, ours: func(o *Offers) uint64 { return uint64(min(o.ErrorRecoveryLevel, 2)) }, apply: func(p *Params, n uint64, _ string) { p.ErrorRecoveryLevel = uint32(n) }},
	"TaskReporting":       {kind: kindList, normalOnly: true, known: []string{reportRFC3720, "ResponseFence", reportFastAbort}, apply: func(p *Params, _ uint64, s string) { p.TaskReporting = s }},
	"iSCSIProtocolLevel":  {kind: kindMin, top: 31, normalOnly: true, ours: func(*Offers) uint64 { return protocolLevel }, apply: func(p *Params, n uint64, _ string) { p.ProtocolLevel = uint32(n) }},
}

// Values of TaskReporting (RFC 7143 13.23) that make a difference: with both others responses are fenced, with the
// last one the initiator hears of tasks that somebody else aborts.
const (
	reportRFC3720   = "RFC3720"
	reportFastAbort = "FastAbort"
)

// connectionKeys are those of operationalKeys that each connection negotiates for itself.
var connectionKeys = []string{"HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength"}

// negotiator answers the operational keys of one login.
type negotiator struct {
	params    Params
	offers    Offers
	discovery bool
	joins     bool // not the leading connection of its session
	seen      map[string]bool
	declared  bool // our MaxRecvDataSegmentLength was sent
}

func newNegotiator(o Offers) *negotiator {
	return &negotiator{params: defaultParams(), offers: o, seen: map[string]bool{}}
}

// answer takes one key of the initiator and appends our answer, if one is due. An error is one that ends the
// login: the initiator broke the rules of negotiation.
func (n *negotiator) answer(b []byte, p pair) ([]byte, error) {
	if n.seen[p.key] {
		return b, fmt.Errorf("key %s was sent twice", p.key)
	}
	n.seen[p.key] = true
	switch p.key {
	case "IFMarker", "OFMarker":
		// RFC 7143 13.25: obsolete, answered No.
		return appendPair(b, p.key, "No"), nil
	case "IFMarkInt", "OFMarkInt":
		return appendPair(b, p.key, valueReject), nil
	case "TargetPortalGroupTag", "TargetAddress":
		// Only a target sends these.
		return b, fmt.Errorf("key %s from an initiator", p.key)
	case "SendTargets":
		// RFC 7143 13.4: not in a login.
		return appendPair(b, p.key, valueReject), nil
	}
	rule, ok := operationalKeys[p.key]
	if !ok {
		return appendPair(b, p.key, valueNotUnderstood), nil
	}
	if p.value == valueReject || p.value == valueIrrelevant || p.value == valueNotUnderstood {
		// An answer to what we never offered, or a refusal of a value; the default holds.
		return b, nil
	}
	if n.discovery && rule.normalOnly {
		return appendPair(b, p.key, valueIrrelevant), nil
	}
	if n.joins && !slices.Contains(connectionKeys, p.key) {
		// The session's keys were the leading connection's to negotiate (RFC 7143 13, "Use: LO").
		return appendPair(b, p.key, valueReject), nil
	}
	switch rule.kind {
	case kindList:
		known := rule.known
		if own := n.ownList(p.key); own != nil {
			known = own
		}
		for v := range strings.SplitSeq(p.value, ",") {
			if slices.Contains(known, v) {
				rule.apply(&n.params, 0, v)
				return appendPair(b, p.key, v), nil
			}
		}
		return appendPair(b, p.key, valueReject), nil
	case kindOr, kindAnd:
		if p.value != "Yes" && p.value != "No" {
			return appendPair(b, p.key, valueReject), nil
		}
		theirs, ours := p.value == "Yes", rule.ours(&n.offers) == 1
		result := theirs && ours
		if rule.kind == kindOr {
			result = theirs || ours
		}
		rule.apply(&n.params, boolNumber(result), "")
		if result {
			return appendPair(b, p.key, "Yes"), nil
		}
		return appendPair(b, p.key, "No"), nil
	}
	v, err := parseNumber(p.value)
	if err != nil || v < rule.low || v > rule.top {
		if rule.kind == kindDeclare {
			return b, fmt.Errorf("%s=%.40q is out of range", p.key, p.value)
		}
		return appendPair(b, p.key, valueReject), nil
	}
	switch rule.kind {
	case kindMin:
		v = min(v, rule.ours(&n.offers))
		switch {
		case p.key == "DefaultTime2Retain" && n.params.ErrorRecoveryLevel < 2:
			v = 0 // nothing is kept of a connection that is lost
		case p.key == "FirstBurstLength":
			v = min(v, uint64(n.params.MaxBurstLength)) // RFC 7143 13.14: it must not exceed MaxBurstLength
		}
	case kindMax:
		v = max(v, rule.ours(&n.offers))
	}
	rule.apply(&n.params, v, "")
	if rule.kind == kindDeclare {
		return b, nil
	}
	return appendPair(b, p.key, strconv.FormatUint(v, 10)), nil
}

// ownList is the configured subset of a list key's values, if there is one.
func (n *negotiator) ownList(key string) []string {
	switch key {
	case "HeaderDigest":
		return n.offers.HeaderDigest
	case "DataDigest":
		return n.offers.DataDigest
	}
	return nil
}

// declare appends what we tell by ourselves in the operational stage, once.
func (n *negotiator) declare(b []byte) []byte {
	if n.declared {
		return b
	}
	n.declared = true
	n.params.MaxRecvDataSegment = n.offers.MaxRecvDataSegment
	if n.discovery { // whoever it is may open it: nothing that it has to say is long
		n.params.MaxRecvDataSegment = min(n.params.MaxRecvDataSegment, discoverySegment)
	}
	return appendPair(b, "MaxRecvDataSegmentLength", strconv.FormatUint(uint64(n.params.MaxRecvDataSegment), 10))
}

// result checks the whole once the login is over.
func (n *negotiator) result() Params {
	p := n.params
	// RFC 7143 13.14: FirstBurstLength must not exceed MaxBurstLength.
	p.FirstBurstLength = min(p.FirstBurstLength, p.MaxBurstLength)
	return p
}
