package access

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// Owner drives one journal in one epoch: it gives records their place, has them stored on two servers, keeps
// the map, and answers. TakeOver makes one; it serves until it is deposed or closed.
//
// The stages of a write: Submit (any goroutine; checksums made) -> admit (R9, merges; loop) -> Writer.Queue
// and Pump (seq, batch) -> append on two stores in parallel -> commit (map updated) -> Done, for FUA once
// stable. Of a read: Submit -> admit, lease check, map look-up (loop) -> one or more stores -> Done.
type Owner struct {
	env    Env
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	journalID ident.JournalID
	epoch     ident.Epoch
	members   []journal.Member
	stores    []journal.Store // by member
	grants    []*Grant
	spec      atomic.Pointer[control.VolumeSpec]
	state     control.JournalState
	started   time.Time

	q struct {
		sync.Mutex
		events  []event
		spare   []event
		running bool
	}

	// The loop's own.
	w             *journal.Writer
	m             *volume.Map
	segs          map[ident.SegmentID]*segment
	all           []*segment                   // the same; see keep
	parts         map[ident.SegmentID]*segment // those of checkpoints among them; see keep
	order         []*segment                   // history segments by seq
	late          late
	uncommitted   []*Op // writes with a place in the history, in order
	merging       int   // commands whose blocks are being read for a merge
	waiting       []*Op // commands that wait for overlapping ones (R7), in order of arrival
	stableWait    []*Op // flushes and FUA writes, by seq
	leafWait      map[volume.LeafID][]*Op
	finished      []finish
	cp            checkpointState
	chore         chore
	stopErr       error
	recovered     *journal.Recovery
	fenced        []control.Ensemble // those asked at the takeover
	proven        bool
	uncertain     bool // R4 did not know the end of the history
	viewing       bool // it only looks at the history: a view of a fork
	forced        bool // it goes without stores that R2 asks for
	partition     stopState
	ack           ackState
	declared      bool         // the stores that it went without were declared lost; nobody has forced it
	holed         bool         // the history was cut at a hole
	loss          loss         // what is known to be lost by that
	farAnswers    fenceAnswers // what other sites said then
	forks         forks
	ports         ports
	showing       atomic.Bool // logins wait for other sites to have their attachments
	written       uint64
	tails         []tailStamp // when records were committed, for the lag in seconds
	ships         []*siteShip
	permits       map[permitKey]pendingPermit
	repair        repairState
	strays        strayState
	ensemble      ensembleState
	servedAt      time.Duration
	unanswered    []appendWait // by time
	reading       []*readTry   // asked, by time; answered ones stay until the next look
	turn          atomic.Uint64
	lastSeg       *segment // that the last committed record is in
	lastAppend    time.Duration
	doze          doze
	older         bool  // there are nodes that do not take all records that this one can make: control.LevelRecords
	full          bool  // the last segment could not be opened for want of space
	refused       []*Op // scratch of refuseForSpace
	split         []*Op // partial trims whose parts are under way
	barWait       []barWait
	leaseless     []leaseWait
	hand          *handed
	move          moveState
	far           farState
	unit          unit
	tokens        tokens
	unsettled     map[ident.SegmentID]*segment // of former epochs, not yet known stable on two servers (R8)
	regathers     bool                         // stores were given up: what is of former epochs has to be on two members (withoutSome)
	stableSaid    uint64                       // Owner.tick, when it was last said what flushes wait for
	refusedCopies int                          // copies in a row of this epoch's segments that a store has refused

	serving chan struct{} // closed when the epoch-start is stable
	stopped chan struct{} // closed when the owner serves no more
	view    atomic.Pointer[View]
}

type finish struct {
	op  *Op
	err error
}

// event is one thing that happened to the owner.
type event struct {
	kind   eventKind
	op     *Op
	member int
	batch  *journal.Batch
	boot   ident.BootID
	err    error
	fn     func()
}

type eventKind uint8

const (
	evSubmit eventKind = iota
	evMerged
	evAppended
	evCall
	evTick // evCall by the clock: nothing has happened
)

// post adds an event and, if nobody runs the loop, runs it.
func (o *Owner) post(ev event) {
	if ev.kind != evTick {
		o.doze.rouse()
	}
	o.q.Lock()
	o.q.events = append(o.q.events, ev)
	run := !o.q.running
	o.q.running = true
	o.q.Unlock()
	if run {
		o.run()
	}
}

// call runs fn in the loop; it doesn't wait.
func (o *Owner) call(fn func()) { o.post(event{kind: evCall, fn: fn}) }

