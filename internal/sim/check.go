package sim

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"dozo/internal/wire"
)

// What clients saw is checked block by block: is there an order of all commands, each at some moment between its call and
// its answer, in which every answer is right? A block is eight sectors, each of which holds one number; every write
// writes a number of its own, so that an answer says which write it saw.
//
// The search goes through the calls and answers in the order of time and keeps the set of all states in which the block
// may be, each with the commands under way that have taken effect in it. Commands that change nothing take effect in the
// first state that suits them, so only writes multiply the states, and those under way at a time are few.
//
// A command that was not answered, or with an error, and was said again, may have had its effect at any moment until
// the repetition was answered, and as often as it likes: that is R9's promise, since from then on the client counts on
// its being over. After a takeover that is not proven (R4), the block may have gone back to any state since the last
// flush.

const (
	sectorSize = 512
	sectors    = 8
	blockBytes = sectors * sectorSize
)

type blockState [sectors]uint32

// unitState is what is checked together: a block, or two that are copied to each other.
type unitState [2]blockState

// opIn is a command.
type opIn struct {
	kind   wire.ForwardOp
	block  int
	sector int
	count  int // sectors written
	old    uint32
	value  uint32
	fua    bool
	from   int // block that is copied
	half   int // of its unit
}

func (in *opIn) mutates() bool {
	return in.kind == wire.OpWrite || in.kind == wire.OpCompareAndWrite || in.kind == wire.OpZero || in.kind == wire.OpCopy
}

func (in *opIn) offset() int64 {
	switch in.kind {
	case wire.OpFlush:
		return 0
	case wire.OpRead, wire.OpZero, wire.OpCopy:
		return int64(in.block) * blockBytes
	}
	return int64(in.block)*blockBytes + int64(in.sector)*sectorSize
}

func (in *opIn) length() int64 {
	switch in.kind {
	case wire.OpFlush:
		return 0
	case wire.OpRead, wire.OpZero, wire.OpCopy:
		return blockBytes
	}
	return int64(in.count) * sectorSize
}

// payload is what the command carries; COMPARE AND WRITE both halves.
func (in *opIn) payload() []byte {
	fill := func(p []byte, v uint32) {
		for i := 0; i < len(p); i += 4 {
			binary.LittleEndian.PutUint32(p[i:], v)
		}
	}
	switch in.kind {
	case wire.OpWrite:
		b := make([]byte, in.count*sectorSize)
		fill(b, in.value)
		return b
	case wire.OpCompareAndWrite:
		b := make([]byte, 2*sectorSize)
		fill(b[:sectorSize], in.old)
		fill(b[sectorSize:], in.value)
		return b
	}
	return nil
}

func (in opIn) String() string {
	switch in.kind {
	case wire.OpRead:
		return fmt.Sprintf("read block %d", in.block)
	case wire.OpWrite:
		return fmt.Sprintf("write %x to block %d, sectors %d+%d, fua=%v", in.value, in.block, in.sector, in.count, in.fua)
	case wire.OpCompareAndWrite:
		return fmt.Sprintf("compare %x and write %x to block %d, sector %d", in.old, in.value, in.block, in.sector)
	case wire.OpZero:
		return fmt.Sprintf("zero block %d", in.block)
	case wire.OpCopy:
		return fmt.Sprintf("copy block %d to block %d", in.from, in.block)
	}
	return in.kind.String()
}

// apply is the command's effect; false if it has none in this state.
func (in *opIn) apply(s unitState) (unitState, bool) {
	b := &s[in.half]
	switch in.kind {
	case wire.OpWrite:
		for i := range in.count {
			b[in.sector+i] = in.value
		}
	case wire.OpZero:
		*b = blockState{}
	case wire.OpCopy:
		*b = s[1-in.half]
	case wire.OpCompareAndWrite:
		if b[in.sector] != in.old {
			return s, false
		}
		b[in.sector] = in.value
	default:
		return s, false
	}
	return s, true
}

// opOut is an answer.
type opOut struct {
	epoch   uint64
	decided time.Duration
	same    bool // COMPARE AND WRITE: equal
	read    blockState
}

// entry is one command in a history. Moments are counted, not timed.
type entry struct {
	in        opIn
	out       opOut
	call, ret int64
	maybe     bool // see the head of this file
}

// rollback is that the volume may have gone back, in an epoch. By force it may have gone back behind the last flush, and an
// owner that was given up may go on: what it answers later is of a history of its own, a fork.
type rollback struct {
	at    int64
	epoch uint64
	force bool
	// What the policies promise (R11): nothing that was acknowledged is missing; and who was given up answers nothing any more.
	kept, silent bool
}

// leaves reports that a command is not of the history that is served after the takeover: an owner that had been given up has
// answered it. Where nothing acknowledged may be missing that owner can at most show what was before.
func (r *rollback) leaves(e *entry) bool {
	return r.force && !e.maybe && e.out.epoch < r.epoch && e.call > r.at && (!r.kept || !r.silent && !(e.in.mutates() && e.out.same))
}

