package peer

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A connection begins with TLS or, where the first byte is that of a Hello, without. On it the client says
// Hello, the server answers with a Hello or refuses. Without TLS both prove that they know the secret of a
// ticket, which the server gave out over TLS a moment before:
//
//	client  Hello   Auth = ticket ID, client's nonce
//	server  Hello   Auth = server's nonce, MAC("server", client's Hello, server's nonce, name, instance)
//	client  Proof   Auth = MAC("client", the same)
//
// A ticket is good for one attempt. What is proved is who opened the connection; whoever can change packets
// on the way afterwards is not kept out, which is what "trusted network" means in the guide.

const (
	nonceSize  = 32
	ticketLife = 10 * time.Second
	ticketsMax = 256 // not yet used, a server
	tlsFirst   = 0x16
)

// Errors of handshakes.
var (
	errNotTLS   = errors.New("connection without TLS: plain data connections are not enabled here")
	errTicket   = errors.New("connection without TLS and without a valid ticket")
	errIdentity = errors.New("name in the handshake is not the certificate's")
)

func (o *Options) hello(kind wire.HelloKind, class wire.Class) wire.Hello {
	h := wire.Hello{Kind: kind, Class: class, VersionMin: wire.VersionMin, VersionMax: wire.VersionMax,
		Instance: o.Self.Instance, Cluster: o.Self.Cluster, Node: o.Self.Node}
	if o.PlainData {
		h.Capabilities |= wire.CapPlainData
	}
	return h
}

// readHello reads exactly one Hello: nothing behind it.
func readHello(c net.Conn) (h wire.Hello, raw []byte, err error) {
	raw = make([]byte, wire.HelloPrefix)
	if _, err := io.ReadFull(c, raw); err != nil {
		return h, nil, fmt.Errorf("handshake: %w", err)
	}
	n, err := wire.HelloLength(raw)
	if err != nil {
		return h, nil, err
	}
	raw = append(raw, make([]byte, n-len(raw))...)
	if _, err := io.ReadFull(c, raw[wire.HelloPrefix:]); err != nil {
		return h, nil, fmt.Errorf("handshake: %w", err)
	}
	h, err = wire.ParseHello(raw)
	return h, raw, err
}

func proof(secret []byte, side string, clientHello, serverNonce []byte, server *wire.Hello) []byte {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte("dozo plain " + side + "\x00"))
	m.Write(clientHello)
	m.Write(serverNonce)
	m.Write(binary.LittleEndian.AppendUint64(nil, server.Instance))
	m.Write([]byte(server.Node))
	return m.Sum(nil)
}

// dialled makes a link's socket of a fresh connection to node (empty: any). ticket is nil where TLS or
// Insecure is meant. It also returns the server's Hello.
func (o *Options) dialled(ctx context.Context, conn net.Conn, node ident.NodeName, class wire.Class, ticket *wire.TicketReply) (*socket, *wire.Hello, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	s := newSocket(conn)
	up := conn
	var certified ident.NodeName
	if ticket == nil && !o.Insecure {
		if o.ClientTLS == nil {
			return nil, nil, errors.New("no TLS configuration to dial with")
		}
		cfg := o.ClientTLS(node).Clone()
		cfg.DynamicRecordSizingDisabled = true // few large records: nobody waits for the first bytes of one
		g := newGather(conn)
		t := tls.Client(g, cfg)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, nil, fmt.Errorf("TLS: %w", err)
		}
		var err error
		if certified, err = o.Identify(t.ConnectionState()); err != nil {
			return nil, nil, err
		}
		up = t
		defer s.encrypt(t, g)
	}
	mine := o.hello(wire.HelloClient, class)
	if ticket != nil {
		mine.Auth = append(ticket.ID[:len(ticket.ID):len(ticket.ID)], nonce()...)
	}
	raw := wire.AppendHello(nil, &mine)
	if _, err := up.Write(raw); err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", err)
	}
	theirs, _, err := readHello(up)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case theirs.Kind == wire.HelloRefuse:
		return nil, nil, &wire.Error{Code: theirs.Code, Detail: fmt.Sprintf("%s refused the connection: %s", theirs.Node, theirs.Detail)}
	case theirs.Kind != wire.HelloServer:
		return nil, nil, fmt.Errorf("handshake answered with kind %d", theirs.Kind)
	case theirs.Cluster != o.Self.Cluster:
		return nil, nil, fmt.Errorf("reached a node of cluster %q", theirs.Cluster)
	case node != "" && theirs.Node != node:
		return nil, nil, fmt.Errorf("dialled %s, reached %s", node, theirs.Node)
	case certified != "" && theirs.Node != certified:
		return nil, nil, fmt.Errorf("%w: %s and %s", errIdentity, theirs.Node, certified)
	}
	if _, err := wire.Agree(&mine, &theirs); err != nil {
		return nil, nil, err
	}
	if ticket != nil {
		if len(theirs.Auth) != nonceSize+sha256.Size {
			return nil, nil, errTicket
		}
		serverNonce, mac := theirs.Auth[:nonceSize], theirs.Auth[nonceSize:]
		if !hmac.Equal(mac, proof(ticket.Secret[:], "server", raw, serverNonce, &theirs)) {
			return nil, nil, errTicket
		}
		last := o.hello(wire.HelloProof, class)
		last.Auth = proof(ticket.Secret[:], "client", raw, serverNonce, &theirs)
		if _, err := up.Write(wire.AppendHello(nil, &last)); err != nil {
			return nil, nil, fmt.Errorf("handshake: %w", err)
		}
	}
	if !stop() {
		return nil, nil, ctx.Err()
	}
	return s, &theirs, nil
}