// ask runs fn in the loop and waits for it; never from the loop itself.
func (o *Owner) ask(fn func()) {
	done := make(chan struct{})
	o.call(func() { fn(); close(done) })
	<-done
}

func (o *Owner) run() {
	for {
		o.q.Lock()
		if len(o.q.events) == 0 {
			o.q.running = false
			o.q.Unlock()
			return
		}
		evs := o.q.events
		o.q.events, o.q.spare = o.q.spare[:0], nil
		o.q.Unlock()

		o.beginTurn()
		for i := range evs {
			o.handle(&evs[i])
		}
		o.settle()
		clear(evs)
		o.q.Lock()
		if o.q.spare == nil {
			o.q.spare = evs[:0]
		}
		o.q.Unlock()
	}
}

func (o *Owner) handle(ev *event) {
	switch ev.kind {
	case evSubmit:
		if !o.holdBack(ev.op) {
			o.admit(ev.op)
		}
	case evMerged:
		o.merged(ev.op, ev.err)
	case evAppended:
		o.appended(ev)
	case evCall, evTick:
		ev.fn()
	}
}

// settle restores the invariants after events: everything sent that may be, everything answered that may be.
func (o *Owner) settle() {
	if o.w == nil {
		return
	}
	for range 8 {
		o.w.Pump()
		more := o.perform()
		more = o.committed() || more
		if !more {
			break
		}
	}
	if o.full && o.w.Queued() > 0 {
		o.refuseForSpace()
	}
	o.releaseStable()
	if len(o.leaseless) > 0 {
		o.releaseLeaseless()
	}
	if len(o.barWait) > 0 {
		o.releaseBars()
	}
	done := o.finished
	o.finished = nil
	for i := range done {
		op := done[i].op
		op.Epoch, op.Tick = o.epoch, o.tick()
		op.Done(op, done[i].err)
	}
	if o.finished == nil {
		clear(done)
		o.finished = done[:0]
	}
}

// tick is the owner's clock for stamps (R9): milliseconds of CLOCK_BOOTTIME, as of the beginning of this turn of
// the loop. Reading that clock is a system call, so a turn reads it once; a stamp that is a little old only
// makes its command seem older than it is.
func (o *Owner) tick() uint64 { return o.turn.Load() }

// beginTurn reads the clock. The timers' turns, every 20 ms, keep it fresh while nothing else happens.
func (o *Owner) beginTurn() { o.turn.Store(uint64(o.env.Clock() / int64(time.Millisecond))) }

// Epoch of the owner.
func (o *Owner) Epoch() ident.Epoch { return o.epoch }

// Stamp is the present moment for stamps.
func (o *Owner) Stamp() wire.Stamp { return wire.Stamp{Epoch: o.epoch, Tick: o.tick()} }

// Serving is closed once the owner serves; Stopped once it serves no more.
func (o *Owner) Serving() <-chan struct{} { return o.serving }

// Stopped is closed once the owner serves no more.
func (o *Owner) Stopped() <-chan struct{} { return o.stopped }

// Err says why the owner stopped.
func (o *Owner) Err() error {
	select {
	case <-o.stopped:
		return o.stopErr
	default:
		return nil
	}
}

// Submit takes a command; op.Done is called once.
func (o *Owner) Submit(op *Op) {
	op.first = uint64(op.Offset) / journal.BlockSize
	op.count = (uint64(op.Offset)+uint64(op.Length)+journal.BlockSize-1)/journal.BlockSize - op.first
	if op.Buf != nil && op.Kind == wire.OpWrite && op.Buf.aligned() {
		op.Buf.sum()
	}
	o.post(event{kind: evSubmit, op: op})
}

// goesBy reports that the owner has heard of what matters to it in the volume's specification. It is the owner's own copy that
// says so: the server's may be newer already by a command that came between.
func (o *Owner) goesBy(s *control.VolumeSpec) bool {
	x := o.spec.Load()
	return x.SizeBytes == s.SizeBytes && x.Durability == s.Durability && x.Partition == s.Partition && x.Ack == s.Ack
}

// SetSpec tells the owner that the volume's specification has changed.
func (o *Owner) SetSpec(s control.VolumeSpec) {
	o.call(func() {
		o.spec.Store(&s)
		if blocks := uint64(s.SizeBytes) / journal.BlockSize; o.m != nil && o.m.Size() < blocks {
			if err := o.m.Resize(blocks); err != nil {
				o.log.Error("resize of the map", "err", err)
			}
		}
	})
}

