package iscsi

import (
	"context"
	"testing"
)

func FuzzParseText(f *testing.F) {
	f.Add([]byte("InitiatorName=iqn.x\x00TargetName=iqn.y\x00"))
	f.Add([]byte("a=b"))
	f.Add([]byte("=\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		pairs, err := parseText(b)
		if err != nil {
			return
		}
		var again []byte
		for _, p := range pairs {
			again = appendPair(again, p.key, p.value)
		}
		back, err := parseText(again)
		if err != nil || len(back) != len(pairs) {
			t.Fatalf("%q parsed, but not %q: %v", b, again, err)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add(make([]byte, bhsLen), []byte{0, 5, 2, 0, 0, 0, 2, 0})
	f.Add([]byte{1, 0x80, 0, 0, 2, 0, 0, 4}, []byte{0, 1, 1, 0})
	f.Fuzz(func(t *testing.T, b, ahs []byte) {
		var h header
		copy(h[:], b)
		if checkHeader(&h, 8192) == nil && h.dataLen() > 8192 {
			t.Fatal("a data segment beyond the limit was let through")
		}
		_, _ = parseAHS(ahs)
	})
}

func FuzzParseBinary(f *testing.F) {
	f.Add("0x0a")
	f.Add("0bAAAA")
	f.Fuzz(func(_ *testing.T, s string) { _, _ = parseBinary(s) })
}

// fuzzProvider wants CHAP of everybody.
type fuzzProvider struct{ required bool }

func (fuzzProvider) Targets(context.Context, Peer) ([]TargetInfo, error) { return nil, nil }
func (p fuzzProvider) Credentials(context.Context, Peer, string) (Credentials, error) {
	return Credentials{Required: p.required, In: Secret{"a", "b"}, Out: Secret{"c", "d"}}, nil
}
func (fuzzProvider) Login(context.Context, Peer, string, [6]byte) (Target, error) {
	return nil, ErrTargetNotFound
}
func (fuzzProvider) Opened(*Session) {}
func (fuzzProvider) Closed(*Session) {}

// FuzzLogin sends a login machine any sequence of requests: it never panics, and never lets one through
// without the proof that is required.
func FuzzLogin(f *testing.F) {
	first := "InitiatorName=iqn.x\x00TargetName=iqn.y\x00AuthMethod=CHAP,None\x00"
	f.Add(byte(0x81), []byte(first), byte(0x81), []byte("CHAP_A=5\x00"), byte(0x87), []byte("CHAP_N=a\x00CHAP_R=0x00\x00"), true)
	f.Add(byte(0x87), []byte(first), byte(0x40), []byte("x"), byte(0x87), []byte{}, false)
	f.Add(byte(0x04), []byte(first), byte(0x87), []byte("MaxBurstLength=512\x00"), byte(0x87), []byte{}, false)
	f.Fuzz(func(t *testing.T, f1 byte, t1 []byte, f2 byte, t2 []byte, f3 byte, t3 []byte, required bool) {
		l := newLogin(fuzzProvider{required}, Peer{Group: 1}, DefaultOffers())
		for _, x := range []struct {
			flags byte
			text  []byte
		}{{f1, t1}, {f2, t2}, {f3, t3}} {
			var h header
			h[0], h[1] = 0x43, x.flags
			r := l.step(t.Context(), &h, x.text)
			if r.status != statusSuccess {
				if r.why == nil {
					t.Fatal("a refusal without a reason")
				}
				return
			}
			if len(r.text) > replyTextMax {
				t.Fatalf("%d bytes of text", len(r.text))
			}
			if r.finished {
				if required && !l.proved {
					t.Fatal("a login without proof")
				}
				return
			}
		}
	})
}

func TestLoginStatusOfEveryError(t *testing.T) {
	for err, want := range map[error]loginStatus{
		ErrTargetNotFound: statusNotFound, ErrTargetRemoved: statusRemoved, ErrNotAuthorized: statusAuthorization,
		ErrServiceUnavailable: statusUnavailable, ErrOutOfResources: statusOutOfResources,
		context.DeadlineExceeded: statusUnavailable, context.Canceled: statusTargetError,
		&RedirectError{Permanent: true}: statusMovedPermanently, &RedirectError{}: statusMovedTemporarily,
	} {
		if got := loginStatusOf(err); got != want {
			t.Errorf("%v: %#04x, want %#04x", err, got, want)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	if s := (Secret{"name", "hush"}).String(); s != "name:***" {
		t.Error(s)
	}
}
