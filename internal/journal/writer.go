package journal

import (
	"time"

	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// Limits of an owner's writing. All are ours, none is part of a format.
const (
	batchBytesMax     = 1 << 20                // of one append: a frame stays well below its limit
	batchesSmallMax   = 2                      // appends under way while batches are small: the rest gathers (group commit)
	batchBytesSmall   = 128 << 10              // a queue this long is sent whatever else is under way
	inflightBytesMax  = 8 << 20                // bounds what a failed pair makes us send again
	unsyncedBytesMax  = 64 << 20               // R8
	unsyncedBytesGoal = 16 << 20               // from here on a background fdatasync is due
	unsyncedAgeMax    = time.Second            // R8
	noticeAfter       = 50 * time.Millisecond  // protocol.md, "Terms"
	copyAfter         = 2 * time.Second        // how long a lost holder may come back before its unstable tail is copied
	copyRetry         = 500 * time.Millisecond // between attempts to make a lost replica again
	openPatience      = 400 * time.Millisecond // for a member to open a segment, where another can do it instead
)

// Member is one store of the newest recorded ensemble as its owner sees it.
type Member struct {
	Store ident.StoreID
	Home  bool // at the owner's site
}

// WriterConfig starts a Writer.
type WriterConfig struct {
	Journal  ident.JournalID
	Kind     JournalKind
	Site     ident.SiteID
	Epoch    ident.Epoch
	Members  []Member // two to four
	Capacity uint32   // of a segment; SegmentCapacityGoal if 0
	Number   uint32   // of the first segment
	Point    CheckpointPoint

	// From Recovery: the commit point it heard, the stable point, the records above the commit point, and
	// whether it proved that nothing is missing.
	Heard       ident.Position
	HeardStable ident.Position
	Tail        []*Entry
	Proven      bool

	// PastUnstable: records up to Heard may not be stable on two servers yet. Until SettlePast the stable point
	// stays at HeardStable: a flush covers the whole prefix (R8).
	PastUnstable bool

	Wall int64 // the time of day; see Writer.Wall
}

// Entry is one record on its way into the history. Bytes has room for the header, the CRC array already in
// its place, and the body; Queue fills in the header.
type Entry struct {
	Record
	Bytes   []byte
	Segment ident.SegmentID // where the record lies, valid once it is committed
	Offset  uint32
	Shared  bool // a store that no longer answers may still read Bytes: don't use the buffer again
	Context any  // the driver's
}

// Batch is one append to the two stores of a segment's pair.
type Batch struct {
	Segment *Segment
	Offset  uint32
	Data    [][]byte
	entries []*Entry
	last    ident.Position
	end     uint32
	bytes   int
	acks    uint8
	gone    bool // given up: its entries are in another batch
}

// replicaOf is one holder of a segment that the writer follows until it is settled.
type replicaOf struct {
	member    int
	opened    bool
	lost      bool // failed since the segment was opened; what is not stable there does not count
	refused   bool // its store has been asked to make the rest of it stable since, and says that it has no such replica
	copying   bool
	retryAt   time.Duration // a lost one is not made again before
	acked     uint32
	stableEnd uint32
	asked     uint32 // it had acknowledged so much when it was asked for an fdatasync that has not been answered; else 0
	sealed    bool
}

// Segment is a segment that the writer has not settled yet: open, or not sealed on two stores.
type Segment struct {
	ID        ident.SegmentID
	Before    ident.Position // known once the first record is assigned
	replicas  []replicaOf
	openFails bool
	askedAt   time.Duration
	closed    bool   // takes no more records
	records   int    // assigned
	end       uint32 // behind the last assigned record; 0: not even the header is
	commitEnd uint32 // behind the last committed record
	commit    ident.Position
	closedAt  time.Duration
	entries   []stableMark // committed, not yet known stable: positions at offsets
	sealSent  bool
}

type stableMark struct {
	end uint32
	pos ident.Position
}

// End is the offset behind the last committed record; the segment's end once it is closed.
func (s *Segment) End() uint32 { return s.commitEnd }

// Last is the last committed record.
func (s *Segment) Last() ident.Position { return s.commit }

// ActionKind says what the driver has to do.
type ActionKind uint8

// Actions of a Writer. The answer to each goes back by the method named.
const (
	ActOpen     ActionKind = iota + 1 // open Segment at Member -> Opened
	ActAppend                         // append Batch at Member -> Appended
	ActSync                           // fdatasync Segments at Member -> Synced
	ActSeal                           // seal Segment at Member -> Sealed
	ActCopy                           // copy Segment whole from Member to Dest and seal it there -> Sealed (of Dest)
	ActCopyOpen                       // the same, but it is only made stable there -> CopiedOpen
	ActDiscard                        // Segment has no committed record: drop the replica at Member; no answer
	ActNotice                         // send the commit and stable points to Member; no answer
	ActServing                        // the epoch-start is stable: the owner may serve
	ActStopped                        // the owner is deposed or can't go on: see Err
)

// Action is one thing to do.
type Action struct {
	Kind     ActionKind
	Member   int
	Dest     int
	Segment  *Segment
	Batch    *Batch
	Segments []ident.SegmentID
	Err      error
}

type memberState struct {
	Member
	up       bool
	full     bool // had no room for a segment when it was last asked
	crowded  bool // has less room than others
	slow     bool // late with an answer: the next segment goes elsewhere if it can
	boot     ident.BootID
	syncing  bool
	syncMore bool
}

// Writer decides, for the owner of one journal in one epoch, which records go to which stores, what is
// committed, and what is stable. It is a state machine without I/O:
//
//	starting ──epoch-start stable on two──> serving ──fenced──> stopped
//
// Events are method calls, all from one goroutine at a time; after each, Actions and Committed say what
// follows from it. Time comes in as a duration since any fixed point that doesn't go back.
type Writer struct {
	cfg     WriterConfig
	members []memberState

	at       ident.Position // after the last queued record
	sent     ident.Position // after the last record that is in a batch
	queue    []*Entry
	queued   int // bytes in queue
	inflight []*Batch
	flying   int // bytes in inflight

	segments  []*Segment // by order of opening; those not settled
	cur, next *Segment
	number    uint32
	turn      int

	commit    ident.Position // announced and served
	held      ident.Position // on two, though before the epoch-start is stable not yet announced
	stable    ident.Position
	start     wire.EpochStart
	serving   bool
	stopped   error
	wantSeq   ident.Seq // a flush waits for it
	now       time.Duration
	told      ident.Position // commit point in the last message to the pair
	toldAt    time.Duration
	syncedAt  time.Duration
	actions   []Action
	committed []*Entry
	spare     []*Batch
	paused    bool // nothing more is sent: see Pause
	wall      int64
}

// NewWriter starts the epoch: the recovered tail and then the epoch-start record are the first that it sends
// (R1). The caller fetches the first actions.
func NewWriter(cfg WriterConfig, now time.Duration) *Writer {
	if cfg.Capacity == 0 {
		cfg.Capacity = SegmentCapacityGoal
	}
	if cfg.HeardStable.Seq > cfg.Heard.Seq {
		// By force the history goes on below what had been stable: its records will have the numbers of those that were given
		// up, and are no more stable for that.
		cfg.HeardStable = cfg.Heard
	}
	w := &Writer{cfg: cfg, at: cfg.Heard, sent: cfg.Heard, commit: cfg.Heard, held: cfg.Heard, stable: cfg.HeardStable,
		told: cfg.Heard, number: cfg.Number, now: now, syncedAt: now, wall: cfg.Wall}
	for _, m := range cfg.Members {
		w.members = append(w.members, memberState{Member: m, up: true})
	}
	for _, e := range cfg.Tail {
		w.at = e.Position()
		if mutant.On(mutant.R1Tail) {
			w.sent, w.held, w.commit = w.at, w.at, w.at
			continue
		}
		w.push(e)
	}
	w.start = wire.EpochStart{Before: w.at, Proven: cfg.Proven}
	body := AppendEpochStart(nil, w.start)
	e := &Entry{Record: Record{Kind: KindEpochStart, Journal: cfg.Journal, Epoch: cfg.Epoch, Seq: w.at.Seq + 1, Time: cfg.Wall}}
	e.Bytes = e.AppendRecord(nil, w.at.Hash, body)
	w.at = e.Position()
	w.start.At = w.at
	w.wantSeq = w.at.Seq
	w.push(e)
	w.Pump()
	return w
}

// Start is the epoch's start record.
func (w *Writer) Start() wire.EpochStart { return w.start }

// At is the position after the last queued record.
func (w *Writer) At() ident.Position { return w.at }

// Commit is the commit point.
func (w *Writer) Commit() ident.Position { return w.commit }

// Stable is the stable point; until the epoch-start is stable itself, the one that was heard (R1).
func (w *Writer) Stable() ident.Position {
	if !w.serving || w.cfg.PastUnstable && !mutant.On(mutant.R8Past) {
		return w.cfg.HeardStable
	}
	return w.stable
}

// OwnStable is how far this epoch's records are stable, whatever is of the ones before it.
func (w *Writer) OwnStable() ident.Position {
	if !w.serving {
		return w.cfg.HeardStable
	}
	return w.stable
}

// SettlePast says that everything up to the commit point that was heard is stable on two servers.
func (w *Writer) SettlePast() { w.cfg.PastUnstable = false }

// Serving reports that the epoch-start is stable and the writer not stopped.
func (w *Writer) Serving() bool { return w.serving && w.stopped == nil }

// Err says why the writer stopped.
func (w *Writer) Err() error { return w.stopped }

// AllCommitted reports that whatever has a place in the history is committed.
func (w *Writer) AllCommitted() bool {
	return len(w.queue) == 0 && len(w.inflight) == 0 && w.commit == w.at
}

// Pause keeps what is queued from now on from being sent, or lets it go again: an owner that hands its journal over
// may add nothing behind the point at which it does (R10).
func (w *Writer) Pause(yes bool) { w.paused = yes }

// Wall tells the time of day, nanoseconds since 1970: records that get their place from now on say so. It decides
// nothing, and may jump.
func (w *Writer) Wall(now int64) { w.wall = now }

// Queued is the number of bytes that wait to be sent.
func (w *Writer) Queued() int { return w.queued }

// Degraded reports that fewer than two home members are up, so that records are on one home store and one of
// another site, or wait.
func (w *Writer) Degraded() bool {
	home, up := 0, 0
	for _, m := range w.members {
		if m.Home {
			home++
			if m.up {
				up++
			}
		}
	}
	return home >= 2 && up < 2
}

// Blocked reports that fewer than two members are up: nothing can be committed.
func (w *Writer) Blocked() bool {
	up := 0
	for _, m := range w.members {
		if m.up {
			up++
		}
	}
	return up < 2
}

// Stuck reports that records can go nowhere: no segment is open and no two members can be asked for one.
func (w *Writer) Stuck() bool {
	_, _, ok := w.pair()
	return w.cur == nil && w.next == nil && !ok
}

// Actions gives what is to be done, in order, and forgets it. The slice is valid until the next event.
func (w *Writer) Actions() []Action {
	a := w.actions
	w.actions = w.actions[len(w.actions):]
	if cap(w.actions) < 8 {
		w.actions = make([]Action, 0, 64)
	}
	return a
}

// Committed gives the entries that became committed, in seq order, and forgets them. The slice is valid until
// the next event.
func (w *Writer) Committed() []*Entry {
	c := w.committed
	w.committed = w.committed[len(w.committed):]
	if cap(w.committed) < 8 {
		w.committed = make([]*Entry, 0, 256)
	}
	return c
}

// Queue gives e its place in the history: epoch, seq and hash. It is sent by the next Pump.
func (w *Writer) Queue(e *Entry) {
	e.Journal, e.Epoch, e.Seq, e.Time = w.cfg.Journal, w.cfg.Epoch, w.at.Seq+1, w.wall
	e.Encode(e.Bytes, w.at.Hash)
	w.at = e.Position()
	w.push(e)
}

func (w *Writer) push(e *Entry) {
	w.queue = append(w.queue, e)
	w.queued += len(e.Bytes)
}

func (w *Writer) act(a Action) { w.actions = append(w.actions, a) }

// Pump sends what may be sent now.
func (w *Writer) Pump() {
	if w.stopped != nil || w.paused {
		return
	}
	for len(w.queue) > 0 && w.maySend() {
		if w.queue[0].Kind == KindEpochStart && w.sent != w.held && !mutant.On(mutant.R1TailFirst) {
			return // R1: the start is appended once everything before it is on two servers
		}
		if !w.roomFor(w.queue[0]) {
			return
		}
		w.sendBatch()
	}
	w.openAhead()
}

// maySend is group commit: while appends are under way, small records gather into the next one.
func (w *Writer) maySend() bool {
	if len(w.inflight) >= batchesSmallMax && (w.queued < batchBytesSmall || w.flying >= inflightBytesMax) {
		return false
	}
	return w.unsynced() < unsyncedBytesMax
}

// roomFor makes cur a segment that can take e, if there is one.
func (w *Writer) roomFor(e *Entry) bool {
	if s := w.cur; s != nil {
		if int(max(s.end, SegmentHeaderSize))+len(e.Bytes)+IndexSize(s.records+1) <= int(w.capacity(s)) {
			return true
		}
		w.close(s)
		w.cur = nil
	}
	if w.next == nil {
		w.open()
	}
	if w.next == nil || !w.next.ready() {
		return false
	}
	w.cur, w.next = w.next, nil
	return true
}

func (s *Segment) ready() bool {
	for i := range s.replicas {
		if !s.replicas[i].opened || s.replicas[i].lost {
			return false
		}
	}
	return len(s.replicas) >= 2
}

// sendBatch takes records from the queue into one append for cur.
func (w *Writer) sendBatch() {
	s := w.cur
	b := w.newBatch()
	b.Segment, b.Offset = s, s.end
	if s.end == 0 {
		s.Before, s.commit = w.sent, w.sent
		h := SegmentHeader{Segment: s.ID, Kind: w.cfg.Kind, Before: w.sent, Point: w.cfg.Point, Boundary: w.cfg.Heard}
		if w.serving {
			h.Start = w.start
		}
		b.Data = append(b.Data, AppendSegmentHeader(make([]byte, 0, SegmentHeaderSize), h))
		s.end, s.commitEnd = SegmentHeaderSize, SegmentHeaderSize
		b.bytes = SegmentHeaderSize
	}
	n := 0
	for _, e := range w.queue {
		if n > 0 && (e.Kind == KindEpochStart || b.bytes+len(e.Bytes) > batchBytesMax ||
			int(s.end)+len(e.Bytes)+IndexSize(s.records+1) > int(w.capacity(s))) {
			break
		}
		e.Segment, e.Offset = s.ID, s.end
		s.end += uint32(len(e.Bytes))
		s.records++
		b.Data = append(b.Data, e.Bytes)
		b.entries = append(b.entries, e)
		b.bytes += len(e.Bytes)
		n++
	}
	w.queued -= b.bytes
	if b.Offset == 0 {
		w.queued += SegmentHeaderSize
	}
	w.sent = b.entries[n-1].Position()
	b.last, b.end = w.sent, s.end
	w.queue = append(w.queue[:0], w.queue[n:]...)
	w.inflight = append(w.inflight, b)
	w.flying += b.bytes
	for i := range s.replicas {
		w.act(Action{Kind: ActAppend, Member: s.replicas[i].member, Segment: s, Batch: b})
	}
	w.told, w.toldAt = w.commit, w.now
}

func (w *Writer) newBatch() *Batch {
	if n := len(w.spare); n > 0 {
		b := w.spare[n-1]
		w.spare = w.spare[:n-1]
		return b
	}
	return &Batch{}
}

func (w *Writer) capacity(s *Segment) uint32 { return CapacityOf(s.ID, w.cfg.Capacity) }

// Appended is the answer to ActAppend.
func (w *Writer) Appended(b *Batch, member int, boot ident.BootID, err error) {
	if w.stopped != nil || w.deposed(err) {
		return
	}
	if b.gone {
		return
	}
	if err != nil {
		w.fail(member)
		w.Pump()
		return
	}
	if !w.sameBoot(member, boot) || b.gone {
		w.Pump()
		return
	}
	s := b.Segment
	for i := range s.replicas {
		if s.replicas[i].member == member {
			b.acks |= 1 << i
			s.replicas[i].acked = max(s.replicas[i].acked, b.end)
		}
	}
	w.well(member)
	w.advance()
	w.Pump()
}

// advance moves the commit point over the batches that both stores of their pair hold, in order.
func (w *Writer) advance() {
	n := 0
	for _, b := range w.inflight {
		if b.acks != 3 && !(mutant.On(mutant.TermsTwo) && b.acks != 0) {
			break
		}
		n++
		s := b.Segment
		s.commitEnd, s.commit = b.end, b.last
		s.entries = append(s.entries, stableMark{b.end, b.last})
		w.held = b.last
		w.flying -= b.bytes
		w.committed = append(w.committed, b.entries...)
		if mutant.On(mutant.TermsTwo) {
			for i := range s.replicas {
				s.replicas[i].acked = max(s.replicas[i].acked, b.end) // what the other store says later finds no batch
			}
		}
		clear(b.entries)
		clear(b.Data)
		*b = Batch{entries: b.entries[:0], Data: b.Data[:0]}
		if mutant.On(mutant.TermsTwo) {
			b.gone = true // the other store's answer is still to come
			continue
		}
		if len(w.spare) < 64 {
			w.spare = append(w.spare, b)
		}
	}
	if n == 0 {
		return
	}
	w.inflight = append(w.inflight[:0], w.inflight[n:]...)
	if w.serving || mutant.On(mutant.R1Copied) {
		w.commit = w.held
	}
	if mutant.On(mutant.R1StartStable) {
		w.restable()
	}
	if w.wantSeq > w.stable.Seq {
		w.syncAll()
	}
	w.sealClosed()
}

// close ends a segment: it takes no more records and is sealed once what it has is committed.
func (w *Writer) close(s *Segment) {
	s.closed, s.closedAt = true, w.now
	w.sealClosed()
}

// sealClosed seals closed segments whose records are all committed.
// Before the epoch-start is stable none is sealed: "sealed" tells every later taker "committed".
func (w *Writer) sealClosed() {
	if !w.serving && !mutant.On(mutant.R1Sealed) {
		return
	}
	for _, s := range w.segments {
		if s.closed && !s.sealSent && s.commitEnd == s.end {
			s.sealSent = true
			for i := range s.replicas {
				if r := &s.replicas[i]; !r.sealed && !r.copying && w.members[r.member].up {
					w.act(Action{Kind: ActSeal, Member: r.member, Segment: s})
				}
			}
		}
	}
}