// Bar records a refusal (R9); the answer may be passed on to the client once it returns.
func (o *Owner) Bar(m *wire.Bar) (wire.BarReply, error) {
	var r wire.BarReply
	var err error
	var wait chan bool
	var unitChange <-chan error
	o.ask(func() {
		if o.stopErr != nil {
			err = wire.Errorf(wire.CodeNotOwner, "epoch %s is over", o.epoch)
			return
		}
		now := o.tick()
		o.late.bar(m, now)
		unitChange = o.barUnit(m)
		r = wire.BarReply{Epoch: o.epoch, Tick: now}
		// Those that wait for others are held to it as well. Those that have their place in the history take
		// effect before the answer, not after it.
		var last ident.Seq
		for _, op := range o.waiting {
			op.barred = op.Nexus == nil
		}
		for _, op := range o.uncommitted {
			if barConcerns(m, op) {
				last = max(last, op.seq)
			}
		}
		if last > o.w.Commit().Seq {
			wait = make(chan bool, 1)
			o.barWait = append(o.barWait, barWait{last, wait})
		}
	})
	if wait != nil {
		select {
		case ok := <-wait:
			if !ok {
				return wire.BarReply{}, wire.Errorf(wire.CodeNotOwner, "epoch %s is over", o.epoch)
			}
		case <-time.After(barPatience):
			return wire.BarReply{}, wire.Errorf(wire.CodeBusy, "older commands are still under way")
		}
	}
	if unitChange != nil {
		select {
		case err := <-unitChange:
			if err != nil {
				return wire.BarReply{}, err
			}
		case <-time.After(barPatience):
			return wire.BarReply{}, wire.Errorf(wire.CodeBusy, "the change of the unit is still under way")
		}
	}
	if err == nil {
		err = o.waitPorts(m)
	}
	return r, err
}

// barPatience bounds how long a refusal waits for commands that were let in before it.
const barPatience = 10 * time.Second

// barWait is a refusal that is answered once what was let in before it is committed.
type barWait struct {
	seq  ident.Seq
	done chan bool // true: they are; closed: the owner stopped
}

// barConcerns reports that a refusal is about the command.
func barConcerns(m *wire.Bar, op *Op) bool {
	switch m.Kind {
	case wire.BarLUNReset, wire.BarClearTaskSet:
		return true
	case wire.BarAbortTask:
		return op.Request.Forwarder == m.Forwarder && op.Request.Number >= m.First && op.Request.Number <= m.Last
	case wire.BarLogin:
		return op.Nexus != nil && op.Nexus.Digest == m.Nexus.Digest && op.Session != m.Session
	}
	return op.Nexus != nil && op.Nexus.Digest == m.Nexus.Digest
}

func (o *Owner) releaseBars() {
	commit := o.w.Commit().Seq
	o.barWait = slices.DeleteFunc(o.barWait, func(b barWait) bool {
		if b.seq <= commit {
			b.done <- true
		}
		return b.seq <= commit
	})
}

// stop ends serving: every command gets an error, nothing is acknowledged any more. It runs in the loop.
func (o *Owner) stop(err error) {
	if o.stopErr != nil {
		return
	}
	o.stopErr = err
	o.showStrays()
	o.log.Warn("owner stopped", "epoch", o.epoch, "err", err)
	if o.w != nil {
		o.w.Stop(err)
	}
	gone := wire.Errorf(wire.CodeNotOwner, "%v", err)
	for _, list := range [][]*Op{o.uncommitted, o.waiting, o.stableWait, o.ack.wait} {
		for _, op := range list {
			if !op.merging { // one that is has its blocks being read into it: merged answers it
				o.finish(op, gone)
			}
		}
	}
	for _, list := range o.leafWait {
		for _, op := range list {
			o.finish(op, gone)
		}
	}
	o.uncommitted, o.waiting, o.stableWait, o.ack.wait = nil, nil, nil, nil
	clear(o.leafWait)
	o.releaseLeaseless()
	o.giveBackHeld(gone)
	for _, b := range o.barWait {
		close(b.done)
	}
	o.barWait = nil
	o.giveUpReads()
	o.giveUpFlights()
	o.endChore()
	o.env.Leases.Leave(o.journalID, o.epoch)
	o.env.Copies.announce(o.journalID, dangerNone)
	o.env.Maps.leave(o)
	o.cancel()
	close(o.stopped)
}

// finish answers a command at the end of this turn of the loop; a command is answered once.
func (o *Owner) finish(op *Op, err error) {
	if op.Done == nil || op.over {
		return
	}
	op.over = true
	if err == nil && o.silent() { // R11: whatever it was, nobody is told that it was done
		err = errSilent(o)
	}
	o.finished = append(o.finished, finish{op, err})
}

