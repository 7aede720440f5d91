package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"dozo/internal/ident"
	"dozo/internal/pki"
)

// cache is what was last seen of the control store. One goroutine (Client.follow) feeds it; anybody reads. A
// revision's changes are applied together, so readers see transactions whole.
type cache struct {
	mu struct {
		sync.RWMutex
		content
		rev    Rev           // everything up to it is in
		moved  chan struct{} // closed and replaced when rev grows or the cache is closed
		closed bool
		subs   map[chan struct{}]struct{}
	}
	// The nodes by name, nil until somebody asks again after a change. Written with mu held in either way, so that it
	// never outlives what it was made of.
	byName atomic.Pointer[[]Node]
	// The volumes by tenant and name, likewise. The changes of a transaction make new lists of these, so that ten thousand are
	// not put in order again for each that is made.
	volumes atomic.Pointer[volumeLists]
}

// volumeLists is what there is by tenant and name. Neither the lists nor what they point at ever changes.
type volumeLists struct{ live, dead []*VolumeSpec }

func newVolumeLists(all map[ident.JournalID]entry[VolumeSpec]) *volumeLists {
	l := new(volumeLists)
	for _, e := range all {
		list := &l.live
		if e.v.Deleted != nil {
			list = &l.dead
		}
		*list = append(*list, &e.v)
	}
	order := func(a, b *VolumeSpec) int { return byName(*a, *b) }
	slices.SortFunc(l.live, order)
	slices.SortFunc(l.dead, order)
	return l
}

// volumeChange is what a volume was and is; nil for none.
type volumeChange struct {
	id       ident.JournalID
	old, now *VolumeSpec
}

// with gives the lists after changes of different volumes, of which a transaction may have a hundred: each list is made anew once.
func (l *volumeLists) with(changes []volumeChange) *volumeLists {
	x := *l
	for _, list := range []struct {
		of      *[]*VolumeSpec
		deleted bool
	}{{&x.live, false}, {&x.dead, true}} {
		in := func(v *VolumeSpec) bool { return v != nil && (v.Deleted != nil) == list.deleted }
		gone := map[ident.JournalID]bool{}
		var fresh []*VolumeSpec
		for _, c := range changes {
			if in(c.old) {
				gone[c.id] = true
			}
			if in(c.now) {
				fresh = append(fresh, c.now)
			}
		}
		if len(gone) == 0 && len(fresh) == 0 {
			continue
		}
		order := func(a, b *VolumeSpec) int { return byName(*a, *b) }
		slices.SortFunc(fresh, order)
		merged := make([]*VolumeSpec, 0, len(*list.of)+len(fresh))
		rest := *list.of
		for _, v := range fresh {
			at, _ := slices.BinarySearchFunc(rest, v, order)
			merged = appendBut(merged, rest[:at], gone)
			merged, rest = append(merged, v), rest[at:]
		}
		*list.of = appendBut(merged, rest, gone)
	}
	return &x
}

func appendBut(to, from []*VolumeSpec, gone map[ident.JournalID]bool) []*VolumeSpec {
	if len(gone) == 0 {
		return append(to, from...)
	}
	for _, v := range from {
		if !gone[v.ID] {
			to = append(to, v)
		}
	}
	return to
}

type entry[T any] struct {
	v   T
	rev Rev
}

// content has a map a directory, and the inverse maps that lookups need.
type content struct {
	cluster  *entry[Cluster]
	raw      []byte // of the cluster's key: every change of a journal depends on it
	restored *entry[Restoration]
	levels   map[ident.NodeName]nodeLevel
	sites    map[ident.SiteID]entry[Site]
	nodes    map[ident.NodeName]entry[Node]
	hosts    map[string]entry[Host] // by keyHost
	volumes  map[ident.JournalID]entry[VolumeSpec]
	journals map[ident.JournalID]entry[JournalState]
	alive    map[ident.NodeName]bool
	lost     map[ident.StoreID]LostStore
	held     map[ident.NodeName]bool
	revoked  map[string]pki.Revocation
	joins    map[string]pki.JoinTokenRecord
	tokens   map[string]pki.APITokenRecord // by name

	volumeByName map[string]ident.JournalID // by keyVolumeName
	hostByIQN    map[string]string          // keyHost
	nodeByStore  map[ident.StoreID]ident.NodeName
	tokenByHash  map[string]string // name

	discovery *entry[CHAP] // nil where nothing has to be proved
}

