package history

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"
)

// Op is one operation of one client on one block, which is a register: a read returns the value that the block had.
// Values are chosen so that no two writes of a block have the same; 0 is what was there at the start.
type Op struct {
	Client int    `json:"client"`
	Write  bool   `json:"write"`
	Block  uint64 `json:"block"`
	Value  uint64 `json:"value"`
	Call   int64  `json:"call_ns"`   // since the recorder was made
	Return int64  `json:"return_ns"` // Pending: no answer, so it may have happened at any time after Call, or never
}

// Pending is the Return of an operation whose outcome nobody knows.
const Pending = math.MaxInt64

// Recorder notes what several clients do at the same time. All methods may be called by any goroutine.
type Recorder struct {
	start time.Time
	mu    sync.Mutex
	ops   []Op
}

// NewRecorder begins an empty history.
func NewRecorder() *Recorder { return &Recorder{start: time.Now()} }

// Begin notes a call just before it is made; the result names it for End. A read's value is given to End.
func (r *Recorder) Begin(client int, write bool, block, value uint64) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, Op{client, write, block, value, int64(time.Since(r.start)), Pending})
	return len(r.ops) - 1
}

// End notes the answer just after it came. An operation that is never ended stays pending.
func (r *Recorder) End(id int, value uint64) {
	now := int64(time.Since(r.start))
	r.mu.Lock()
	defer r.mu.Unlock()
	o := &r.ops[id]
	o.Return = now
	if !o.Write {
		o.Value = value
	}
}

// Ops is the history so far. Reads without an answer say nothing and are left out.
func (r *Recorder) Ops() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.ops), func(o Op) bool { return !o.Write && o.Return == Pending })
}

// WriteJSON writes the history, an Op a line. The fields are those that porcupine's Operation has (client, input,
// call, output, return), so that a model of a register reads it directly.
func (r *Recorder) WriteJSON(w io.Writer) error {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	for _, o := range r.Ops() {
		if err := e.Encode(o); err != nil {
			return err
		}
	}
	return b.Flush()
}

// NotLinearizable says why no single order explains a block's operations.
type NotLinearizable struct {
	Block uint64 `json:"block"`
	Why   string `json:"why"`
	Ops   []Op   `json:"ops"` // those that contradict each other
}

func (e *NotLinearizable) Error() string {
	return fmt.Sprintf("block %d: not linearizable: %s: %+v", e.Block, e.Why, e.Ops)
}

// cluster is a write with the reads that returned its value.
type cluster struct {
	value uint64
	write Op
	ops   []Op
	// first is when the first operation ended, last when the last one began. If first is before last the value was
	// the register's during all of [first, last] (a forward zone); else there is only some instant between last and
	// first at which all of the cluster happened (a backward zone).
	first, last Op
}

func (c *cluster) forward() bool { return c.first.Return < c.last.Call }

// CheckRegisters decides whether the history of every block is linearizable. Since no value is written twice, this
// takes sorting and not a search (P. Gibbons, E. Korach: Testing Shared Memories, 1997): a history of one register is
// linearizable if no value is read before its write began or without one, no two forward zones overlap, and no
// backward zone lies within a forward one. The result is nil or a *NotLinearizable.
func CheckRegisters(ops []Op) error {
	blocks := map[uint64][]Op{}
	for _, o := range ops {
		blocks[o.Block] = append(blocks[o.Block], o)
	}
	order := make([]uint64, 0, len(blocks))
	for b := range blocks {
		order = append(order, b)
	}
	slices.Sort(order)
	for _, b := range order {
		if err := checkRegister(b, blocks[b]); err != nil {
			return err
		}
	}
	return nil
}

func checkRegister(block uint64, ops []Op) error {
	bad := func(why string, ops ...Op) error { return &NotLinearizable{block, why, ops} }
	start := Op{Client: -1, Write: true, Block: block, Call: math.MinInt64, Return: math.MinInt64}
	byValue := map[uint64]*cluster{0: {write: start, ops: []Op{start}}}
	for _, o := range ops {
		if !o.Write {
			continue
		}
		if c := byValue[o.Value]; c != nil {
			return bad(fmt.Sprintf("value %d is written twice, so it can not be checked", o.Value), c.write, o)
		}
		byValue[o.Value] = &cluster{value: o.Value, write: o, ops: []Op{o}}
	}
	for _, o := range ops {
		if o.Write {
			continue
		}
		c := byValue[o.Value]
		if c == nil {
			return bad("a read returns what nobody wrote", o)
		}
		if o.Return < c.write.Call {
			return bad("a read returns a value before its write began", c.write, o)
		}
		c.ops = append(c.ops, o)
	}
	var clusters []*cluster
	for _, c := range byValue {
		if c.write.Return == Pending && len(c.ops) == 1 {
			continue // never seen: it need not have happened
		}
		c.first = slices.MinFunc(c.ops, func(a, b Op) int { return cmp.Compare(a.Return, b.Return) })
		c.last = slices.MaxFunc(c.ops, func(a, b Op) int { return cmp.Compare(a.Call, b.Call) })
		clusters = append(clusters, c)
	}
	return checkZones(block, clusters)
}

func checkZones(block uint64, clusters []*cluster) error {
	var fwd, back []*cluster
	for _, c := range clusters {
		if c.forward() {
			fwd = append(fwd, c)
		} else {
			back = append(back, c)
		}
	}
	slices.SortFunc(fwd, func(a, b *cluster) int { return cmp.Compare(a.first.Return, b.first.Return) })
	for i := 1; i < len(fwd); i++ {
		a, b := fwd[i-1], fwd[i]
		if b.first.Return < a.last.Call {
			return &NotLinearizable{block, fmt.Sprintf("values %d and %d must both be there at one time", a.value, b.value),
				[]Op{a.first, a.last, b.first, b.last}}
		}
	}
	for _, b := range back {
		// The forward zones do not overlap, so the only one that can contain b is the last that begins before it.
		i, _ := slices.BinarySearchFunc(fwd, b.last.Call, func(f *cluster, t int64) int { return cmp.Compare(f.first.Return, t) })
		if i == 0 {
			continue
		}
		if f := fwd[i-1]; f.first.Return < b.last.Call && b.first.Return < f.last.Call {
			return &NotLinearizable{block, fmt.Sprintf("value %d was there all the time in which value %d had to be", f.value, b.value),
				[]Op{f.first, f.last, b.first, b.last}}
		}
	}
	return nil
}
