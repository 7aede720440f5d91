package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// qmpLineMax bounds a message of QEMU's.
const qmpLineMax = 1 << 20

// eventsMax bounds the events that are kept for waiters; a guest makes a handful.
const eventsMax = 1000

// QMPError is a command that QEMU refused.
type QMPError struct {
	Command     string
	Class, Desc string
}

func (e *QMPError) Error() string { return fmt.Sprintf("qemu: %s: %s", e.Command, e.Desc) }

// Event is what QEMU has told by itself, such as STOP or RESUME.
type Event struct {
	Name string
	At   time.Time // by QEMU's clock, which is this machine's
	Data json.RawMessage
}

// qmp is a connection to QEMU's monitor. One goroutine reads it, until the connection ends.
type qmp struct {
	conn io.ReadWriteCloser
	done chan struct{}

	mu      sync.Mutex
	err     error
	next    int
	waiting map[int]chan qmpMessage
	events  []Event
	changed chan struct{} // closed and replaced when there is another event
	write   sync.Mutex    // held across one command's bytes; never with mu
}

// qmpMessage is any message from QEMU.
type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"`
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// newQMP takes a connection over and does the handshake.
func newQMP(ctx context.Context, conn io.ReadWriteCloser) (*qmp, error) {
	q := &qmp{conn: conn, done: make(chan struct{}), waiting: map[int]chan qmpMessage{}, changed: make(chan struct{})}
	go q.read()
	if err := q.do(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.close()
		return nil, fmt.Errorf("qemu's monitor: %w", err)
	}
	return q, nil
}

// close ends the connection and waits for its reader.
func (q *qmp) close() {
	_ = q.conn.Close()
	<-q.done
}

func (q *qmp) read() {
	defer close(q.done)
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(make([]byte, 0, 16<<10), qmpLineMax)
	var err error
	for err == nil && lines.Scan() {
		var m qmpMessage
		if err = json.Unmarshal(lines.Bytes(), &m); err == nil {
			q.take(m)
		}
	}
	if err == nil {
		err = lines.Err()
	}
	if err == nil {
		err = errGone
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
	for id, c := range q.waiting {
		close(c)
		delete(q.waiting, id)
	}
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *qmp) take(m qmpMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.Event != "" {
		if len(q.events) == eventsMax {
			q.events = q.events[1:]
		}
		at := time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
		q.events = append(q.events, Event{m.Event, at, append(json.RawMessage(nil), m.Data...)})
		close(q.changed)
		q.changed = make(chan struct{})
		return
	}
	if c := q.waiting[m.ID]; c != nil {
		m.Return = append(json.RawMessage(nil), m.Return...)
		c <- m
		delete(q.waiting, m.ID)
	}
}

// do carries out a command; out, unless nil, takes what it returns.
func (q *qmp) do(ctx context.Context, command string, args, out any) error {
	answer := make(chan qmpMessage, 1)
	q.mu.Lock()
	if q.err != nil {
		q.mu.Unlock()
		return q.err
	}
	q.next++
	id := q.next
	q.waiting[id] = answer
	q.mu.Unlock()
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	q.write.Lock()
	_, err = q.conn.Write(append(text, '\n'))
	q.write.Unlock()
	if err != nil {
		return fmt.Errorf("qemu: %s: %w", command, err)
	}
	select {
	case m, ok := <-answer:
		if !ok {
			return fmt.Errorf("qemu: %s: %w", command, errGone)
		}
		if m.Error != nil {
			return &QMPError{command, m.Error.Class, m.Error.Desc}
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, out); err != nil {
			return fmt.Errorf("qemu: %s: %w", command, err)
		}
		return nil
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
		return ctx.Err()
	}
}

// waitEvent gives the first event of a name that is not older than a time, also one that has come already.
func (q *qmp) waitEvent(ctx context.Context, name string, since time.Time) (Event, error) {
	for {
		q.mu.Lock()
		for _, e := range q.events {
			if e.Name == name && !e.At.Before(since) {
				q.mu.Unlock()
				return e, nil
			}
		}
		changed, err := q.changed, q.err
		q.mu.Unlock()
		if err != nil {
			return Event{}, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Event{}, fmt.Errorf("qemu: waiting for %s: %w", name, ctx.Err())
		}
	}
}

// errGone: QEMU has ended.
var errGone = errors.New("the guest's qemu has ended")