func newContent() content {
	return content{
		levels: make(map[ident.NodeName]nodeLevel),
		sites:  make(map[ident.SiteID]entry[Site]), nodes: make(map[ident.NodeName]entry[Node]), hosts: make(map[string]entry[Host]),
		volumes: make(map[ident.JournalID]entry[VolumeSpec]), journals: make(map[ident.JournalID]entry[JournalState]),
		alive: make(map[ident.NodeName]bool), held: make(map[ident.NodeName]bool), lost: make(map[ident.StoreID]LostStore), revoked: make(map[string]pki.Revocation), joins: make(map[string]pki.JoinTokenRecord),
		tokens: make(map[string]pki.APITokenRecord), volumeByName: make(map[string]ident.JournalID), hostByIQN: make(map[string]string),
		nodeByStore: make(map[ident.StoreID]ident.NodeName), tokenByHash: make(map[string]string),
	}
}

func newCache() *cache {
	c := new(cache)
	c.mu.content = newContent()
	c.mu.moved = make(chan struct{})
	c.mu.subs = make(map[chan struct{}]struct{})
	return c
}

// replace takes a whole listing. What can not be read is reported and, if it was known, kept.
func (c *cache) replace(pairs []pair, rev Rev) (bad []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.mu.content
	c.mu.content = newContent()
	c.volumes.Store(nil)
	for _, p := range pairs {
		if err := c.mu.put(p); err != nil {
			bad = append(bad, err)
			c.mu.keepFrom(old, p.key)
		}
	}
	c.mu.keepOld(old.remembered())
	c.movedLocked(rev)
	return bad
}

// renew takes a whole listing of a control store that was started anew: its revisions begin again, and what was known
// of the former one is forgotten.
func (c *cache) renew(pairs []pair, rev Rev) (bad []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.mu.content
	c.mu.content, c.mu.rev = newContent(), 0
	c.volumes.Store(nil)
	for _, p := range pairs {
		if err := c.mu.put(p); err != nil {
			bad = append(bad, err)
		}
	}
	c.mu.keepOld(old)
	c.movedLocked(rev)
	return bad
}

// apply takes watched changes, all up to and including revision upTo.
func (c *cache) apply(changes []change, upTo Rev) (bad []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lists := c.volumes.Load()
	var volumes []volumeChange
	seen := map[ident.JournalID]bool{}
	for _, ch := range changes {
		if dir, _ := splitDir(ch.key); dir == dirVolumes && lists != nil {
			if id, err := journalOfKey(dirVolumes, ch.key); err == nil && !seen[id] {
				seen[id] = true
				volumes = append(volumes, volumeChange{id: id, old: c.volumeLocked(id)})
			}
		}
		if ch.deleted {
			c.mu.drop(ch.key)
		} else if err := c.mu.put(ch.pair); err != nil {
			bad = append(bad, err)
		}
	}
	if len(volumes) > 0 {
		for i := range volumes {
			volumes[i].now = c.volumeLocked(volumes[i].id)
		}
		c.volumes.Store(lists.with(volumes))
	}
	c.movedLocked(upTo)
	return bad
}

func (c *cache) volumeLocked(id ident.JournalID) *VolumeSpec {
	if e, ok := c.mu.volumes[id]; ok {
		return &e.v
	}
	return nil
}

// putJournal notes a state that this client has just written itself, before the watch brings it.
func (c *cache) putJournal(id ident.JournalID, s JournalState, rev Rev) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.mu.journals[id]; ok && e.rev < rev {
		c.mu.journals[id] = entry[JournalState]{s, rev}
		c.pokeLocked()
	}
}

func (c *cache) movedLocked(rev Rev) {
	c.mu.rev = max(c.mu.rev, rev)
	close(c.mu.moved)
	c.mu.moved = make(chan struct{})
	c.pokeLocked()
}

func (c *cache) poke() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pokeLocked()
}

func (c *cache) pokeLocked() {
	c.byName.Store(nil)
	for ch := range c.mu.subs {
		select {
		case ch <- struct{}{}:
		default: // one is waiting already, and stands for this change too
		}
	}
}

func (c *cache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.closed = true
	close(c.mu.moved)
	c.mu.moved = make(chan struct{})
}

// waitFor returns once the cache has everything up to rev, or ctx or the cache ends.
func (c *cache) waitFor(ctx context.Context, rev Rev) {
	for {
		c.mu.RLock()
		done, moved := c.mu.rev >= rev || c.mu.closed, c.mu.moved
		c.mu.RUnlock()
		if done {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-moved:
		}
	}
}

