package trouble

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"dozo/internal/ident"
)

// Key is something that may be wrong.
type Key struct {
	Reason  string          // such as VOLUME_BEHIND
	Journal ident.JournalID // of the volume, zero where it is something else
	Of      string          // further: a node, a store, the site that is behind
}

// Compare orders keys.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Reason, o.Reason), slices.Compare(k.Journal[:], o.Journal[:]), cmp.Compare(k.Of, o.Of))
}

// Times and bounds, guesses all of them. Hysteresis is longer than what it takes to be taken over, or for a connection to
// be made again after a hiccup; Kept is longer than a restart, and longer than it takes a new owner to find out that a site
// is behind.
const (
	Hysteresis = 15 * time.Second
	Heard      = time.Minute     // what was said by a node that has fallen silent holds for so long
	Kept       = 2 * time.Minute // and is inherited from for so long after that
	asked      = 10 * time.Minute
	overKept   = 5 * time.Minute // that something is over is told for so long: everybody asks far more often
	Most       = 1 << 16
)

// Change is what has become of a trouble.
type Change struct {
	Key  Key
	Over bool
	Age  time.Duration // since it holds; of one that is over nothing
}

// Book is what one node knows.
type Book struct {
	most int // Most
	mu   struct {
		sync.Mutex
		round   uint64
		version uint64 // of the newest change
		own     map[Key]*entry
		others  map[string]*other
		late    map[Key]left // what nodes that fell silent, or began anew, had said
	}
}

// entry is what this node sees itself.
//
//	(new) ──seen──> held ──not seen──> missing ──Hysteresis──> over ──overKept──> (gone)
//	                 ^────────seen────────┘                     └──seen──> held, anew
type entry struct {
	first   int64
	round   uint64 // when it was seen last
	missing int64  // when it was first not seen, 0: it is seen
	asked   int64  // no round looks for it: when somebody last found it by asking, 0: rounds do
	over    int64  // when it was over, 0: it is held
	ended   int64  // when it was over last
	version uint64
}

// other is what another node said.
type other struct {
	instance uint64
	version  uint64
	heard    int64
	first    map[Key]int64
}

type left struct{ first, until int64 }

// NewBook makes an empty one.
func NewBook() *Book {
	b := &Book{most: Most}
	b.mu.own, b.mu.others, b.mu.late = map[Key]*entry{}, map[string]*other{}, map[Key]left{}
	return b
}

// Observe takes in everything that this node sees to be wrong at one moment: see calls its argument for each. inherit says
// that the beginning may have been before this node looked.
func (b *Book) Observe(now int64, see func(saw func(k Key, inherit bool))) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expireLocked(now)
	b.mu.round++
	see(func(k Key, inherit bool) { b.sawLocked(now, k, inherit) })
	for k, e := range b.mu.own {
		switch {
		case e.over != 0:
			if now-e.over > int64(overKept) {
				delete(b.mu.own, k)
			}
		case e.asked != 0:
			if now-e.asked > int64(asked) {
				b.overLocked(now, k, e)
			}
		case e.round == b.mu.round:
		case e.missing == 0:
			e.missing = now
		case now-e.missing >= int64(Hysteresis):
			b.overLocked(now, k, e)
		}
	}
}

func (b *Book) sawLocked(now int64, k Key, inherit bool) *entry {
	e := b.mu.own[k]
	switch {
	case e == nil && len(b.mu.own) >= b.most:
		return nil
	case e == nil:
		e = new(entry)
		b.mu.own[k] = e
		fallthrough
	case e.over != 0:
		*e = entry{first: now, ended: e.ended}
		b.changedLocked(e)
	}
	e.round, e.missing, e.asked = b.mu.round, 0, 0
	if inherit { // those who know more may be heard later
		if first, ok := b.saidLocked(now, k); ok && first < e.first {
			e.first = first
			b.changedLocked(e)
		}
	}
	return e
}

func (b *Book) changedLocked(e *entry) {
	b.mu.version++
	e.version = b.mu.version
}

// overLocked ends an entry, also for what others remember: this node has seen the end.
func (b *Book) overLocked(now int64, k Key, e *entry) {
	e.over, e.ended = now, now
	delete(b.mu.late, k)
	b.changedLocked(e)
}

// saidLocked is the earliest time that others say.
func (b *Book) saidLocked(now int64, k Key) (first int64, ok bool) {
	for _, o := range b.mu.others {
		if at, held := o.first[k]; held && (!ok || at < first) {
			first, ok = at, true
		}
	}
	if l, kept := b.mu.late[k]; kept && l.until > now && (!ok || l.first < first) {
		first, ok = l.first, true
	}
	return first, ok
}

