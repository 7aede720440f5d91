package export

import (
	"testing"
	"time"
)

// TestAStopWaitsAsLongAsItSays: an initiator that is asked to log out has all of the time that the message names (RFC 7143 11.9.1), which
// is in whole seconds.
func TestAStopWaitsAsLongAsItSays(t *testing.T) {
	if stopLogout%time.Second != 0 || stopPatience < stopLogout {
		t.Errorf("initiators are told %v, and the node goes on after %v", stopLogout, stopPatience)
	}
}
