package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"dozo/internal/guest/agent"
)

// chunksMax bounds what a channel holds that nobody has taken yet: each has up to chunkBytes.
const (
	chunksMax  = 256
	chunkBytes = 32 << 10
)

// channel is the conversation with a guest's agent. During a migration it goes over two connections: the bytes of
// the second QEMU continue those of the first, maybe within a frame. Each connection has a goroutine that stamps what
// comes with the time; one for all takes the frames apart, and goes on to the next connection when one has ended.
type channel struct {
	hello chan struct{} // closed when the agent has said that it is there
	done  chan struct{} // closed when the last connection has ended
	wg    sync.WaitGroup

	write sync.Mutex // held across one frame

	mu    sync.Mutex
	conn  net.Conn   // for writing
	all   []net.Conn // every connection that there was
	next  *source    // what is read when the present one ends
	lastN uint32
	calls map[uint32]*call
	err   error
}

// source is one connection's bytes.
type source struct {
	conn   net.Conn
	chunks chan chunk
}

type chunk struct {
	b  []byte
	at time.Time
}

// call is a command under way. out is called by the channel's goroutine and may not block for long: all commands wait
// meanwhile.
type call struct {
	out  func(fd int, b []byte, at time.Time)
	exit chan agent.Exit // room for one; closed without one when the guest is gone
}

func newChannel(conn net.Conn) *channel {
	c := &channel{hello: make(chan struct{}), done: make(chan struct{}), conn: conn, calls: map[uint32]*call{}}
	s := c.open(conn)
	c.wg.Go(func() { c.run(s) })
	return c
}

func (c *channel) open(conn net.Conn) *source {
	s := &source{conn, make(chan chunk, chunksMax)}
	c.mu.Lock()
	c.all = append(c.all, conn)
	c.mu.Unlock()
	c.wg.Go(func() {
		defer close(s.chunks)
		for {
			b := make([]byte, chunkBytes)
			n, err := conn.Read(b)
			if n > 0 {
				s.chunks <- chunk{b[:n], time.Now()}
			}
			if err != nil {
				return
			}
		}
	})
	return s
}

// follow has the channel go on with another connection once the present one ends. Writes go there after switchOver.
func (c *channel) follow(conn net.Conn) {
	s := c.open(conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = s
}

// unfollow takes follow back; the connection must be closed already.
func (c *channel) unfollow() {
	c.mu.Lock()
	s := c.next
	c.next = nil
	c.mu.Unlock()
	if s != nil {
		drain(s)
	}
}

func drain(s *source) {
	for range s.chunks {
	}
}

// switchOver sends what is written from now on to the connection that follows.
func (c *channel) switchOver() {
	c.write.Lock()
	defer c.write.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != nil {
		c.conn = c.next.conn
	}
}

// stream is a source as a reader that knows when its last byte came.
type stream struct {
	c    *channel
	s    *source
	rest []byte
	at   time.Time
}

func (r *stream) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		k, ok := <-r.s.chunks
		if !ok {
			r.c.mu.Lock()
			next := r.c.next
			r.c.next = nil
			r.c.mu.Unlock()
			if next == nil {
				return 0, errGone
			}
			r.s = next
			continue
		}
		r.rest, r.at = k.b, k.at
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (c *channel) run(s *source) {
	defer close(c.done)
	r := &stream{c: c, s: s}
	err := c.frames(r)
	// Whoever still sends must not wait for a reader.
	_ = r.s.conn.Close()
	drain(r.s)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for id, k := range c.calls {
		close(k.exit)
		delete(c.calls, id)
	}
}

func (c *channel) frames(r *stream) error {
	greeted := false
	// A small buffer: the time of a frame is that of the bytes read last.
	in := bufio.NewReaderSize(r, 64)
	for {
		f, err := agent.ReadFrame(in)
		if err != nil {
			return err
		}
		if f.Kind == agent.KindHello {
			if !greeted {
				close(c.hello)
			}
			greeted = true
			continue
		}
		c.mu.Lock()
		k := c.calls[f.ID]
		c.mu.Unlock()
		if k == nil {
			continue
		}
		switch f.Kind {
		case agent.KindStdout, agent.KindStderr:
			k.out(1+int(f.Kind-agent.KindStdout), f.Payload, r.at)
		case agent.KindExit:
			var e agent.Exit
			if err := json.Unmarshal(f.Payload, &e); err != nil {
				return fmt.Errorf("%w: exit: %w", agent.ErrFrame, err)
			}
			c.mu.Lock()
			delete(c.calls, f.ID)
			c.mu.Unlock()
			k.exit <- e
		default:
			return fmt.Errorf("%w: kind %d from the guest", agent.ErrFrame, f.Kind)
		}
	}
}

// start sends a command and its input.
func (c *channel) start(e agent.Exec, stdin []byte, out func(fd int, b []byte, at time.Time)) (uint32, *call, error) {
	if len(stdin) > agent.StdinMax {
		return 0, nil, fmt.Errorf("input of %d bytes: a command takes %d", len(stdin), agent.StdinMax)
	}
	e.StdinBytes = len(stdin)
	text, err := json.Marshal(e)
	if err != nil {
		return 0, nil, err
	}
	if len(text) > agent.PayloadMax {
		return 0, nil, fmt.Errorf("command of %d bytes: want at most %d", len(text), agent.PayloadMax)
	}
	k := &call{out: out, exit: make(chan agent.Exit, 1)}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return 0, nil, c.err
	}
	c.lastN++
	id := c.lastN
	c.calls[id] = k
	c.mu.Unlock()
	err = c.send(agent.Frame{Kind: agent.KindExec, ID: id, Payload: text})
	for len(stdin) > 0 && err == nil {
		n := min(len(stdin), agent.PayloadMax)
		err = c.send(agent.Frame{Kind: agent.KindStdin, ID: id, Payload: stdin[:n]})
		stdin = stdin[n:]
	}
	return id, k, err
}

func (c *channel) send(f agent.Frame) error {
	c.write.Lock()
	defer c.write.Unlock()
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if _, err := conn.Write(agent.AppendFrame(nil, f)); err != nil {
		return errors.Join(errGone, err)
	}
	return nil
}

// close ends all connections and waits for the goroutines.
func (c *channel) close() {
	c.mu.Lock()
	conns := c.all
	c.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
	c.wg.Wait()
}