func (c *cache) subscribe() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.subs[ch] = struct{}{}
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.mu.subs, ch)
	}
}

// put decodes a pair into its map. Keys of no interest here (indices, counters, events) are passed over, and
// so are directories that a later version may add.
func (t *content) put(p pair) error {
	dir, rest := splitDir(p.key)
	switch dir {
	case keyCluster:
		v, _, err := decode[Cluster](p.key, p.value)
		if err != nil {
			return err
		}
		if v.Format > FormatVersion {
			return fmt.Errorf("control store: the cluster is in format %d, this program knows formats up to %d: %w; upgrade this node", v.Format, FormatVersion, ErrNewerFormat)
		}
		t.cluster, t.raw = &entry[Cluster]{v, p.mod}, p.value
	case keyRestored:
		v, _, err := decode[Restoration](p.key, p.value)
		if err != nil {
			return err
		}
		t.restored = &entry[Restoration]{v, p.mod}
		if !v.Pending() {
			t.forgetOld()
		}
	case keyDiscover:
		v, _, err := decode[storedCHAP](p.key, p.value)
		if err != nil {
			return err
		}
		t.discovery = &entry[CHAP]{v.chap(), p.mod}
	case dirSites:
		v, _, err := decode[Site](p.key, p.value)
		if err = misplaced(p.key, keySite(v.ID), err); err != nil {
			return err
		}
		t.sites[v.ID] = entry[Site]{v, p.mod}
	case dirNodes:
		v, _, err := decode[Node](p.key, p.value)
		if err = misplaced(p.key, keyNode(v.Name), err); err != nil {
			return err
		}
		t.drop(p.key)
		t.nodes[v.Name] = entry[Node]{v, p.mod}
		for _, s := range v.Stores {
			t.nodeByStore[s.ID] = v.Name
		}
	case dirHosts:
		v, err := decodeHost(p.key, p.value)
		if err = misplaced(p.key, keyHost(v.Tenant, v.Name), err); err != nil {
			return err
		}
		t.drop(p.key)
		t.hosts[p.key] = entry[Host]{v, p.mod}
		for _, n := range v.InitiatorNames {
			t.hostByIQN[n] = p.key
		}
	case dirVolumes:
		v, _, err := decode[VolumeSpec](p.key, p.value)
		if err = misplaced(p.key, keyVolume(v.ID), err); err != nil {
			return err
		}
		t.drop(p.key)
		t.volumes[v.ID] = entry[VolumeSpec]{v, p.mod}
		if v.Deleted == nil {
			t.volumeByName[keyVolumeName(v.Tenant, v.Name)] = v.ID
		}
	case dirJournals:
		id, err := journalOfKey(dirJournals, p.key)
		if err != nil {
			return err
		}
		v, _, err := decode[JournalState](p.key, p.value)
		if err != nil {
			return err
		}
		if t.journals[id].rev <= p.mod { // this client may have noted a later one of its own
			t.journals[id] = entry[JournalState]{v, p.mod}
		}
	case dirLevels:
		v, _, err := decode[nodeLevel](p.key, p.value)
		if err != nil {
			return err
		}
		t.levels[ident.NodeName(rest)] = v
	case dirAlive:
		t.alive[ident.NodeName(rest)] = true
	case dirLost:
		v, _, err := decode[LostStore](p.key, p.value)
		if err = misplaced(p.key, keyLost(v.ID), err); err != nil {
			return err
		}
		t.lost[v.ID] = v
	case dirHolds:
		t.held[ident.NodeName(rest)] = true
	case dirRevoked:
		v, _, err := decode[pki.Revocation](p.key, p.value)
		if err = misplaced(p.key, keyRevoked(v.Serial), err); err != nil {
			return err
		}
		t.revoked[v.Serial] = v
	case dirJoin:
		v, _, err := decode[pki.JoinTokenRecord](p.key, p.value)
		if err = misplaced(p.key, keyJoin(v.Hash), err); err != nil {
			return err
		}
		t.joins[v.Hash] = v
	case dirAPI:
		v, _, err := decode[pki.APITokenRecord](p.key, p.value)
		if err = misplaced(p.key, keyAPI(v.Name), err); err != nil {
			return err
		}
		t.drop(p.key)
		t.tokens[v.Name] = v
		t.tokenByHash[v.Hash] = v.Name
	}
	return nil
}

