package access

import (
	"log/slog"
	"testing"
	"time"

	"dozo/internal/ident"
)

// BenchmarkRenew is what one renewal of the leases of 10,000 volumes costs the owner's node.
func BenchmarkRenew(b *testing.B) {
	const volumes = 10000
	g := &slowGranter{most: time.Second}
	began := time.Now()
	clock := func() int64 { return int64(time.Since(began)) + 1 }
	k := NewLeaseKeeper("n1", 7, time.Hour, clock, slog.New(slog.DiscardHandler), func(ident.StoreID) (ident.NodeName, LeaseNode, bool) { return "n2", g, true })
	defer k.Close()
	for i := range volumes {
		k.Enroll(ident.JournalID{1, byte(i), byte(i >> 8)}, ident.Epoch{Number: 1}, []ident.StoreID{{1}}, func(ident.Epoch) {})
	}
	k.mu.Lock()
	p := k.mu.pairs["n2"]
	k.mu.Unlock()
	b.ReportAllocs()
	for b.Loop() {
		k.ask(p)
	}
}