func nonce() []byte {
	b := make([]byte, nonceSize)
	_, _ = rand.Read(b)
	return b
}

// accepted is the other side of dialled.
func (o *Options) accepted(ctx context.Context, conn net.Conn, tickets *ticketBox) (*socket, *wire.Hello, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", err)
	}
	s := newSocket(conn)
	var up net.Conn = &prefixed{Conn: conn, prefix: first}
	var certified ident.NodeName
	encrypted := first[0] == tlsFirst && o.ServerTLS != nil
	if encrypted {
		cfg := o.ServerTLS.Clone()
		cfg.DynamicRecordSizingDisabled = true
		g := newGather(up)
		t := tls.Server(g, cfg)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, nil, fmt.Errorf("TLS: %w", err)
		}
		var err error
		if certified, err = o.Identify(t.ConnectionState()); err != nil {
			return nil, nil, err
		}
		up = t
		defer s.encrypt(t, g)
	}
	theirs, raw, err := readHello(up)
	if err != nil {
		return nil, nil, err
	}
	mine := o.hello(wire.HelloServer, theirs.Class)
	var ticket *ticket
	refuse := func(code wire.Code, err error) (*socket, *wire.Hello, error) {
		mine.Kind, mine.Code, mine.Detail = wire.HelloRefuse, code, err.Error()
		_, _ = up.Write(wire.AppendHello(nil, &mine))
		return nil, &theirs, err
	}
	if _, err := wire.Agree(&mine, &theirs); err != nil {
		return refuse(wire.CodeVersion, err)
	}
	switch {
	case theirs.Kind != wire.HelloClient:
		return refuse(wire.CodeBadRequest, fmt.Errorf("handshake begins with kind %d", theirs.Kind))
	case theirs.Class == 0 || theirs.Class > wire.ClassMax:
		return refuse(wire.CodeBadRequest, fmt.Errorf("unknown class of connection %d", theirs.Class))
	case theirs.Cluster != o.Self.Cluster:
		return refuse(wire.CodeDenied, fmt.Errorf("node %s is of cluster %q, this is %q", theirs.Node, theirs.Cluster, o.Self.Cluster))
	case encrypted && theirs.Node != certified:
		return refuse(wire.CodeDenied, fmt.Errorf("%w: %s and %s", errIdentity, theirs.Node, certified))
	case !encrypted && !o.Insecure && !o.PlainData:
		return refuse(wire.CodeDenied, errNotTLS)
	case !encrypted && !o.Insecure:
		if ticket = tickets.use(theirs.Auth, time.Now()); ticket == nil || ticket.node != theirs.Node || ticket.class != theirs.Class {
			return refuse(wire.CodeDenied, errTicket)
		}
	}
	serverNonce := nonce()
	if ticket != nil {
		mine.Auth = append(serverNonce[:nonceSize:nonceSize], proof(ticket.reply.Secret[:], "server", raw, serverNonce, &mine)...)
	}
	if _, err := up.Write(wire.AppendHello(nil, &mine)); err != nil {
		return nil, &theirs, fmt.Errorf("handshake: %w", err)
	}
	if ticket != nil {
		last, _, err := readHello(up)
		if err != nil {
			return nil, &theirs, err
		}
		if last.Kind != wire.HelloProof || !hmac.Equal(last.Auth, proof(ticket.reply.Secret[:], "client", raw, serverNonce, &mine)) {
			return nil, &theirs, errTicket
		}
	}
	if !stop() {
		return nil, &theirs, ctx.Err()
	}
	return s, &theirs, nil
}

// prefixed gives back the byte that was read to tell TLS from a Hello.
type prefixed struct {
	net.Conn
	prefix []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		p.prefix = p.prefix[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// ticket is the right of a node to open one plain connection.
type ticket struct {
	reply   wire.TicketReply
	node    ident.NodeName
	class   wire.Class
	expires time.Time
}

// ticketBox keeps the tickets that were not yet used.
type ticketBox struct {
	mu sync.Mutex
	m  map[[16]byte]*ticket
}

// issue makes a ticket; nil if too many are unused.
func (b *ticketBox) issue(node ident.NodeName, class wire.Class, now time.Time) *wire.TicketReply {
	t := &ticket{node: node, class: class, expires: now.Add(ticketLife)}
	_, _ = rand.Read(t.reply.ID[:])
	_, _ = rand.Read(t.reply.Secret[:])
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, old := range b.m {
		if now.After(old.expires) {
			delete(b.m, id)
		}
	}
	if len(b.m) >= ticketsMax {
		return nil
	}
	if b.m == nil {
		b.m = make(map[[16]byte]*ticket)
	}
	b.m[t.reply.ID] = t
	return &t.reply
}

// use takes the ticket that auth names out of the box; nil if there is none.
func (b *ticketBox) use(auth []byte, now time.Time) *ticket {
	if len(auth) != 16+nonceSize {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	id := [16]byte(bytes.Clone(auth[:16]))
	t := b.m[id]
	delete(b.m, id)
	if t == nil || now.After(t.expires) {
		return nil
	}
	return t
}
