package peer

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// benchStore answers without keeping anything: what is measured is the way there and back.
func benchRemote(b *testing.B, useTLS bool) (s interface {
	Append(*wire.Append, func(wire.AppendReply, error))
}) {
	store := newFakeStore()
	store.keep = false
	so, co := insecure(b, "server"), insecure(b, "client")
	if useTLS {
		ca := newTestCA(b)
		so, co = ca.options(b, "server"), ca.options(b, "client")
	}
	_, addr := startServer(b, nodeWith(store), so)
	return startPool(b, co).Store(store.id, addr)
}

func modes(b *testing.B, f func(b *testing.B, useTLS bool)) {
	for _, m := range []string{"plain", "tls"} {
		b.Run(m, func(b *testing.B) { f(b, m == "tls") })
	}
}

// What the machine does without us: 4 KiB there, 130 bytes back, over a loopback connection.
func BenchmarkLoopback(b *testing.B) {
	l, err := listenLoopback()
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 4400)
		for {
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			if _, err := c.Write(buf[:130]); err != nil {
				return
			}
		}
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 4400)
	defer cpu(b)()
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf[:130]); err != nil {
			b.Fatal(err)
		}
	}
}

// One append of 4 KiB at a time.
func BenchmarkAppendRoundTrip(b *testing.B) {
	modes(b, func(b *testing.B, useTLS bool) {
		s := benchRemote(b, useTLS)
		m := &wire.Append{Segment: testSegment(1), Data: [][]byte{make([]byte, 4096+136)}}
		done := make(chan error, 1)
		f := func(_ wire.AppendReply, err error) { done <- err }
		s.Append(m, f)
		<-done
		b.ReportAllocs()
		b.ResetTimer()
		defer cpu(b)()
		for b.Loop() {
			s.Append(m, f)
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
	})
}

// cpu reports, when what it returns is called, the processor time of this process per operation: unlike the
// time that passed it doesn't depend on what else the machine does.
func cpu(b *testing.B) func() {
	used := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

// pipeline keeps depth appends of size bytes under way, n in all, each started by the answer to another.
func pipeline(b *testing.B, s interface {
	Append(*wire.Append, func(wire.AppendReply, error))
}, depth, size, n int) {
	var wg sync.WaitGroup
	wg.Add(depth)
	data := make([]byte, size)
	for i := range depth {
		left := n / depth
		if i < n%depth {
			left++
		}
		m := &wire.Append{Segment: testSegment(1), Data: [][]byte{data}}
		var next func(wire.AppendReply, error)
		next = func(_ wire.AppendReply, err error) {
			if err != nil {
				b.Error(err)
			}
			if left--; left < 0 || err != nil {
				wg.Done()
				return
			}
			s.Append(m, next)
		}
		next(wire.AppendReply{}, nil)
	}
	wg.Wait()
}

func BenchmarkAppendPipelined(b *testing.B) {
	for _, size := range []int{512, 4096 + 136} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			modes(b, func(b *testing.B, useTLS bool) {
				s := benchRemote(b, useTLS)
				pipeline(b, s, 1, size, 1)
				b.ReportAllocs()
				b.ResetTimer()
				defer cpu(b)()
				start := time.Now()
				pipeline(b, s, 32, size, b.N)
				b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "appends/s")
			})
		})
	}
}

func BenchmarkAppend1MiB(b *testing.B) {
	modes(b, func(b *testing.B, useTLS bool) {
		s := benchRemote(b, useTLS)
		pipeline(b, s, 1, 1<<20, 4)
		b.SetBytes(1 << 20)
		b.ReportAllocs()
		b.ResetTimer()
		defer cpu(b)()
		pipeline(b, s, 4, 1<<20, b.N)
	})
}

func BenchmarkRead4KiBPipelined(b *testing.B) {
	modes(b, func(b *testing.B, useTLS bool) {
		store := newFakeStore()
		store.segments[testSegment(1)] = make([]byte, 1<<20)
		so, co := insecure(b, "server"), insecure(b, "client")
		if useTLS {
			ca := newTestCA(b)
			so, co = ca.options(b, "server"), ca.options(b, "client")
		}
		_, addr := startServer(b, nodeWith(store), so)
		s := startPool(b, co).Store(store.id, addr)
		m := &wire.Read{Pieces: []wire.ReadPiece{{Segment: testSegment(1), Blocks: 1}}}
		var wg sync.WaitGroup
		wg.Add(32)
		b.ReportAllocs()
		defer cpu(b)()
		for i := range 32 {
			left := b.N / 32
			if i < b.N%32 {
				left++
			}
			var next func(wire.ReadReply, error)
			next = func(r wire.ReadReply, err error) {
				if err != nil {
					b.Error(err)
				}
				if r.Release != nil {
					r.Release()
				}
				if left--; left < 0 {
					wg.Done()
					return
				}
				s.Read(m, next)
			}
			next(wire.ReadReply{}, nil)
		}
		wg.Wait()
	})
}

const childEnv = "DOZO_PEER_TEST_SERVER"

// childServer runs a server in a process of its own until its standard input ends; used by tests that stop
// or measure a real process.
func childServer() {
	store := &fakeStore{segments: make(map[ident.SegmentID][]byte)}
	o := Options{Self: Self{Cluster: "test", Node: "server", Instance: NewInstance()}, Insecure: true}
	l, err := listenLoopback()
	if err != nil {
		panic(err)
	}
	s, err := NewServer(nodeWith(store), o)
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Accept(l) })
	fmt.Println(l.Addr())
	_, _ = os.Stdin.Read(make([]byte, 1))
	s.Close()
	wg.Wait()
}

// startChild starts childServer and stops it with the test.
func startChild(t testing.TB) (*exec.Cmd, Addr) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	var addr string
	if _, err := fmt.Fscanln(out, &addr); err != nil {
		t.Fatal(err)
	}
	return cmd, Addr{Node: "server", Cluster: addr}
}

// The same as BenchmarkAppendRoundTrip/plain and BenchmarkAppendPipelined with the server in another process.
func BenchmarkTwoProcesses(b *testing.B) {
	_, addr := startChild(b)
	s := startPool(b, insecure(b, "client")).Store(ident.StoreID{}, addr)
	b.Run("round trip", func(b *testing.B) { pipeline(b, s, 1, 4096+136, b.N) })
	b.Run("pipelined 512", func(b *testing.B) { pipeline(b, s, 32, 512, b.N) })
	b.Run("1MiB", func(b *testing.B) { b.SetBytes(1 << 20); pipeline(b, s, 4, 1<<20, b.N) })
}
