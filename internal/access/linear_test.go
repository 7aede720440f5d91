package access

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A block of 4 KiB is eight sectors, each of which holds one number. The history of each block is checked by itself.
const (
	sectors      = 8
	linearBlocks = 3
)

type blockState [sectors]uint32

type blockInput struct {
	kind   wire.ForwardOp
	block  int
	sector int // of a write or COMPARE AND WRITE
	count  int // sectors of a write
	old    uint32
	value  uint32
	from   int // of a copy: the block that it copies
}

type blockOutput struct {
	unknown bool // no answer, or one that says nothing: it may have happened at any time since, or never
	same    bool // COMPARE AND WRITE: what was compared was equal
	read    blockState
}

var blockModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		var parts [][]porcupine.Operation
		at := map[int]int{}
		for _, op := range history {
			b := op.Input.(blockInput).block
			if _, ok := at[b]; !ok {
				at[b] = len(parts)
				parts = append(parts, nil)
			}
			parts[at[b]] = append(parts[at[b]], op)
		}
		return parts
	},
	Init: func() any { return blockState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(blockState), input.(blockInput), output.(blockOutput)
		switch in.kind {
		case wire.OpRead:
			return out.unknown || out.read == s, s
		case wire.OpCompareAndWrite:
			same := s[in.sector] == in.old
			if same {
				s[in.sector] = in.value
			}
			return out.unknown || out.same == same, s
		default:
			for i := range in.count {
				s[in.sector+i] = in.value
			}
			return true, s
		}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}

// blocksModel is the same for all blocks at once: a copy takes from one what it gives another.
var blocksModel = porcupine.Model{
	Init: func() any { return [linearBlocks]blockState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in := state.([linearBlocks]blockState), input.(blockInput)
		if in.kind == wire.OpCopy {
			s[in.block] = s[in.from]
			return true, s
		}
		ok, b := blockModel.Step(s[in.block], input, output)
		s[in.block] = b.(blockState)
		return ok, s
	},
	DescribeOperation: blockModel.DescribeOperation,
}

// blockHistory is the history of all clients. Moments are counted, not timed: the clock of these tests stands still while
// anything runs.
type blockHistory struct {
	clock atomic.Int64
	mu    sync.Mutex
	ops   []porcupine.Operation
}

func (r *blockHistory) add(client int, call int64, in blockInput, out blockOutput) {
	end := r.clock.Add(1)
	if out.unknown {
		if in.kind == wire.OpRead {
			return
		}
		end = 1 << 60
	}
	r.mu.Lock()
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
	r.mu.Unlock()
}

// linearClient does one command at a time through the access server of one node, and goes to another when it gets no
// proper answer.
type linearClient struct {
	n       *nodes
	id      int
	v       ident.JournalID
	rng     *rand.Rand
	rec     *blockHistory
	number  uint64
	seen    map[int]blockState
	answers int
	misses  int
	copies  bool    // it copies blocks, too
	failed  []error // what the commands got that had no proper answer
}

// submit does a command at a node; false if the node's access role is down.
func (c *linearClient) submit(x *node, op *Op) (error, bool) {
	s := x.srv.Load()
	if s == nil {
		return nil, false
	}
	vol, ok := s.Volume(c.v)
	if !ok {
		return nil, false
	}
	vol.Open()
	defer vol.Close()
	c.number++
	op.Request = wire.RequestID{Forwarder: uint64(c.id + 1), Number: c.number}
	op.Session = uint64(c.id + 1)
	op.Nexus = &wire.Nexus{Initiator: fmt.Sprint("client-", c.id), Digest: [16]byte{byte(c.id + 1)}}
	op.Stamp = vol.Stamp()
	done := make(chan error, 1)
	op.Done = func(_ *Op, err error) { done <- err }
	vol.Submit(op)
	return <-done, true
}