// history is what all clients saw.
type history struct {
	mu        sync.Mutex
	clock     int64
	list      []entry
	rollbacks []rollback
	unjudged  int // blocks that were too uncertain
}

func (h *history) tick() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

func (h *history) done(in opIn, out opOut, call int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.list = append(h.list, entry{in: in, out: out, call: call, ret: h.clock})
}

// maybe notes attempts that nobody knows the outcome of; ret 0 means that it stays so.
func (h *history) maybe(in opIn, call, ret int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ret == 0 {
		ret = never
	}
	h.list = append(h.list, entry{in: in, call: call, ret: ret, maybe: true})
}

func (h *history) wentBack(epoch uint64, force bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.rollbacks = append(h.rollbacks, rollback{at: h.clock, epoch: epoch, force: force})
}

// check gives what is wrong, "" if nothing. Where blocks 0 and 1 are copied to each other they are one unit.
func (h *history) check(blocks int, refer bool) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	main, forks := h.branches()
	for b := 0; b < blocks; b++ {
		last := b
		if refer && b == 0 {
			last = 1
		}
		if s := main.checkUnit(b, last); s != "" {
			return s
		}
		h.unjudged += main.unjudged
		main.unjudged = 0
		for _, f := range forks {
			if s := f.checkUnit(b, last); s != "" {
				return "left behind: " + s
			}
		}
		b = last
	}
	return ""
}

// branches takes the histories apart that owners went on with which had been given up by force: one for each such takeover,
// as if it had not been, if anything was answered in it afterwards. In the history that is served, nothing that was asked
// for after the takeover and answered by an older epoch has an effect.
func (h *history) branches() (main *history, forks []*history) {
	main = &history{rollbacks: h.rollbacks}
	for _, e := range h.list {
		if slices.ContainsFunc(h.rollbacks, func(r rollback) bool { return r.leaves(&e) }) {
			continue
		}
		main.list = append(main.list, e)
	}
	for _, r := range h.rollbacks {
		if !slices.ContainsFunc(h.list, func(e entry) bool { return r.leaves(&e) }) {
			continue
		}
		f := &history{}
		for _, x := range h.rollbacks {
			if x.epoch < r.epoch {
				f.rollbacks = append(f.rollbacks, x)
			}
		}
		for _, e := range h.list {
			if e.maybe && e.ret > r.at {
				e.ret = never // its repetition may have been answered in the other history
			}
			if e.maybe || e.out.epoch < r.epoch {
				f.list = append(f.list, e)
			}
		}
		forks = append(forks, f)
	}
	return main, forks
}

// never is the moment of what does not happen.
const never = 1 << 62

type config struct {
	state unitState
	done  uint64 // bit i: the command in slot i has taken effect
}

type checker struct {
	slots  [64]*entry
	maybes []*entry
	set    map[config]struct{}
	past   map[unitState]once // states that the block may go back to
	fua    uint64             // slots of writes with FUA
	ever   map[unitState]bool // and by force; nil where nobody uses it
	epoch  uint64             // before which all was given up by force
}

// once is when a state was last possible, and which writes with FUA, of those under way, can have taken effect in it.
type once struct {
	at   int64
	done uint64
}

// moment is one end of a command, or a rollback.
type moment struct {
	at   int64
	e    *entry
	ret  bool
	back *rollback
}

// statesMax is how many states are kept at most: beyond it the block's history is too uncertain to be judged.
const statesMax = 200_000

func (h *history) checkUnit(block, last int) string {
	var ms []moment
	for i := range h.list {
		e := &h.list[i]
		if e.in.kind != wire.OpFlush && (e.in.block < block || e.in.block > last) {
			continue
		}
		ms = append(ms, moment{at: e.call, e: e})
		if e.ret < never {
			ms = append(ms, moment{at: e.ret, e: e, ret: true})
		}
	}
	for i := range h.rollbacks {
		if r := &h.rollbacks[i]; !r.kept {
			ms = append(ms, moment{at: r.at, back: r})
		}
	}
	slices.SortStableFunc(ms, func(a, b moment) int { return int(a.at - b.at) })
	c := &checker{set: map[config]struct{}{{}: {}}, past: map[unitState]once{{}: {}}}
	if slices.ContainsFunc(h.rollbacks, func(r rollback) bool { return r.force }) {
		c.ever = map[unitState]bool{{}: true}
	}
	for _, m := range ms {
		switch {
		case m.back != nil:
			c.back(m.back)
		case m.e.maybe && m.ret:
			c.expand(m.at)
			c.maybes = slices.DeleteFunc(c.maybes, func(e *entry) bool { return e == m.e })
		case m.e.maybe:
			c.maybes = append(c.maybes, m.e)
		case m.e.in.kind == wire.OpFlush && m.ret && m.e.out.epoch >= c.epoch:
			c.expand(m.at)
			for s, x := range c.past {
				if x.at < m.e.call {
					delete(c.past, s)
				}
			}
		case m.e.in.kind == wire.OpFlush:
			c.expand(m.at)
		case m.ret:
			if s := c.answer(m.e, m.at); s != "" {
				return fmt.Sprintf("block %d is not linearizable: %s", block, s)
			}
		default:
			c.call(m.e)
		}
		if len(c.set) > statesMax {
			h.unjudged++
			return ""
		}
	}
	return ""
}

