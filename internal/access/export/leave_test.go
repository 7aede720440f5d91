package export

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestAStopWaitsAsLongAsItSays: an initiator that is asked to log out has all of the time that the message names (RFC 7143 11.9.1), which
// is in whole seconds; and nobody waits for one that has gone.
func TestAStopWaitsAsLongAsItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, stays := range []time.Duration{100 * time.Millisecond, time.Hour} {
			began := time.Now()
			var told time.Duration
			askAndWait(func(within time.Duration) { told = within }, func() int {
				if time.Since(began) < stays {
					return 1
				}
				return 0
			})
			took := time.Since(began)
			if told < time.Second || told%time.Second != 0 {
				t.Errorf("initiators are told %v", told)
			}
			if took < min(stays, told) || took > min(stays, told+time.Second) {
				t.Errorf("one that stays for %v and was told %v is waited for for %v", stays, told, took)
			}
		}
	})
}
