package peer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// fakeStore is a store in memory that keeps what the contract of journal.Store says of order: the bytes of
// every segment. hold, when not nil, keeps the answers of appends back until it is closed.
type fakeStore struct {
	id   ident.StoreID
	keep bool // the bytes
	hold chan struct{}
	slow func(wire.Message) // called by requests that run in goroutines of their own

	mu       sync.Mutex
	segments map[ident.SegmentID][]byte
	notices  int
	replicas int // of the fence's answer
	wg       sync.WaitGroup
}

func newFakeStore() *fakeStore {
	return &fakeStore{id: ident.NewStoreID(), keep: true, segments: make(map[ident.SegmentID][]byte), replicas: 1}
}

// bytes is what the store has of a segment.
func (s *fakeStore) bytes(id ident.SegmentID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.segments[id]
}

func (s *fakeStore) ID() ident.StoreID { return s.id }

func (s *fakeStore) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	if !s.keep {
		done(wire.AppendReply{End: m.Offset}, nil)
		return
	}
	s.mu.Lock()
	seg := s.segments[m.Segment]
	if int(m.Offset) != len(seg) {
		s.mu.Unlock()
		done(wire.AppendReply{}, wire.Errorf(wire.CodeGap, "append at %d, end is %d", m.Offset, len(seg)))
		return
	}
	for _, p := range m.Data {
		seg = append(seg, p...)
	}
	s.segments[m.Segment] = seg
	s.mu.Unlock()
	reply := wire.AppendReply{End: uint32(len(seg)), Held: m.Commit}
	if s.hold != nil {
		s.wg.Go(func() {
			<-s.hold
			done(reply, nil)
		})
		return
	}
	done(reply, nil)
}

func (s *fakeStore) Notice(*wire.Notice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notices++
}

func (s *fakeStore) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	buf := getBuffer(int(m.ReadBytes()))
	n := 0
	for _, p := range m.Pieces {
		s.mu.Lock()
		seg := s.segments[p.Segment]
		s.mu.Unlock()
		from, to := int(p.Record)+4096*int(p.First), int(p.Record)+4096*int(p.First+p.Blocks)
		if to > len(seg) {
			buf.put()
			done(wire.ReadReply{}, wire.Errorf(wire.CodeAbsent, "bytes to %d of %d", to, len(seg)))
			return
		}
		n += copy(buf.b[n:], seg[from:to])
	}
	done(wire.ReadReply{Data: buf.b, Release: buf.release}, nil)
}

func (s *fakeStore) call(m wire.Message) {
	if s.slow != nil {
		s.slow(m)
	}
}