func (c *checker) call(e *entry) {
	i := slices.Index(c.slots[:], nil)
	if i < 0 {
		return // more at a time than there are clients: can't be
	}
	c.slots[i] = e
	if e.in.fua {
		c.fua |= 1 << i
	}
	c.see()
}

// see lets what changes nothing take effect wherever it can.
func (c *checker) see() {
	var add []config
	for x := range c.set {
		if y := c.seen(x); y != x {
			delete(c.set, x)
			add = append(add, y)
		}
	}
	for _, x := range add {
		c.set[x] = struct{}{}
	}
}

func (c *checker) seen(x config) config {
	for i, e := range c.slots {
		if e == nil || x.done&(1<<i) != 0 {
			continue
		}
		switch {
		case e.in.kind == wire.OpRead && e.out.read == x.state[e.in.half],
			e.in.kind == wire.OpCompareAndWrite && !e.out.same && x.state[e.in.half][e.in.sector] != e.in.old:
			x.done |= 1 << i
		}
	}
	return x
}

// expand adds every state that commands under way can lead to.
func (c *checker) expand(now int64) {
	var work []config
	for x := range c.set {
		work = append(work, x)
	}
	put := func(x config) {
		x = c.seen(x)
		if _, ok := c.set[x]; !ok {
			c.set[x] = struct{}{}
			work = append(work, x)
		}
	}
	for len(work) > 0 && len(c.set) <= statesMax {
		x := work[len(work)-1]
		work = work[:len(work)-1]
		c.past[x.state] = once{now, c.past[x.state].done | x.done&c.fua}
		if c.ever != nil {
			c.ever[x.state] = true
		}
		for i, e := range c.slots {
			if e == nil || x.done&(1<<i) != 0 || !e.in.mutates() || e.in.kind == wire.OpCompareAndWrite && !e.out.same {
				continue
			}
			if s, ok := e.in.apply(x.state); ok {
				put(config{s, x.done | 1<<i})
			}
		}
		for _, e := range c.maybes {
			if s, ok := e.in.apply(x.state); ok && s != x.state {
				put(config{s, x.done})
			}
		}
	}
}

// answer takes the end of a command: it has taken effect by now, or nothing makes sense.
func (c *checker) answer(e *entry, now int64) string {
	i := slices.Index(c.slots[:], e)
	if i < 0 {
		return "" // it was answered before the volume went back
	}
	c.expand(now)
	rest := map[config]struct{}{}
	for x := range c.set {
		if x.done&(1<<i) != 0 {
			x.done &^= 1 << i
			rest[x] = struct{}{}
		}
	}
	c.slots[i] = nil
	if len(rest) == 0 {
		return c.explain(e)
	}
	c.set = rest
	if e.in.fua {
		// What has come behind it is no more stable for that: any state since it took effect is one to go back to.
		c.fua &^= 1 << i
		for s, x := range c.past {
			if x.done&(1<<i) == 0 && e.out.epoch >= c.epoch {
				delete(c.past, s)
			} else {
				c.past[s] = once{x.at, x.done &^ (1 << i)}
			}
		}
	}
	return ""
}

// back lets the block be in any state since the last flush. Commands that an older epoch has answered need no longer
// have happened.
func (c *checker) back(r *rollback) {
	c.expand(r.at)
	var done uint64
	for i, e := range c.slots {
		if e != nil && e.out.epoch < r.epoch {
			done |= 1 << i
		}
	}
	clear(c.set)
	if r.force {
		c.epoch = r.epoch
		for s := range c.ever {
			c.past[s] = once{at: r.at}
		}
	}
	for s := range c.past {
		c.set[c.seen(config{s, done})] = struct{}{}
	}
}

func (c *checker) explain(e *entry) string {
	var states []blockState // of the block that the command is about
	for x := range c.set {
		if s := x.state[e.in.half]; !slices.Contains(states, s) && len(states) < 8 {
			states = append(states, s)
		}
	}
	slices.SortFunc(states, func(a, b blockState) int { return slices.Compare(a[:], b[:]) })
	what := e.in.String()
	switch {
	case e.in.kind == wire.OpRead:
		what += fmt.Sprintf(" gave %x", e.out.read)
	case e.in.kind == wire.OpCompareAndWrite:
		what += fmt.Sprintf(" gave equal=%v", e.out.same)
	}
	return fmt.Sprintf("%s (called %d, answered %d, epoch %d), but the block can only have been %x", what, e.call, e.ret, e.out.epoch, states)
}