func (c *linearClient) step(t *testing.T, x *node, in blockInput) (ok bool) {
	op := NewOp()
	op.Kind, op.Offset, op.Length = in.kind, int64(in.block)*4096, 4096
	if in.kind == wire.OpCopy {
		op.Unit = (&CopyCall{From: int64(in.from) * 4096}).Append(nil)
	} else if in.kind != wire.OpRead {
		n := 512 * max(in.count, 1)
		op.Offset += int64(in.sector) * 512
		op.Length = int64(n)
		op.Buf = NewWriteBuf(op.Offset, n)
		fillNumbers(op.Buf.Bytes(), in.value)
	}
	if in.kind == wire.OpCompareAndWrite {
		op.Compare = make([]byte, 512)
		fillNumbers(op.Compare, in.old)
	}
	call := c.rec.clock.Add(1)
	err, up := c.submit(x, op)
	if !up {
		return false
	}
	if err != nil && !errors.Is(err, wire.ErrMiscompare) {
		c.failed = append(c.failed, err)
	}
	out := blockOutput{same: err == nil, unknown: err != nil && !errors.Is(err, wire.ErrMiscompare)}
	if in.kind == wire.OpRead && err == nil {
		var data []byte
		for _, d := range op.Data {
			data = append(data, d...)
		}
		for i := range out.read {
			sector := data[i*512:][:512]
			out.read[i] = binary.LittleEndian.Uint32(sector)
			for k := 0; k < 512; k += 4 {
				if got := binary.LittleEndian.Uint32(sector[k:]); got != out.read[i] {
					t.Errorf("block %d, sector %d is torn: %d and %d", in.block, i, out.read[i], got)
				}
			}
		}
		c.seen[in.block] = out.read
	}
	op.Release()
	c.rec.add(c.id, call, in, out)
	if !out.unknown {
		c.answers++
		if !out.same {
			c.misses++
		}
	}
	return !out.unknown
}

func fillNumbers(p []byte, v uint32) {
	for i := 0; i < len(p); i += 4 {
		binary.LittleEndian.PutUint32(p[i:], v)
	}
}

// run works until stop is closed. After a command without a proper answer it only reads until reads are answered: so
// few commands are unknown, which keeps the check short.
func (c *linearClient) run(t *testing.T, blocks int, stop <-chan struct{}) {
	at := c.rng.IntN(len(c.n.list))
	healthy := true
	var value uint32
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(1+c.rng.IntN(8000)) * time.Microsecond):
		}
		in := blockInput{kind: wire.OpRead, block: c.rng.IntN(blocks)}
		if k := c.rng.IntN(10); healthy && k >= 3 {
			value++
			in.value = uint32(c.id+1)<<24 | value
			in.sector = c.rng.IntN(sectors)
			if c.copies && k < 5 {
				in = blockInput{kind: wire.OpCopy, block: in.block, from: c.rng.IntN(blocks)}
			} else if k < 6 {
				in.kind, in.count = wire.OpWrite, 1+c.rng.IntN(min(3, sectors-in.sector))
			} else {
				// Few sectors, so that several clients compare the same ones.
				in.kind, in.sector = wire.OpCompareAndWrite, in.sector%2
				in.old = c.seen[in.block][in.sector]
			}
		}
		healthy = c.step(t, c.n.list[at], in)
		if !healthy || c.rng.IntN(50) == 0 {
			at = c.rng.IntN(len(c.n.list))
		}
		if !healthy {
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func (n *nodes) owner(v ident.JournalID, but *node) *node {
	for _, x := range n.list {
		if s := x.srv.Load(); s != nil && x != but {
			if vol, ok := s.Volume(v); ok {
				if o := vol.Owner(); o != nil && isClosed(o.Serving()) && !isClosed(o.Stopped()) {
					return x
				}
			}
		}
	}
	return nil
}

// What clients at several access servers see is one history, in the order of their commands, whatever happens to
// owners and stores: writes of single sectors, COMPARE AND WRITE and reads of the same few blocks.
func TestClientsSeeOneHistory(t *testing.T) {
	t.Parallel()
	var seeds []uint64
	for seed := range uint64(12) {
		seeds = append(seeds, seed)
	}
	if testing.Short() {
		seeds = seeds[:3]
	}
	if s := os.Getenv("DOZO_TEST_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("seed %d; again with DOZO_TEST_SEED=%d", seed, seed)
			rec := &blockHistory{}
			synctest.Test(t, func(t *testing.T) { oneHistory(t, seed, rec, false) })
			res, _ := porcupine.CheckOperationsVerbose(blockModel, rec.ops, time.Minute)
			if res != porcupine.Ok {
				t.Errorf("the history of %d commands is not linearizable: %v", len(rec.ops), res)
			}
		})
	}
}

