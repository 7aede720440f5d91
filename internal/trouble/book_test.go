package trouble

import (
	"testing"
	"time"

	"dozo/internal/ident"
)

const sec = int64(time.Second)

// see is one look that finds the keys.
func see(b *Book, now int64, inherit bool, keys ...Key) {
	b.Observe(now, func(saw func(Key, bool)) {
		for _, k := range keys {
			saw(k, inherit)
		}
	})
}

func held(t *testing.T, b *Book, now int64, k Key, want int64) {
	t.Helper()
	if first, ok := b.Since(now, k); !ok || first != want {
		t.Errorf("at %d s: since %d s, %v; want %d s", now/sec, first/sec, ok, want/sec)
	}
}

// tell has b ask a, as nodes do.
func tell(now int64, a *Book, aName string, aInstance uint64, b *Book, bName string, bInstance uint64) {
	instance, after := b.Told(aName)
	if instance != aInstance || after == 0 {
		after = 0
		b.Recall(now, a.Remembered(now, bName, bInstance))
	}
	list, version := a.Changes(now, after)
	b.Learn(now, aName, aInstance, after, version, list)
}

var behind = Key{Reason: "VOLUME_BEHIND", Journal: ident.JournalID{1}, Of: "site-2"}

func TestFlapping(t *testing.T) {
	b := NewBook()
	see(b, 100*sec, false, behind)
	see(b, 102*sec, false)
	see(b, 104*sec, false, behind) // back soon: the same
	held(t, b, 104*sec, behind, 100*sec)
	see(b, 106*sec, false)
	see(b, 106*sec+int64(Hysteresis)-sec, false)
	if b.Held() != 1 {
		t.Error("it is over before its time")
	}
	see(b, 106*sec+int64(Hysteresis), false)
	if b.Held() != 0 {
		t.Error("it is not over")
	}
	see(b, 200*sec, false, behind)
	held(t, b, 200*sec, behind, 200*sec)
}

// A process that does not run for a while sees nothing meanwhile, which says nothing.
func TestAStallEndsNothing(t *testing.T) {
	b := NewBook()
	see(b, 100*sec, false, behind)
	see(b, 1000*sec, false)
	see(b, 1001*sec, false, behind)
	held(t, b, 1001*sec, behind, 100*sec)
}

func TestWhoTakesOverInherits(t *testing.T) {
	a, b := NewBook(), NewBook()
	see(a, 10*sec, false, behind)
	tell(20*sec, a, "a", 1, b, "b", 2)
	held(t, b, 20*sec, behind, 10*sec) // by a's word
	// a dies; b takes its volumes over, and finds out a minute later that the site is still behind.
	for now := 22 * sec; now < 80*sec; now += 2 * sec {
		see(b, now, true)
	}
	see(b, 3000*sec, true, behind)
	held(t, b, 3000*sec, behind, 3000*sec) // too long ago to be the same
	c := NewBook()
	tell(20*sec, a, "a", 1, c, "c", 3)
	for now := 22 * sec; now < 100*sec; now += 2 * sec {
		see(c, now, true)
	}
	see(c, 100*sec, true, behind)
	held(t, c, 100*sec, behind, 10*sec)
}

// What a node sees by itself begins when it sees it, whatever another one that is cut off has said for hours.
func TestNobodyInheritsWhatItWatched(t *testing.T) {
	down := Key{Reason: "NODE_DOWN", Of: "n"}
	a, b := NewBook(), NewBook()
	see(a, 10*sec, false, down)
	tell(20*sec, a, "a", 1, b, "b", 2)
	see(b, 22*sec, false, down)
	held(t, b, 22*sec, down, 22*sec)
}

func TestARestartedNodeHearsWhatItKnew(t *testing.T) {
	a, b := NewBook(), NewBook()
	see(a, 10*sec, false, behind)
	tell(20*sec, a, "a", 1, b, "b", 2)
	for _, first := range []string{"asks", "is asked"} {
		anew := NewBook()
		see(anew, 29*sec, true, behind) // before it has heard anybody
		if first == "is asked" {
			tell(30*sec, anew, "a", 11, b, "b", 2)
		}
		tell(30*sec, b, "b", 2, anew, "a", 11)
		see(anew, 31*sec, true, behind)
		held(t, anew, 31*sec, behind, 10*sec)
		tell(32*sec, anew, "a", 11, b, "b", 2)
		held(t, b, 32*sec, behind, 10*sec)
	}
}

// a dies while something is wrong; b sees it end, and a begins anew when it is wrong again.
func TestAnEndIsAnEndForWhatIsRemembered(t *testing.T) {
	for _, early := range []bool{true, false} { // b hears that a began anew before it sees the end, and after
		a, b := NewBook(), NewBook()
		see(a, 10*sec, false, behind)
		see(b, 10*sec, false, behind)
		tell(20*sec, a, "a", 1, b, "b", 2)
		if early {
			b.Remembered(22*sec, "a", 11)
		}
		see(b, 24*sec, false)
		see(b, 40*sec, false)
		see(b, 44*sec, false, behind)
		anew := NewBook()
		tell(45*sec, b, "b", 2, anew, "a", 11)
		see(anew, 46*sec, true, behind)
		held(t, anew, 46*sec, behind, 44*sec)
	}
}