func (s *fakeStore) OpenSegment(_ context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	s.call(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments[m.Segment] = nil
	return wire.OpenReply{Boot: ident.BootID{1}}, nil
}

func (s *fakeStore) Sync(_ context.Context, m *wire.Sync) (wire.SyncReply, error) {
	s.call(m)
	var r wire.SyncReply
	for _, id := range m.Segments {
		r.Synced = append(r.Synced, wire.SegmentSynced{Segment: id, StableEnd: uint32(len(s.bytes(id)))})
	}
	return r, nil
}

func (s *fakeStore) Seal(_ context.Context, m *wire.Seal) (wire.SealReply, error) {
	s.call(m)
	return wire.SealReply{Length: m.End}, nil
}

func (s *fakeStore) Fence(_ context.Context, m *wire.Fence) (wire.FenceReply, error) {
	s.call(m)
	r := wire.FenceReply{Was: m.Epoch}
	for i := range s.replicas {
		r.Replicas = append(r.Replicas, wire.Replica{Segment: ident.SegmentID{Number: uint32(i)}, State: wire.ReplicaOpen})
	}
	return r, nil
}

func (s *fakeStore) Inventory(_ context.Context, m *wire.Inventory) (wire.InventoryReply, error) {
	s.call(m)
	return wire.InventoryReply{More: true}, nil
}

func (s *fakeStore) ReadRaw(_ context.Context, m *wire.ReadRaw) (wire.ReadReply, error) {
	s.call(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	seg := s.segments[m.Segment]
	return wire.ReadReply{Data: seg[min(int(m.Offset), len(seg)):min(int(m.Offset+m.Len), len(seg))]}, nil
}

func (s *fakeStore) ReadIndex(_ context.Context, m *wire.ReadIndex) (wire.ReadReply, error) {
	s.call(m)
	return wire.ReadReply{Data: []byte("index")}, nil
}

func (s *fakeStore) Push(_ context.Context, m *wire.Push) (wire.AppendReply, error) {
	s.call(m)
	return wire.AppendReply{End: m.To}, nil
}

func (s *fakeStore) Drop(_ context.Context, m *wire.Drop) (wire.DropReply, error) {
	s.call(m)
	return wire.DropReply{}, errors.New("not one of the wire's errors")
}

func (s *fakeStore) Status(_ context.Context, m *wire.StoreStatus) (wire.StoreStatusReply, error) {
	s.call(m)
	return wire.StoreStatusReply{Free: 7}, nil
}

// fakeNode is a Handler with some stores.
type fakeNode struct {
	stores  map[ident.StoreID]journal.Store
	forward func(*From, *wire.Forward, func(wire.ForwardReply, error))
}

func nodeWith(stores ...*fakeStore) *fakeNode {
	n := &fakeNode{stores: make(map[ident.StoreID]journal.Store)}
	for _, s := range stores {
		n.stores[s.id] = s
	}
	return n
}

func (n *fakeNode) Store(id ident.StoreID, _ wire.Class) journal.Store { return n.stores[id] }

func (n *fakeNode) Forward(from *From, m *wire.Forward, done func(wire.ForwardReply, error)) {
	n.forward(from, m, done)
}

func (n *fakeNode) Lease(_ context.Context, from *From, m *wire.Lease) (wire.LeaseReply, error) {
	if m.Owner != from.Node {
		return wire.LeaseReply{}, wire.Errorf(wire.CodeDenied, "%s asks for %s", from.Node, m.Owner)
	}
	return wire.LeaseReply{Sent: m.Sent, Duration: m.Duration, Removed: m.Leave}, nil
}

func (n *fakeNode) Bar(context.Context, *From, *wire.Bar) (wire.BarReply, error) {
	return wire.BarReply{Tick: 5}, nil
}

func (n *fakeNode) Tick(_ context.Context, _ *From, m *wire.Tick) (r wire.TickReply, err error) {
	for _, j := range m.Journals {
		r.Ticks = append(r.Ticks, wire.JournalTick{Journal: j, Tick: 9})
	}
	return r, nil
}

func (n *fakeNode) Troubles(context.Context, *From, *wire.Troubles) (wire.TroublesReply, error) {
	return wire.TroublesReply{}, nil
}

func (n *fakeNode) Blocks(context.Context, *From, *wire.Blocks) (wire.BlocksReply, error) {
	return wire.BlocksReply{}, nil
}

func (n *fakeNode) HandOver(context.Context, *From, *wire.HandOver) (wire.HandOverReply, error) {
	return wire.HandOverReply{}, nil
}

func (n *fakeNode) Unit(context.Context, *From, *wire.Unit) (wire.UnitReply, error) {
	return wire.UnitReply{}, nil
}

func (n *fakeNode) OwnerStatus(context.Context, *From, *wire.OwnerStatus) (wire.OwnerStatusReply, error) {
	return wire.OwnerStatusReply{Journals: []wire.JournalStatus{{State: "serving"}}}, nil
}

// testCA signs certificates whose common name is the node's.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newTestCA(t testing.TB) *testCA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{cert: cert, key: key, pool: x509.NewCertPool()}
	ca.pool.AddCert(cert)
	return ca
}

func (ca *testCA) options(t testing.TB, node ident.NodeName) Options {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: string(node)}, DNSNames: []string{"node.test"},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	certs := []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	return Options{
		Self: Self{Cluster: "test", Node: node, Instance: NewInstance()},
		ServerTLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: certs, ClientCAs: ca.pool,
			ClientAuth: tls.RequireAndVerifyClientCert},
		ClientTLS: func(ident.NodeName) *tls.Config {
			return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: certs, RootCAs: ca.pool, ServerName: "node.test"}
		},
		Identify: func(cs tls.ConnectionState) (ident.NodeName, error) {
			return ident.NodeName(cs.PeerCertificates[0].Subject.CommonName), nil
		},
		Log: testLog(t), DialTimeout: time.Minute,
	}
}

func insecure(t testing.TB, node ident.NodeName) Options {
	return Options{Self: Self{Cluster: "test", Node: node, Instance: NewInstance()}, Insecure: true, Log: testLog(t), DialTimeout: time.Minute}
}

func testLog(testing.TB) *slog.Logger { return slog.New(slog.DiscardHandler) }

// startServer serves h on loopback until the test ends.
func startServer(t testing.TB, h Handler, o Options) (*Server, Addr) {
	t.Helper()
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(h, o)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() { accepted <- s.Accept(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-accepted; err != nil {
			t.Errorf("Accept: %v", err)
		}
	})
	return s, Addr{Node: o.Self.Node, Cluster: l.Addr().String()}
}

func startPool(t testing.TB, o Options) *Pool {
	t.Helper()
	p, err := NewPool(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func listenLoopback() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
