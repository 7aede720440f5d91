package initiator

import (
	"runtime"
	"sync"
	"testing"
)

// answering is a transport that answers every command that is written to it with GOOD, left times.
type answering struct {
	itts   []uint32
	left   int
	statSN uint32
	max    uint32
}

func (a *answering) read(_, b []byte) (int, error) {
	n := 0
	for _, itt := range a.itts {
		if a.left == 0 {
			return n, errEOF
		}
		a.left--
		h := (*BHS)(b[n:])
		*h = BHS{0: byte(OpSCSIResponse), 1: flagFinal}
		h.SetUint32(offITT, itt)
		h.SetUint32(offStatSN, a.statSN)
		a.statSN++
		a.max++
		h.SetUint32(offExpCmdSN, a.max-64)
		h.SetUint32(offMaxCmdSN, a.max)
		n += bhsLen
	}
	a.itts = a.itts[:0]
	if n == 0 {
		return 0, errEOF
	}
	return n, nil
}

func (a *answering) write(v *iovecs, _ bool) (int, error) {
	n := 0
	for i := range v.vec[:v.n] {
		b := bytesOf(&v.vec[i])
		if len(b) == bhsLen {
			a.itts = append(a.itts, (*BHS)(b).ITT())
		}
		n += len(b)
	}
	return n, nil
}
func (*answering) closeWrite() {}
func (*answering) shutdown()   {}
func (*answering) close()      {}

// TestNoAllocationsPerCommand pins that a command costs no allocation, from Submit to Done.
func TestNoAllocationsPerCommand(t *testing.T) {
	const depth, commands = 32, 20000
	s := &Session{cfg: Config{}.withDefaults(), kick: make(chan struct{}, 1), params: defaultParams()}
	s.cmdSN, s.expCmdSN, s.maxCmdSN = 1, 1, 64
	cn := &conn{s: s, frame: framing{maxData: 8192}, sendMax: 8192, t: &answering{left: commands, max: 64},
		dead: make(chan struct{}), wake: make(chan struct{}, 1), idle: sync.NewCond(&s.mu)}
	cn.in.buf = make([]byte, readBufferLen)
	s.conns = []*conn{cn}
	done := 0
	for range depth {
		c := &Command{Out: make([]byte, 4096)}
		c.Done = func(c *Command) {
			if c.Error() != nil {
				return
			}
			done++
			c.Write16(uint64(done), 8, false)
			_ = s.Submit(c) // refused at the end
		}
		if err := s.Submit(c); err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cn.readLoop()
	runtime.ReadMemStats(&after)
	if done < commands-depth {
		t.Fatalf("%d commands done", done)
	}
	if n := after.Mallocs - before.Mallocs; n > commands/100 {
		t.Fatalf("%d allocations for %d commands", n, done)
	}
}
