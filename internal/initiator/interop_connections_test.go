package initiator_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"dozo/internal/initiator"
)

// TestOwnTargetConnections loads a session of several connections, with digests and at every recovery level that
// the target takes.
func TestOwnTargetConnections(t *testing.T) {
	portal := serveMemory(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for level := range 3 {
		o := initiator.DefaultOffer()
		o.HeaderDigest, o.DataDigest, o.ErrorRecoveryLevel = "CRC32C", "CRC32C", level
		s, err := initiator.Dial(ctx, initiator.Config{Portal: portal.Address, Target: memName, Offer: &o, Connections: 4})
		if err != nil {
			t.Fatal(err)
		}
		if n := s.Stats().Connections; n != 4 {
			t.Fatalf("%d connections", n)
		}
		d, err := initiator.OpenDisk(ctx, s, 0)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				at := int64(w) << 20
				for _, n := range []int{512, 4096, 64 << 10, 300 << 10, 1 << 20} {
					want, got := make([]byte, n), make([]byte, n)
					rand.Read(want)
					if err := d.WriteAt(ctx, want, at, false); err != nil {
						t.Errorf("write of %d: %v", n, err)
						return
					}
					if err := d.ReadAt(ctx, got, at); err != nil || !bytes.Equal(got, want) {
						t.Errorf("read of %d: equal %v, %v", n, bytes.Equal(got, want), err)
						return
					}
				}
			})
		}
		wg.Wait()
		if r, err := s.TaskManagement(ctx, initiator.TMFLogicalUnitRst, 0, nil); err != nil || r != 0 {
			t.Fatalf("LUN reset: %d, %v", r, err)
		}
		if st := s.Stats(); st.Reconnects != 0 || st.Strays != 0 {
			t.Errorf("%+v", st)
		}
		if err := s.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