// Close stops the owner and waits for what it has under way. Acknowledged writes stay where they are.
func (o *Owner) Close() error {
	o.ask(func() { o.stop(errClosed) })
	o.wg.Wait()
	return nil
}

var errClosed = errors.New("the node is closing")

// The owner's clock ticks fast while there is something to do, and slower the longer there is nothing: thousands of
// idle volumes must not wake their nodes fifty times a second each. Whatever happens wakes it at once.
const (
	tickFast   = 20 * time.Millisecond
	tickSecond = time.Second
	tickIdle   = 5 * time.Second
	// Well above what anything under way may take before it is given up.
	dozeAfter  = 10 * time.Second
	sleepAfter = 2 * time.Minute
)

// timers runs the owner's clockwork.
func (o *Owner) timers() {
	defer o.wg.Done()
	timer := time.NewTimer(tickFast)
	defer timer.Stop()
	active := time.Now()
	var second time.Time
	seconds := 0
	for n := 0; ; n++ {
		select {
		case <-o.ctx.Done():
			return
		case <-timer.C:
		case <-o.doze.wake:
		}
		now := time.Now()
		if o.doze.happened.Swap(false) {
			active = now
		}
		wait := tickFast
		switch quiet := now.Sub(active); {
		case quiet > sleepAfter:
			wait = tickIdle
		case quiet > dozeAfter:
			wait = tickSecond
		}
		o.post(event{kind: evTick, fn: func() {
			if o.stopErr != nil {
				return
			}
			o.giveUpSlow()
			o.giveUpReads()
			o.giveUpFlights()
			o.letSlowedIn()
			if o.older {
				o.w.Wall(0)
			} else {
				o.w.Wall(time.Now().UnixNano())
			}
			o.keepJournal()
			o.keepAcks()
			o.countShown()
			o.keepChore(time.Duration(o.env.Clock()))
			o.w.Tick(time.Duration(o.env.Clock()))
			if n%5 == 0 {
				o.reclaim(time.Duration(o.env.Clock()))
				if len(o.unsettled) > 0 {
					o.settlePast()
				}
			}
			if now.Sub(second) >= tickSecond-tickFast/2 {
				second = now
				o.everySecond()
				if seconds++; seconds%farHotForget == 0 {
					o.far.cool()
				}
			}
		}})
		o.doze.asleep.Store(wait > tickFast)
		timer.Reset(wait)
	}
}

// doze is what wakes the owner's clock.
type doze struct {
	happened atomic.Bool // something, since the last tick
	asleep   atomic.Bool // the next tick is far away
	wake     chan struct{}
}

// rouse is called for all that happens but ticks.
func (d *doze) rouse() {
	if !d.happened.Load() {
		d.happened.Store(true)
	}
	if d.asleep.Load() && d.asleep.CompareAndSwap(true, false) {
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

// wall is the time of day for records, or 0 as long as there are nodes that refuse records with a time.
func (o *Owner) wall() int64 {
	if o.older = o.env.Control.Level() < control.LevelRecords; o.older {
		return 0
	}
	return time.Now().UnixNano()
}

// everySecond is the slow clockwork: liveness of members, checkpoints, what to drop and to repair, the view.
func (o *Owner) everySecond() {
	now := time.Duration(o.env.Clock())
	o.w.Wall(o.wall())
	for i, m := range o.members {
		if o.env.Stores.Up(m.Store) && o.env.Health.Usable(m.Store) {
			o.w.Up(i)
		}
	}
	if at := o.w.At().Seq; at != o.cp.idleSeq {
		o.cp.idleSeq, o.lastAppend = at, now
	} else if now-o.lastAppend > idleSealAfter && (!o.w.Tail() || o.beginChore(false)) {
		o.w.CloseIdle()
		o.lastAppend = now
	}
	o.late.prune(o.tick())
	o.maybeCheckpoint(now)
	o.awaited()
	o.lookForStrays(now)
	o.dropSome()
	o.repairSome(now)
	o.dropEnsembles()
	o.replaceMember(now)
	if o.stopErr != nil {
		return
	}
	o.pageOut()
	o.everySecondUnit()
	if o.sayWhatFlushesWaitFor(); o.stopErr != nil {
		return
	}
	o.tellSites()
	o.releaseCuts()
	o.showStrays()
	o.publish()
}

// idleSealAfter is R4's "a tail idle for 60 s is sealed".
const idleSealAfter = time.Minute
