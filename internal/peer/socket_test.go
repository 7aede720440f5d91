package peer

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// fullConn has as much to read as anybody asks for, up to its end.
type fullConn struct {
	net.Conn
	rest  []byte
	reads int
}

func (c *fullConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	c.reads++
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// tlsRecords makes n bytes of records, of whole size but the last one.
func tlsRecords(n int) (out []byte) {
	rnd := rand.NewChaCha8([32]byte{7})
	for n > 0 {
		size := min(n, tlsRecord+17)
		body := make([]byte, size)
		_, _ = rnd.Read(body)
		out = append(append(out, 0x17, 3, 3, byte(size>>8), byte(size)), body...)
		n -= size
	}
	return out
}

// What has come of a bulk is read in large pieces, and given out record by record.
func TestBulkOfTLSIsReadInLargePieces(t *testing.T) {
	want := tlsRecords(4 << 20)
	c := &fullConn{rest: bytes.Clone(want)}
	g := newGather(c)
	var got []byte
	p := make([]byte, 100<<10)
	for {
		n, err := g.Read(p)
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if n > tlsRecord+17+tlsHeader {
			t.Fatalf("%d bytes at once are more than a record", n)
		}
		got = append(got, p[:n]...)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes became %d others", len(want), len(got))
	}
	if most := len(want)/(tlsReadMax-tlsRecord-17-tlsHeader) + 2; c.reads > most {
		t.Errorf("%d reads of %d bytes, want %d at most", c.reads, len(want), most)
	}
}

// A connection over which little comes has a small buffer.
func TestLittleOfTLSIsReadIntoLittle(t *testing.T) {
	c := &fullConn{}
	g := newGather(c)
	p := make([]byte, 4096)
	for range 100 {
		c.rest = tlsRecords(3000)
		for want := len(c.rest); want > 0; {
			n, err := g.Read(p)
			if err != nil {
				t.Fatal(err)
			}
			want -= n
		}
	}
	if len(g.in) != tlsReadBuffer {
		t.Errorf("a buffer of %d bytes, want %d", len(g.in), tlsReadBuffer)
	}
}

// What crypto/tls writes from its read side while a part is being sent comes behind that, once, and changes nothing of what is sent.
func TestWhatIsWrittenWhileAPartIsSent(t *testing.T) {
	g := newGather(nil)
	g.start()
	rnd := rand.New(rand.NewPCG(3, 4))
	next, sent := byte(0), []byte(nil)
	write := func() (wrote []byte) {
		for range 1 + rnd.IntN(50) {
			wrote = append(wrote, next)
			next++
		}
		_, _ = g.Write(wrote)
		return wrote
	}
	var want []byte
	for range 2000 {
		want = append(want, write()...)
		out := g.unsent()
		before := bytes.Clone(out)
		if rnd.IntN(3) == 0 {
			want = append(want, write()...)
		}
		if !bytes.Equal(out, before) {
			t.Fatal("what is being sent has changed")
		}
		n := rnd.IntN(len(out) + 1)
		if rnd.IntN(4) == 0 {
			n = len(out)
		}
		sent = append(sent, out[:n]...)
		if left := g.sent(n); left != len(want)-len(sent) || g.size() != left {
			t.Fatalf("%d bytes left, size %d, want %d", left, g.size(), len(want)-len(sent))
		}
	}
	if sent = append(sent, g.unsent()...); !bytes.Equal(sent, want) {
		t.Errorf("%d bytes were sent, %d written", len(sent), len(want))
	}
	g.sent(g.size())
	if len(g.mu.out) != 0 || g.mu.at != 0 {
		t.Error("the memory is not used again from its beginning")
	}
}

// A batch that is much larger than what is sealed at once takes no more memory than that, over a slow path too, where each part that the
// kernel takes is progress.
func TestALargeBatchOverASlowPathOfTLS(t *testing.T) {
	client, server := tlsSockets(t)
	const size = 32 << 20
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	// Nobody reads yet: the kernel takes what it has room for.
	done, err := client.write([][]byte{data[:1000], data[1000:70000], data[70000:]})
	if done || err != nil {
		t.Fatalf("done %v, %v", done, err)
	}
	got := make(chan []byte)
	go func() {
		b := make([]byte, size)
		for n := 0; n < size; {
			k, err := server.read(b[n:min(size, n+10000)])
			if err != nil {
				t.Error(err)
				break
			}
			n += k
		}
		got <- b
	}()
	parts := 0
	if err := client.finish(func() { parts++ }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(<-got, data) {
		t.Error("something else has come than was sent")
	}
	if most := 2 * tlsFlush; cap(client.g.mu.out) > most {
		t.Errorf("%d bytes of memory for what is sealed, want %d at most", cap(client.g.mu.out), most)
	}
	if parts < 10 {
		t.Errorf("%d parts", parts)
	}
}

// tlsSockets gives both ends of a connection.
func tlsSockets(t *testing.T) (client, server *socket) {
	t.Helper()
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ca := newTestCA(t)
	accepted := make(chan *socket, 1)
	go func() {
		defer close(accepted)
		nc, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		so := ca.options(t, "server")
		g := newGather(nc)
		c := tls.Server(g, so.ServerTLS)
		if err := c.Handshake(); err != nil {
			t.Error(err)
			return
		}
		s := newSocket(nc)
		s.encrypt(c, g)
		accepted <- s
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	co := ca.options(t, "client")
	g := newGather(nc)
	c := tls.Client(g, co.ClientTLS("server"))
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	client = newSocket(nc)
	client.encrypt(c, g)
	server = <-accepted
	if server == nil {
		t.FailNow()
	}
	t.Cleanup(func() { client.close(); server.close() })
	return client, server
}