func TestWhatIsOverIsTold(t *testing.T) {
	a, b := NewBook(), NewBook()
	see(a, 10*sec, false, behind)
	tell(11*sec, a, "a", 1, b, "b", 2)
	see(a, 12*sec, false)
	see(a, 40*sec, false)
	tell(41*sec, a, "a", 1, b, "b", 2)
	see(b, 42*sec, true, behind) // b is the owner now: it did end meanwhile
	held(t, b, 42*sec, behind, 42*sec)
	if list, _ := a.Changes(43*sec, 0); len(list) != 0 {
		t.Errorf("who knows nothing is told of ends: %v", list)
	}
	if list, v := a.Changes(43*sec, a.Version()); len(list) != 0 || v != a.Version() {
		t.Errorf("nothing has changed: %v", list)
	}
}

// Ages, not times, are told: nodes' clocks may have nothing in common.
func TestClocksNeedNotAgree(t *testing.T) {
	a, b := NewBook(), NewBook()
	see(a, 10*sec, false, behind)
	list, v := a.Changes(70*sec, 0)
	b.Learn(100_000*sec, "a", 1, 0, v, list)
	held(t, b, 100_000*sec, behind, 100_000*sec-60*sec)
}

// An answer that was overtaken by a newer one changes nothing; one that builds on what was forgotten is asked for anew.
func TestAnswersOutOfOrder(t *testing.T) {
	a, b := NewBook(), NewBook()
	see(a, 10*sec, false, behind)
	old, v1 := a.Changes(11*sec, 0)
	b.Learn(11*sec, "a", 1, 0, v1, old)
	see(a, 12*sec, false)
	see(a, 40*sec, false)
	over, v2 := a.Changes(41*sec, v1)
	b.Learn(41*sec, "a", 1, v1, v2, over)
	b.Learn(42*sec, "a", 1, v1, v1, old) // late
	see(b, 43*sec, true, behind)
	held(t, b, 43*sec, behind, 43*sec)
	c := NewBook()
	c.Learn(42*sec, "a", 1, v1, v2, over)
	if i, v := c.Told("a"); i != 0 || v != 0 {
		t.Errorf("changes to what is not known were taken: %d, %d", i, v)
	}
}

// What no look finds holds since somebody found it first, for as long as somebody goes on asking.
func TestAskedFor(t *testing.T) {
	b := NewBook()
	held(t, b, 10*sec, behind, 10*sec)
	for now := 20 * sec; now < 2000*sec; now += 300 * sec {
		see(b, now, false)
		held(t, b, now, behind, 10*sec)
	}
	see(b, 9000*sec, false)
	held(t, b, 9000*sec, behind, 9000*sec)
}

func TestMemoryIsBounded(t *testing.T) {
	a, b := NewBook(), NewBook()
	const most = 1000
	a.most, b.most = most, most
	key := func(i int) Key {
		return Key{Reason: "R", Journal: ident.JournalID{byte(i), byte(i >> 8), byte(i >> 16)}}
	}
	a.Observe(sec, func(saw func(Key, bool)) {
		for i := range most + 10 {
			saw(key(i), false)
		}
	})
	if a.Held() != most {
		t.Errorf("%d are held", a.Held())
	}
	if _, ok := a.Since(sec, key(most+5)); ok {
		t.Error("what did not fit has a time")
	}
	list, v := a.Changes(sec, 0)
	list = append(list, Change{Key: key(Most + 7)})
	b.Learn(sec, "a", 1, 0, v, list)
	if n := len(b.mu.others["a"].first); n != most {
		t.Errorf("%d of another node are held", n)
	}
	see(a, 2*sec, false)
	see(a, 100*sec, false)
	see(a, 100*sec+2*int64(overKept), false)
	see(b, 1000*sec, false)
	see(b, 1000*sec+2*int64(Kept), false)
	if len(a.mu.own) != 0 || len(b.mu.others) != 0 || len(b.mu.late) != 0 {
		t.Errorf("left: %d, %d, %d", len(a.mu.own), len(b.mu.others), len(b.mu.late))
	}
}

// BenchmarkLook is one look at 10,000 troubles that hold.
func BenchmarkLook(b *testing.B) {
	k := NewBook()
	var keys []Key
	for i := range 10_000 {
		keys = append(keys, Key{Reason: "VOLUME_BEHIND", Journal: ident.JournalID{byte(i), byte(i >> 8)}, Of: "site-2"})
	}
	b.ReportAllocs()
	for i := range b.N {
		see(k, int64(i)*sec, false, keys...)
	}
}
