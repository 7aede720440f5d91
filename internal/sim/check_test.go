package sim

import (
	"strings"
	"testing"

	"dozo/internal/wire"
)

// A write with FUA is stable with all before it, and with nothing behind it: after a takeover that is not proven the block may
// be as it was at any moment since that write, and at none before it.
func TestAWriteWithFUACoversWhatIsBeforeIt(t *testing.T) {
	write := func(v uint32, sector, count int, fua bool) opIn {
		return opIn{kind: wire.OpWrite, sector: sector, count: count, value: v, fua: fua}
	}
	all := func(v uint32) (s blockState) {
		for i := range s {
			s[i] = v
		}
		return s
	}
	for _, x := range []struct {
		name string
		read blockState
		ok   bool
	}{
		{"with what was written after it", func() blockState { s := all(2); s[6] = 3; return s }(), true},
		{"as it left it", all(2), true},
		{"as it was before", all(1), false},
	} {
		t.Run(x.name, func(t *testing.T) {
			h := &history{}
			first := h.tick()
			h.done(write(1, 0, sectors, false), opOut{epoch: 1, same: true}, first)
			flushed := h.tick()
			later := h.tick()
			h.done(write(3, 6, 1, false), opOut{epoch: 1, same: true}, later)
			h.done(write(2, 0, sectors, true), opOut{epoch: 1, same: true}, flushed)
			h.wentBack(2, false)
			read := h.tick()
			h.done(opIn{kind: wire.OpRead}, opOut{epoch: 2, read: x.read}, read)
			if s := h.check(1, false); (s == "") != x.ok {
				t.Errorf("%q", s)
			} else if s != "" && !strings.Contains(s, "not linearizable") {
				t.Error(s)
			}
		})
	}
}
