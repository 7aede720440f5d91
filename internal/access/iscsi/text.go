package iscsi

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Limits of text (RFC 7143 6.1): a key has at most 63 bytes, a value at most 255 unless its definition says
// otherwise; the bound of a whole negotiation is ours, against initiators that never stop.
const (
	keyLenMax   = 63
	valueLenMax = 2 + 2*binaryMax // the longest that any key of RFC 7143 allows: CHAP_C and CHAP_R in hexadecimal digits
	binaryMax   = 1024            // bytes of a large binary value, before it is encoded (RFC 7143 12.1.3)
	textLenMax  = 64 << 10
)

// pair is one key and its value.
type pair struct{ key, value string }

// parseText splits a data segment into its pairs.
func parseText(b []byte) ([]pair, error) {
	var pairs []pair
	for len(b) > 0 {
		end := bytes.IndexByte(b, 0)
		if end < 0 {
			end = len(b) // a last pair without its null: seen in the wild, unambiguous
		}
		item := b[:end]
		b = b[min(end+1, len(b)):]
		if len(item) == 0 {
			continue // padding counted as data, or a null too many
		}
		key, value, ok := strings.Cut(string(item), "=")
		switch {
		case !ok || key == "":
			return nil, fmt.Errorf("text %.40q is not key=value", item)
		case len(key) > keyLenMax:
			return nil, fmt.Errorf("key %.40q… has %d bytes", key, len(key))
		case len(value) > valueLenMax:
			return nil, fmt.Errorf("value of %s has %d bytes", key, len(value))
		}
		pairs = append(pairs, pair{key, value})
	}
	return pairs, nil
}

// appendPair encodes one pair.
func appendPair(b []byte, key, value string) []byte {
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, 0)
}

// parseNumber takes a numerical value (RFC 7143 6.1: decimal or 0x hexadecimal constant).
func parseNumber(s string) (uint64, error) {
	if h, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		return strconv.ParseUint(h, 16, 64)
	}
	return strconv.ParseUint(s, 10, 64)
}

// The values that stand for an answer rather than a value.
const (
	valueNone          = "None"
	valueReject        = "Reject"
	valueIrrelevant    = "Irrelevant"
	valueNotUnderstood = "NotUnderstood"
)
