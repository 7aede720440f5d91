package peer

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Self is who this process is to its peers.
type Self struct {
	Cluster  string
	Node     ident.NodeName
	Instance uint64 // random per start: NewInstance
}

// NewInstance makes a random Self.Instance.
func NewInstance() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// Options are common to Pool and Server. Zero durations and sizes mean the defaults.
type Options struct {
	Self Self
	Log  *slog.Logger

	// ServerTLS is for accepted connections and must verify client certificates; ClientTLS is asked for every
	// connection dialled. Identify says whose verified certificate it was: the handshake's name must be the
	// same.
	ServerTLS *tls.Config
	ClientTLS func(ident.NodeName) *tls.Config
	Identify  func(tls.ConnectionState) (ident.NodeName, error)

	// Insecure takes and makes connections without TLS and believes every name: for tests and benchmarks.
	Insecure bool

	// PlainData lets connections for data go without encryption, with a ticket that was given out over an
	// encrypted one. Both sides must have it; a Pool uses it for nodes whose Addr says Plain.
	PlainData bool

	PingInterval time.Duration // of idle connections; 1 s
	DeadAfter    time.Duration // without a sign of life; 3 s
	// The same for the control connections to nodes whose Addr says Near: how soon a node that hangs is known to hang is
	// most of the pause that its clients see. 500 ms and 2 s, and never more than those above.
	NearPingInterval time.Duration
	NearDeadAfter    time.Duration
	DialTimeout      time.Duration // handshakes included; 3 s
	BackoffMax       time.Duration // between attempts to connect; 2 s

	// QueueMax is how many bytes may wait on a connection to be sent. What comes when it is full is refused
	// with wire.CodeBusy, at once and without having been sent: a peer that is slow never holds its callers
	// up. 64 MiB.
	QueueMax int
	// InflightMax is how many bytes of requests and their answers an accepted connection may have under way
	// before no more is read from it. 32 MiB, and never less than two of the largest frames.
	InflightMax int64
	// SlowMax is how many requests of an accepted connection may run in goroutines of their own; 1,024.
	SlowMax int

	// Busy is told of every append, read and forwarded command that an accepted connection brings; it must not wait.
	Busy func()

	// Dial makes the connection below everything else; a net.Dialer by default.
	Dial func(ctx context.Context, addr string, class wire.Class) (net.Conn, error)

	// OnUp and OnDown are told when a node's control connection comes and goes, in that order and one at a
	// time per node. They must not wait for the pool.
	OnUp   func(node ident.NodeName, instance uint64)
	OnDown func(node ident.NodeName, err error)
	// OnGone is told when Peer.Gone becomes true: after OnDown, if the node was up. It must not wait for the pool either.
	OnGone func(node ident.NodeName)
}

func (o Options) withDefaults() (Options, error) {
	o.PingInterval = cmp.Or(o.PingInterval, time.Second)
	o.DeadAfter = cmp.Or(o.DeadAfter, 3*time.Second)
	o.NearPingInterval = min(cmp.Or(o.NearPingInterval, 500*time.Millisecond), o.PingInterval)
	o.NearDeadAfter = min(cmp.Or(o.NearDeadAfter, 2*time.Second), o.DeadAfter)
	o.DialTimeout = cmp.Or(o.DialTimeout, 3*time.Second)
	o.BackoffMax = cmp.Or(o.BackoffMax, 2*time.Second)
	o.QueueMax = cmp.Or(o.QueueMax, 64<<20)
	o.InflightMax = max(cmp.Or(o.InflightMax, 32<<20), 2*wire.PayloadMax)
	o.SlowMax = cmp.Or(o.SlowMax, 1024)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.OnUp == nil {
		o.OnUp = func(ident.NodeName, uint64) {}
	}
	if o.OnDown == nil {
		o.OnDown = func(ident.NodeName, error) {}
	}
	if o.OnGone == nil {
		o.OnGone = func(ident.NodeName) {}
	}
	if o.Busy == nil {
		o.Busy = func() {}
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, addr string, _ wire.Class) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	switch {
	case o.Self.Node == "" || o.Self.Cluster == "":
		return o, errors.New("peer options without a node's and a cluster's name")
	case o.Insecure && (o.ServerTLS != nil || o.ClientTLS != nil):
		return o, errors.New("peer options are insecure and have TLS")
	case !o.Insecure && o.Identify == nil:
		return o, errors.New("peer options without Identify")
	}
	return o, nil
}

// Limiter paces what is sent: Wait returns when n more bytes may go.
type Limiter interface {
	Wait(ctx context.Context, n int) error
}

// From is who sent a request.
type From struct {
	Node     ident.NodeName // verified, unless Options.Insecure
	Instance uint64
	Class    wire.Class
	Addr     net.Addr
}
