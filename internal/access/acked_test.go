package access

import (
	"math/rand/v2"
	"testing"

	"dozo/internal/wire"
)

// Against a list of all writes: the newest one of a sector decides, and where older ones of other sessions are remembered
// beside it, that makes it no less strict.
func TestAckedAgainstList(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		s := newAcked()
		type write struct {
			first, count uint64
			ack
		}
		var list []write
		for tick := range uint64(60) {
			n := 1 + rnd.Uint64N(20)
			if rnd.IntN(3) == 0 {
				n = 1 + rnd.Uint64N(1200)
			}
			w := write{rnd.Uint64N(2400), n, ack{tick, 1 + rnd.Uint64N(3)}}
			if rnd.IntN(2) == 0 { // whole blocks
				w.first, w.count = w.first/blockSectors*blockSectors, (n+blockSectors-1)/blockSectors*blockSectors
			}
			s.note(w.first, w.count, w.ack)
			list = append(list, w)

			first, count, session, stamp := rnd.Uint64N(2800), 1+rnd.Uint64N(400), 1+rnd.Uint64N(4), rnd.Uint64N(60)
			if rnd.IntN(10) == 0 {
				count = 1 << 40
			}
			must, may := false, false
			for b := first; b < min(first+count, 4000); b++ {
				var last ack
				for _, w := range list {
					if b >= w.first && b < w.first+w.count {
						last = w.ack
						may = may || w.session != session && stamp <= w.tick
					}
				}
				must = must || last.session != 0 && last.session != session && stamp <= last.tick
			}
			if got := s.newer(first, count, session, stamp); got && !may || !got && must {
				t.Fatalf("sectors %d+%d of session %d, stamp %d: %v; must be %v, may be %v", first, count, session, stamp, got, must, may)
			}
		}
	}
	var none *acked
	if none.newer(0, 5, 1, 0) {
		t.Error("nothing was written, and it is newer")
	}
}

// An initiator with one session left costs what one costs that never had two, and what the other one wrote is not forgotten too early.
func TestLateSingleAgain(t *testing.T) {
	l := newLate()
	op := func(session, tick, first uint64) *Op {
		return &Op{Kind: wire.OpWrite, Nexus: &wire.Nexus{Initiator: "iqn.a"}, Session: session, Stamp: wire.Stamp{Tick: tick}, Offset: int64(first) * 4096, Length: 4096}
	}
	epoch := op(0, 0, 0).Stamp.Epoch
	write := func(session, now, first uint64) {
		t.Helper()
		x := op(session, now, first)
		if err := l.check(x, epoch, now); err != nil {
			t.Fatal(err)
		}
		l.arrived(x, now)
	}
	write(1, 10_000, 5)
	write(2, 10_001, 6)
	for now := uint64(11_000); now < 50_000; now += 1000 {
		write(1, now, 5)
		l.prune(now)
	}
	i := l.sessions["iqn.a"]
	if i.acks != nil || i.acksOlder != nil || len(i.sessions) != 1 {
		t.Fatalf("sectors are remembered for %d session(s)", len(i.sessions))
	}
	if err := l.check(op(3, 48_000, 99), epoch, 50_000); err == nil {
		t.Error("a late write of an unseen session was let in")
	}
	// The other one's last write hung for so long that it was forgotten meanwhile.
	l.arrived(op(2, 50_000, 7), 50_100)
	write(1, 50_200, 8)
	l.prune(53_100)
	if err := l.check(op(1, 50_050, 7), epoch, 50_300); err == nil {
		t.Error("older than what has come by the other session, and it was let in")
	}
}

func BenchmarkAcked(b *testing.B) {
	for name, count := range map[string]uint64{"512": 1, "4K": 8, "1M": 2048} {
		b.Run(name, func(b *testing.B) {
			s, older := newAcked(), newAcked()
			for i := range b.N {
				first := uint64(i) * 7919 % (1 << 20) &^ (count - 1)
				if s.newer(first, count, 1, 1<<40) || older.newer(first, count, 1, 1<<40) {
					b.Fatal("refused")
				}
				s.note(first, count, ack{1, 1})
			}
		})
	}
}
