package initiator

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// KeyValue is one key of a login or text exchange.
type KeyValue struct{ Key, Value string }

// appendKeys encodes kvs as a text segment: "key=value" each with a NUL after it.
func appendKeys(dst []byte, kvs []KeyValue) []byte {
	for _, kv := range kvs {
		dst = append(dst, kv.Key...)
		dst = append(dst, '=')
		dst = append(dst, kv.Value...)
		dst = append(dst, 0)
	}
	return dst
}

// parseKeys decodes a text segment.
func parseKeys(b []byte) ([]KeyValue, error) {
	var out []KeyValue
	for len(b) > 0 {
		item, rest, _ := bytes.Cut(b, []byte{0})
		b = rest
		if len(item) == 0 {
			continue // padding that some targets count in the length
		}
		k, v, ok := strings.Cut(string(item), "=")
		// RFC 7143 6.1: a key name has at most 63 bytes.
		if !ok || k == "" || len(k) > 63 {
			return nil, fmt.Errorf("text segment: no key in %q", string(item[:min(len(item), 80)]))
		}
		out = append(out, KeyValue{k, v})
	}
	return out, nil
}

// Offer is what this side proposes at login.
type Offer struct {
	HeaderDigest, DataDigest string // lists in order of preference: "None", "CRC32C", "CRC32C,None"
	MaxConnections           int
	InitialR2T               bool
	ImmediateData            bool
	MaxRecvDataSegmentLength int // ours: the longest data segment that the target may send
	MaxBurstLength           int
	FirstBurstLength         int
	DefaultTime2Wait         int // seconds
	DefaultTime2Retain       int // seconds
	MaxOutstandingR2T        int
	DataPDUInOrder           bool
	DataSequenceInOrder      bool
	ErrorRecoveryLevel       int
}

// DefaultOffer favours few round trips: immediate and unsolicited data, long bursts, several R2Ts.
func DefaultOffer() Offer {
	return Offer{
		HeaderDigest: "None", DataDigest: "None",
		MaxConnections: 1,
		InitialR2T:     false, ImmediateData: true,
		MaxRecvDataSegmentLength: 256 << 10,
		MaxBurstLength:           16<<20 - 512,
		FirstBurstLength:         256 << 10,
		DefaultTime2Wait:         0, DefaultTime2Retain: 20,
		MaxOutstandingR2T: 8,
		DataPDUInOrder:    true, DataSequenceInOrder: true,
	}
}

// Params is what a login agreed on.
type Params struct {
	HeaderDigest, DataDigest       bool // CRC32C
	MaxConnections                 int
	InitialR2T, ImmediateData      bool
	MaxRecvDataSegmentLength       int // what the target may send
	TargetMaxRecvDataSegmentLength int // what we may send
	MaxBurstLength                 int
	FirstBurstLength               int
	DefaultTime2Wait               int
	DefaultTime2Retain             int
	MaxOutstandingR2T              int
	DataPDUInOrder                 bool
	DataSequenceInOrder            bool
	ErrorRecoveryLevel             int
	TargetAlias                    string
	TargetPortalGroupTag           string
}

// defaultParams are the values of keys that were not negotiated (RFC 7143 13).
func defaultParams() Params {
	return Params{
		MaxConnections: 1, InitialR2T: true, ImmediateData: true,
		MaxRecvDataSegmentLength: 8192, TargetMaxRecvDataSegmentLength: 8192,
		MaxBurstLength: 262144, FirstBurstLength: 65536,
		DefaultTime2Wait: 2, DefaultTime2Retain: 20, MaxOutstandingR2T: 1,
		DataPDUInOrder: true, DataSequenceInOrder: true,
	}
}

func yesNo(b bool) string {
	if b {
		return "Yes"
	}
	return "No"
}