// The same with clients that also copy blocks to one another by reference, whoever the owner is just then.
func TestCopiesAreOfTheOneHistory(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rec := &blockHistory{}
			synctest.Test(t, func(t *testing.T) { oneHistory(t, seed, rec, true) })
			res, _ := porcupine.CheckOperationsVerbose(blocksModel, rec.ops, time.Minute)
			if res != porcupine.Ok {
				t.Errorf("the history of %d commands is not linearizable: %v", len(rec.ops), res)
			}
		})
	}
}

func oneHistory(t *testing.T, seed uint64, rec *blockHistory, copies bool) {
	const blocks, lease = linearBlocks, time.Second
	rng := rand.New(rand.NewPCG(seed, 101))
	n := newNodes(t, 1, 3, lease)
	n.limit.SegmentBytes = 128 << 10
	v := n.volume(1<<20, 1, control.Replicated)
	for _, x := range n.list {
		x.serve()
	}
	eventually(t, "an owner", func() bool { return n.owner(v.ID, nil) != nil })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var clients []*linearClient
	for i := range 5 {
		c := &linearClient{n: n, id: i, v: v.ID, rng: rand.New(rand.NewPCG(seed, uint64(i))), rec: rec, seen: map[int]blockState{}, copies: copies}
		clients = append(clients, c)
		wg.Go(func() { c.run(t, blocks, stop) })
	}
	time.Sleep(300 * time.Millisecond)
	for range 4 {
		x := n.owner(v.ID, nil)
		if x == nil {
			eventually(t, "an owner", func() bool { return n.owner(v.ID, nil) != nil })
			x = n.owner(v.ID, nil)
		}
		switch rng.IntN(3) {
		case 0: // the owner's node is cut off, with clients on its side
			x.cut.Store(true)
			eventually(t, "another owner", func() bool { return n.owner(v.ID, x) != nil })
			time.Sleep(300 * time.Millisecond)
			x.cut.Store(false)
		case 1: // the access role ends in good order
			x.stop()
			eventually(t, "another owner", func() bool { return n.owner(v.ID, x) != nil })
			time.Sleep(300 * time.Millisecond)
			x.serve()
		case 2: // a store dies and comes back, and the owner's node is cut off in between
			s := n.seats[rng.IntN(len(n.seats))]
			n.kill(s)
			time.Sleep(300 * time.Millisecond)
			n.start(s)
			x.cut.Store(true)
			eventually(t, "another owner", func() bool { return n.owner(v.ID, x) != nil })
			x.cut.Store(false)
		}
		time.Sleep(time.Duration(200+rng.IntN(500)) * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	answers, misses := 0, 0
	for _, c := range clients {
		answers += c.answers
		misses += c.misses
	}
	t.Logf("%d answers, %d of them that what was compared differs; %d commands in the history", answers, misses, len(rec.ops))
	if answers < 500 || misses < 10 {
		t.Errorf("only %d answers and %d miscompares", answers, misses)
	}
	for _, x := range n.list {
		x.stop()
	}
}
