package access

import (
	"testing"
	"time"
)

// What is seen of a link of 10 MB/s through answers that come in bursts, while it is busy and while it is not.
func TestLinkRate(t *testing.T) {
	const rate = 10e6
	var l linkRate
	at := time.Unix(1000, 0)
	var got float64
	for i := range 60 { // answers come four times a second
		got = l.add(at, uint64(rate*0.25*float64(i/5)), true)
		at = at.Add(lagLook)
	}
	if got < 0.85*rate || got > 1.3*rate {
		t.Errorf("busy: %.0f", got)
	}
	bytes := uint64(rate * 0.25 * 12)
	for range 60 {
		bytes += uint64(1e6 * lagLook.Seconds())
		got = l.add(at, bytes, false)
		at = at.Add(lagLook)
	}
	if got < 0.9e6 || got > 1.2e6 || len(l.seen) > 25 {
		t.Errorf("not busy: %.0f of %d looks", got, len(l.seen))
	}
}
