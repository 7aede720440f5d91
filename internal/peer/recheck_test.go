package peer

import (
	"crypto/tls"
	"errors"
	"sync/atomic"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

func TestRecheckEndsConnectionsOfRevokedCertificates(t *testing.T) {
	for _, plain := range []bool{false, true} {
		ca := newTestCA(t)
		so, co := ca.options(t, "server"), ca.options(t, "client")
		so.PlainData, co.PlainData = plain, plain
		var revoked atomic.Bool
		identify := so.Identify
		so.Identify = func(cs tls.ConnectionState) (ident.NodeName, error) {
			if revoked.Load() {
				return "", errors.New("revoked")
			}
			return identify(cs)
		}
		down := make(chan struct{}, 10)
		co.OnDown = func(ident.NodeName, error) { down <- struct{}{} }
		store := newFakeStore()
		server, addr := startServer(t, nodeWith(store), so)
		addr.Plain = plain
		pool := startPool(t, co)
		remote := pool.Store(store.id, addr)
		use := func() error { _, err := remote.Seal(t.Context(), &wire.Seal{}); return err }
		if err := use(); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Peer(addr).Tick(t.Context(), &wire.Tick{}); err != nil { // the control connection is there
			t.Fatal(err)
		}
		server.Recheck()
		pool.Recheck()
		if err := use(); err != nil {
			t.Errorf("plain %v: connections of a good certificate: %v", plain, err)
		}
		revoked.Store(true)
		server.Recheck()
		<-down
		waitFor(t, func() bool { server.mu.Lock(); defer server.mu.Unlock(); return len(server.mu.links) == 0 })
		if err := use(); !errors.Is(err, wire.ErrUnreached) {
			t.Errorf("plain %v: after revocation: %v", plain, err)
		}
	}
}