// Since is since when a trouble holds that somebody has just found. What no node looks for by itself holds since it was
// found first. It is false where there is no room to remember it.
func (b *Book) Since(now int64, k Key) (first int64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.mu.own[k]; e != nil && e.over == 0 {
		if e.asked != 0 {
			e.asked = now
		}
		return e.first, true
	}
	if first, ok := b.saidLocked(now, k); ok {
		return min(first, now), true
	}
	e := b.sawLocked(now, k, false)
	if e == nil {
		return 0, false
	}
	e.asked = now
	return e.first, true
}

// Version is that of the newest change.
func (b *Book) Version() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.version
}

// Changes are those of this node's own entries after a version, in no order, and the version that they lead to.
func (b *Book) Changes(now int64, after uint64) (list []Change, version uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if after >= b.mu.version {
		return nil, b.mu.version
	}
	for k, e := range b.mu.own {
		switch {
		case e.version <= after || e.asked != 0:
		case e.over == 0:
			list = append(list, Change{Key: k, Age: time.Duration(now - e.first)})
		case after > 0: // who knows nothing needs no end
			list = append(list, Change{Key: k, Over: true})
		}
	}
	return list, b.mu.version
}

// Told is up to where this node has heard another one: what to ask it for. Both are 0 where everything is wanted.
func (b *Book) Told(node string) (instance, version uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o := b.mu.others[node]; o != nil {
		return o.instance, o.version
	}
	return 0, 0
}

// Learn takes in what another node has answered: the changes after a version of its instance, up to version.
func (b *Book) Learn(now int64, node string, instance, after, version uint64, list []Change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.mu.others[node]
	if o != nil && (o.instance != instance || after == 0) {
		if o.instance != instance {
			b.leaveLocked(now, o)
		}
		o = nil
	}
	if o == nil {
		if after != 0 {
			delete(b.mu.others, node) // what was before is not known: the next question is for all
			return
		}
		o = &other{instance: instance, first: map[Key]int64{}}
		b.mu.others[node] = o
	}
	if o.version > version {
		return // an older answer that took longer
	}
	o.version, o.heard = version, now
	for _, c := range list {
		at, held := now-int64(max(c.Age, 0)), false
		if _, held = o.first[c.Key]; c.Over {
			delete(o.first, c.Key)
			delete(b.mu.late, c.Key)
		} else if held || len(o.first) < b.most {
			o.first[c.Key] = at
		}
	}
}

// Remembered is what this node remembers of nodes that say no more of it: of those that fell silent, and of what the one that
// asks had said before it began anew.
func (b *Book) Remembered(now int64, asker string, instance uint64) (list []Change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expireLocked(now)
	if o := b.mu.others[asker]; o != nil && o.instance != instance {
		b.leaveLocked(now, o)
		delete(b.mu.others, asker)
	}
	for k, l := range b.mu.late {
		list = append(list, Change{Key: k, Age: time.Duration(now - l.first)})
	}
	return list
}

// Recall takes in what another node remembers.
func (b *Book) Recall(now int64, list []Change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range list {
		b.keepLocked(now, c.Key, now-int64(max(c.Age, 0)), 0, now+int64(Kept)) // heard before this node began
	}
}

func (b *Book) keepLocked(now int64, k Key, first, heard, until int64) {
	if e := b.mu.own[k]; e != nil && e.ended != 0 && e.ended >= heard {
		return // it has ended since
	}
	l, known := b.mu.late[k]
	if !known && len(b.mu.late) >= b.most {
		return
	}
	if known && l.until > now {
		first = min(first, l.first)
	}
	b.mu.late[k] = left{first, max(until, l.until)}
}

// leaveLocked keeps for a while what a node had said that will say no more of it: it has fallen silent, or began anew and may
// not have heard yet of what it knew before.
func (b *Book) leaveLocked(now int64, o *other) {
	until := o.heard + int64(Heard+Kept)
	for k, first := range o.first {
		b.keepLocked(now, k, first, o.heard, until)
	}
}

func (b *Book) expireLocked(now int64) {
	for name, o := range b.mu.others {
		if now-o.heard > int64(Heard) {
			b.leaveLocked(now, o)
			delete(b.mu.others, name)
		}
	}
	for k, l := range b.mu.late {
		if l.until <= now {
			delete(b.mu.late, k)
		}
	}
}

// Held is how many troubles this node sees itself.
func (b *Book) Held() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.mu.own {
		if e.over == 0 {
			n++
		}
	}
	return n
}