// keys lists the operational keys of o in the order in which they are sent. A leading connection sends all of
// them, a later one only those of a connection.
func (o *Offer) keys(leading bool) []KeyValue {
	n := strconv.Itoa
	kvs := []KeyValue{
		{"HeaderDigest", o.HeaderDigest},
		{"DataDigest", o.DataDigest},
		{"MaxRecvDataSegmentLength", n(o.MaxRecvDataSegmentLength)},
	}
	if !leading {
		return kvs
	}
	return append(kvs,
		KeyValue{"MaxConnections", n(o.MaxConnections)},
		KeyValue{"InitialR2T", yesNo(o.InitialR2T)},
		KeyValue{"ImmediateData", yesNo(o.ImmediateData)},
		KeyValue{"MaxBurstLength", n(o.MaxBurstLength)},
		KeyValue{"FirstBurstLength", n(o.FirstBurstLength)},
		KeyValue{"DefaultTime2Wait", n(o.DefaultTime2Wait)},
		KeyValue{"DefaultTime2Retain", n(o.DefaultTime2Retain)},
		KeyValue{"MaxOutstandingR2T", n(o.MaxOutstandingR2T)},
		KeyValue{"DataPDUInOrder", yesNo(o.DataPDUInOrder)},
		KeyValue{"DataSequenceInOrder", yesNo(o.DataSequenceInOrder)},
		KeyValue{"ErrorRecoveryLevel", n(o.ErrorRecoveryLevel)},
	)
}

// keyRule says how the value of a key comes about (RFC 7143 13).
type keyRule struct {
	kind   byte // 'l' list, 'm' minimum, 'M' maximum, '|' or, '&' and, 'd' declared by each side
	lo, hi int  // range of numbers
	num    func(*Params) *int
	flag   func(*Params) *bool
}

var keyRules = map[string]keyRule{
	"HeaderDigest":             {kind: 'l', flag: func(p *Params) *bool { return &p.HeaderDigest }},
	"DataDigest":               {kind: 'l', flag: func(p *Params) *bool { return &p.DataDigest }},
	"MaxConnections":           {kind: 'm', lo: 1, hi: 65535, num: func(p *Params) *int { return &p.MaxConnections }},
	"InitialR2T":               {kind: '|', flag: func(p *Params) *bool { return &p.InitialR2T }},
	"ImmediateData":            {kind: '&', flag: func(p *Params) *bool { return &p.ImmediateData }},
	"MaxRecvDataSegmentLength": {kind: 'd', lo: 512, hi: maxDataLen, num: func(p *Params) *int { return &p.TargetMaxRecvDataSegmentLength }},
	"MaxBurstLength":           {kind: 'm', lo: 512, hi: maxDataLen, num: func(p *Params) *int { return &p.MaxBurstLength }},
	"FirstBurstLength":         {kind: 'm', lo: 512, hi: maxDataLen, num: func(p *Params) *int { return &p.FirstBurstLength }},
	"DefaultTime2Wait":         {kind: 'M', lo: 0, hi: 3600, num: func(p *Params) *int { return &p.DefaultTime2Wait }},
	"DefaultTime2Retain":       {kind: 'm', lo: 0, hi: 3600, num: func(p *Params) *int { return &p.DefaultTime2Retain }},
	"MaxOutstandingR2T":        {kind: 'm', lo: 1, hi: 65535, num: func(p *Params) *int { return &p.MaxOutstandingR2T }},
	"DataPDUInOrder":           {kind: '|', flag: func(p *Params) *bool { return &p.DataPDUInOrder }},
	"DataSequenceInOrder":      {kind: '|', flag: func(p *Params) *bool { return &p.DataSequenceInOrder }},
	"ErrorRecoveryLevel":       {kind: 'm', lo: 0, hi: 2, num: func(p *Params) *int { return &p.ErrorRecoveryLevel }},
}

// negotiation is the state of one login's operational keys.
type negotiation struct {
	params  Params
	offered map[string]string
	settled map[string]bool
	lenient bool // accept results that no rule allows: forced keys make targets answer oddly
}

