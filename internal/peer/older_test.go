package peer

import (
	"errors"
	"testing"

	"dozo/internal/wire"
)

// What an older node does not know is not sent to it.
func TestNothingIsSentThatTheOtherDoesNotKnow(t *testing.T) {
	p := new(Peer)
	p.at.Store(&Addr{Node: "old"})
	c := &client{link: &link{version: 1}, peer: p}
	for _, m := range []wire.Message{&wire.Blocks{}, &wire.Bar{Kind: wire.BarForget}} {
		if err := c.send(&call{msg: m}); !errors.Is(err, wire.ErrVersion) {
			t.Errorf("%s: %v", m.Type(), err)
		}
	}
}
