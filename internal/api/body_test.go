package api

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// pipeListener gives one connection, and then none before it is closed.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { close(l.done); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// A listener keeps a bounded number of connections: whoever sends the body of a request a byte at a time, or not at all, has his for no longer
// than that may take.
func TestABodyArrivesInTime(t *testing.T) {
	for what, head := range map[string]string{
		"a call":   "POST /dozo.v1.NodeService/Join HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: 1000\r\n\r\n",
		"a stream": "POST /dozo.v1.ClusterService/Events HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+proto\r\nContent-Length: 1000\r\n\r\n\x00\x00\x00\x03\x00",
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := NewServer(Options{Node: "s1n1"})
				srv := s.newHTTP()
				ours, theirs := net.Pipe()
				l := &pipeListener{make(chan net.Conn, 1), make(chan struct{})}
				l.conns <- theirs
				ended := make(chan error)
				go func() { ended <- srv.Serve(l) }()
				began := time.Now()
				if _, err := io.WriteString(ours, head); err != nil {
					t.Fatal(err)
				}
				wrote := make(chan struct{})
				go func() {
					defer close(wrote)
					for range 700 {
						if _, err := ours.Write([]byte{0}); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				}()
				r, err := http.ReadResponse(bufio.NewReader(ours), nil)
				if err == nil {
					_, _ = io.Copy(io.Discard, r.Body)
					_ = r.Body.Close()
				}
				if took := time.Since(began); took > 2*bodyTimeout {
					t.Errorf("its connection was kept for %v", took)
				}
				_ = ours.Close()
				<-wrote
				if err := srv.Close(); err != nil {
					t.Error(err)
				}
				if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
					t.Error(err)
				}
			})
		})
	}
}
