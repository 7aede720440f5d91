package iscsi

import (
	"net/netip"
	"testing"
)

// What nobody fetches is bounded, for one address and for all, and the oldest goes.
func TestUntold(t *testing.T) {
	u := untold{max: 1600}
	one, two := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	there := func(a *answer) bool { _, more := u.part(a, 1); return more }
	other := u.keep(two, make([]byte, 100))
	var list []*answer
	for range 30 {
		list = append(list, u.keep(one, make([]byte, 100)))
		if u.from[one] > 1200 || u.bytes > 1600 {
			t.Fatalf("%d bytes of one address, %d of all", u.from[one], u.bytes)
		}
	}
	for i, a := range list {
		if there(a) != (i >= 18) {
			t.Errorf("answer %d of 30: %v", i, there(a))
		}
	}
	if !there(other) {
		t.Error("another address's answer is gone")
	}
	three := netip.MustParseAddr("10.0.0.3")
	for range 5 {
		u.keep(three, make([]byte, 100))
	}
	if u.bytes != 1600 || there(list[19]) || !there(list[29]) || !there(other) {
		t.Errorf("%d bytes of all; of who has most the oldest is there: %v, the newest: %v; of another: %v", u.bytes, there(list[19]), there(list[29]), there(other))
	}
	// One that is larger than all may be is told, alone.
	large := u.keep(one, make([]byte, 5000))
	if !there(large) || u.bytes != 5000 || len(u.list) != 1 {
		t.Errorf("%d bytes in %d answers", u.bytes, len(u.list))
	}
	if b, more := u.part(large, 10000); len(b) != 4999 || more {
		t.Errorf("%d bytes of the rest, more: %v", len(b), more)
	}
	u.drop(large)
	u.drop(large)
	u.drop(nil)
	if u.bytes != 0 || len(u.list) != 0 || len(u.from) != 0 {
		t.Errorf("%d bytes, %d addresses are left", u.bytes, len(u.from))
	}
}