func newNegotiation(base Params, sent []KeyValue, lenient bool) *negotiation {
	n := &negotiation{params: base, offered: map[string]string{}, settled: map[string]bool{}, lenient: lenient}
	for _, kv := range sent {
		n.offered[kv.Key] = kv.Value
		if kv.Key == "MaxRecvDataSegmentLength" {
			if v, err := strconv.ParseInt(kv.Value, 0, 32); err == nil && v >= 512 && v <= maxDataLen {
				n.params.MaxRecvDataSegmentLength = int(v)
			}
		}
	}
	return n
}

// receive takes a key from the target and returns what to answer it with, if anything.
func (n *negotiation) receive(kv KeyValue) (answer *KeyValue, err error) {
	switch kv.Key {
	case "TargetAlias":
		n.params.TargetAlias = kv.Value
		return nil, nil
	case "TargetPortalGroupTag":
		n.params.TargetPortalGroupTag = kv.Value
		return nil, nil
	case "AuthMethod", "TargetAddress", "TargetName":
		return nil, nil
	}
	rule, known := keyRules[kv.Key]
	offer, offered := n.offered[kv.Key]
	if !known {
		if offered {
			return nil, nil // an answer to an extra key of the caller
		}
		return &KeyValue{kv.Key, "NotUnderstood"}, nil
	}
	switch kv.Value {
	case "Reject", "Irrelevant", "NotUnderstood":
		if kv.Value == "Reject" && !n.lenient {
			return nil, fmt.Errorf("login: target rejects %s=%s", kv.Key, offer)
		}
		return nil, nil // the default stands
	}
	if n.settled[kv.Key] && rule.kind != 'd' {
		return nil, fmt.Errorf("login: target negotiates %s twice", kv.Key)
	}
	n.settled[kv.Key] = true
	value, err := n.settle(kv, rule, offer, offered)
	if err != nil {
		return nil, err
	}
	if offered || rule.kind == 'd' {
		return nil, nil
	}
	return &KeyValue{kv.Key, value}, nil
}

// settle computes the value of a key from both offers, or checks the target's result of ours, and stores it.
func (n *negotiation) settle(kv KeyValue, rule keyRule, offer string, offered bool) (string, error) {
	bad := func() (string, error) {
		return "", fmt.Errorf("login: target answers %s=%s to our %q", kv.Key, kv.Value, offer)
	}
	switch rule.kind {
	case 'l':
		choice := ""
		for v := range strings.SplitSeq(kv.Value, ",") {
			if v == "None" || v == "CRC32C" {
				choice = v
				break
			}
		}
		if offered && (strings.Contains(kv.Value, ",") || !listHas(offer, kv.Value)) && !n.lenient {
			return bad()
		}
		if choice == "" {
			return bad()
		}
		*rule.flag(&n.params) = choice == "CRC32C"
		return choice, nil
	case '|', '&':
		if kv.Value != "Yes" && kv.Value != "No" {
			return bad()
		}
		v := kv.Value == "Yes"
		if offered && !n.lenient {
			// The result function of a boolean leaves the answerer no freedom where our value decides.
			ours := offer == "Yes"
			if rule.kind == '|' && ours && !v || rule.kind == '&' && !ours && v {
				return bad()
			}
		}
		*rule.flag(&n.params) = v
		return yesNo(v), nil
	}
	v, err := strconv.ParseInt(kv.Value, 0, 64)
	if err != nil || v < int64(rule.lo) || v > int64(rule.hi) {
		return bad()
	}
	if ours, err := strconv.ParseInt(offer, 0, 64); offered && err == nil && !n.lenient {
		if rule.kind == 'm' && v > ours || rule.kind == 'M' && v < ours {
			return bad()
		}
	}
	*rule.num(&n.params) = int(v)
	return kv.Value, nil
}

func listHas(list, v string) bool {
	for x := range strings.SplitSeq(list, ",") {
		if x == v {
			return true
		}
	}
	return false
}