// misplaced refuses a value that belongs under another key: it could never be taken away again.
func misplaced(key, want string, err error) error {
	if err == nil && key != want {
		return fmt.Errorf("control store: value of %s belongs under %s", key, want)
	}
	return err
}

// drop removes what the key stood for, inverse entries included.
func (t *content) drop(key string) {
	dir, rest := splitDir(key)
	switch dir {
	case keyCluster:
		t.cluster, t.raw = nil, nil
	case keyRestored:
		t.restored = nil
	case keyDiscover:
		t.discovery = nil
	case dirSites:
		for id := range t.sites {
			if keySite(id) == key {
				delete(t.sites, id)
			}
		}
	case dirNodes:
		name := ident.NodeName(rest)
		for _, s := range t.nodes[name].v.Stores {
			if t.nodeByStore[s.ID] == name {
				delete(t.nodeByStore, s.ID)
			}
		}
		delete(t.nodes, name)
	case dirHosts:
		for _, n := range t.hosts[key].v.InitiatorNames {
			if t.hostByIQN[n] == key {
				delete(t.hostByIQN, n)
			}
		}
		delete(t.hosts, key)
	case dirVolumes:
		if id, err := journalOfKey(dirVolumes, key); err == nil {
			v := t.volumes[id].v
			if name := keyVolumeName(v.Tenant, v.Name); t.volumeByName[name] == id {
				delete(t.volumeByName, name)
			}
			delete(t.volumes, id)
		}
	case dirJournals:
		if id, err := journalOfKey(dirJournals, key); err == nil {
			delete(t.journals, id)
		}
	case dirLevels:
		delete(t.levels, ident.NodeName(rest))
	case dirAlive:
		delete(t.alive, ident.NodeName(rest))
	case dirLost:
		if id, err := ident.ParseStoreID(rest); err == nil {
			delete(t.lost, id)
		}
	case dirHolds:
		delete(t.held, ident.NodeName(rest))
	case dirRevoked:
		delete(t.revoked, rest)
	case dirJoin:
		delete(t.joins, rest)
	case dirAPI:
		delete(t.tokenByHash, t.tokens[rest].Hash)
		delete(t.tokens, rest)
	}
}

// keepFrom takes over what old had for a key whose new value can not be read: a revocation, an owner or a
// secret that was known must not be forgotten by that.
func (t *content) keepFrom(old content, key string) {
	dir, rest := splitDir(key)
	switch dir {
	case keyCluster:
		t.cluster, t.raw = old.cluster, old.raw
	case keyRestored:
		t.restored = old.restored
	case keyDiscover:
		t.discovery = old.discovery
	case dirSites:
		for id, e := range old.sites {
			if keySite(id) == key {
				t.sites[id] = e
			}
		}
	case dirNodes:
		if e, ok := old.nodes[ident.NodeName(rest)]; ok {
			t.nodes[e.v.Name] = e
			for _, s := range e.v.Stores {
				t.nodeByStore[s.ID] = e.v.Name
			}
		}
	case dirHosts:
		if e, ok := old.hosts[key]; ok {
			t.hosts[key] = e
			for _, n := range e.v.InitiatorNames {
				t.hostByIQN[n] = key
			}
		}
	case dirVolumes:
		if id, err := journalOfKey(dirVolumes, key); err == nil {
			if e, ok := old.volumes[id]; ok {
				t.volumes[id] = e
				if e.v.Deleted == nil {
					t.volumeByName[keyVolumeName(e.v.Tenant, e.v.Name)] = id
				}
			}
		}
	case dirJournals:
		if id, err := journalOfKey(dirJournals, key); err == nil {
			if e, ok := old.journals[id]; ok {
				t.journals[id] = e
			}
		}
	case dirLost:
		if id, err := ident.ParseStoreID(rest); err == nil {
			if v, ok := old.lost[id]; ok {
				t.lost[id] = v
			}
		}
	case dirRevoked:
		if v, ok := old.revoked[rest]; ok {
			t.revoked[rest] = v
		}
	case dirAPI:
		if v, ok := old.tokens[rest]; ok {
			t.tokens[rest] = v
			t.tokenByHash[v.Hash] = rest
		}
	}
}

// splitDir cuts a key after its first directory; keys in none are their own.
func splitDir(key string) (dir, rest string) {
	i := strings.IndexByte(key, '/')
	if i < 0 {
		return key, ""
	}
	return key[:i+1], key[i+1:]
}
