package control

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"dozo/internal/ident"
)

// After all voters, or a majority of them, are lost for good, a control store is made anew on one voter, from a backup
// or from nothing; the other voters join it. It gets another lineage (R11). What it knows of journals is older than
// the truth, or nothing at all, so no list of ensembles counts until every store of the cluster has answered
// (reconcile.go).

// Restoration is the value of the key that says that the control store was made anew, and how far its settling is.
type Restoration struct {
	Kind    RestorationKind `json:"kind"`
	Lineage uint32          `json:"lineage"` // that it got
	Time    time.Time       `json:"time"`
	// BackupTime and BackupRev say which backup it was; unset where there was none.
	BackupTime time.Time `json:"backup_time,omitzero"`
	BackupRev  Rev       `json:"backup_rev,omitempty"`
	// Stores are those that must answer; nodes add what they know of. Lost are those that an operator has declared lost.
	Stores []ident.StoreID `json:"stores,omitempty"`
	Lost   []ident.StoreID `json:"lost,omitempty"`
	// Complete: Stores has every store of the cluster. A backup knows them; without one an operator says so.
	Complete bool       `json:"complete"`
	Done     *time.Time `json:"done,omitempty"`
	Report   string     `json:"report,omitempty"` // once done: what was found
}

// RestorationKind says what a control store was made anew from.
type RestorationKind string

// The kinds.
const (
	FromBackup  RestorationKind = "restore"
	FromNothing RestorationKind = "rebuild"
)

// Pending reports that lists of ensembles do not all count yet.
func (r Restoration) Pending() bool { return r.Done == nil }

// counterGap is by how much counters go up that may have been given out since the backup: sites and portal groups of
// nodes, of which a cluster does not get so many between two backups.
const counterGap = 256

// Anew makes of a snapshot what a restored control store starts with: another lineage, no journal's list counting,
// counters above what was given out. Tokens to join count no more: they are used once, and may have been since. The snapshot stays as it is.
func (s *Snapshot) Anew(lineage uint32, now time.Time) (*Snapshot, error) {
	t, err := s.content()
	if err != nil {
		return nil, err
	}
	stores, err := s.Stores()
	if err != nil {
		return nil, err
	}
	out := &Snapshot{Rev: s.Rev, Time: s.Time, Cluster: s.Cluster}
	out.Cluster.Lineage = lineage
	r := Restoration{Kind: FromBackup, Lineage: lineage, Time: now.UTC(), BackupTime: s.Time, BackupRev: s.Rev, Stores: stores, Complete: true}
	if old := t.restored; old != nil && old.v.Pending() { // it was not settled when the backup was made
		r.Lost, r.Complete = old.v.Lost, old.v.Complete
		for _, id := range old.v.Stores {
			if !slices.Contains(r.Stores, id) {
				r.Stores = append(r.Stores, id)
			}
		}
	}
	out.pairs = append(out.pairs, pair{key: keyRestored, value: encode(r, "")})
	for _, p := range s.pairs {
		dir, _ := splitDir(p.key)
		switch {
		case p.key == keyCluster:
			p.value = encode(out.Cluster, "")
		case p.key == keySeqSite || p.key == keySeqTPGT:
			last, _, err := decode[uint16](p.key, p.value)
			if err != nil {
				return nil, err
			}
			p.value = encode(min(last, math.MaxUint16-1-counterGap)+counterGap, "")
		case dir == dirJournals:
			state, change, err := decode[JournalState](p.key, p.value)
			if err != nil {
				return nil, err
			}
			state.Unheard = true
			p.value = encode(state, change)
		case dir == dirJoin:
			continue
		case p.key == keyRestored || dir == dirAnswers || dir == dirAnswered || dir == dirOffers || leased(p.key):
			continue // backups of former versions have leases of nodes
		}
		out.pairs = append(out.pairs, p)
	}
	slices.SortFunc(out.pairs, func(a, b pair) int { return cmp.Compare(a.key, b.key) })
	return out, nil
}

// WithoutAPITokens is a snapshot without the tokens for the API.
func (s *Snapshot) WithoutAPITokens() *Snapshot {
	out := *s
	out.pairs = slices.DeleteFunc(slices.Clone(s.pairs), func(p pair) bool {
		dir, _ := splitDir(p.key)
		return dir == dirAPI
	})
	return &out
}

// APITokens names the tokens for the API that have not expired by now.
func (s *Snapshot) APITokens(now time.Time) ([]string, error) {
	t, err := s.content()
	if err != nil {
		return nil, err
	}
	names := []string{}
	for name, x := range t.tokens {
		if x.Valid(now) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// EmptyAnew is what a control store starts with that is rebuilt from what the core servers hold.
func EmptyAnew(c Cluster, now time.Time) *Snapshot {
	c.Format = FormatVersion
	if c.Created.IsZero() {
		c.Created = now.UTC()
	}
	r := Restoration{Kind: FromNothing, Lineage: c.Lineage, Time: now.UTC()}
	return &Snapshot{Time: now.UTC(), Cluster: c, pairs: []pair{
		{key: keyCluster, value: encode(c, "")},
		{key: keyRestored, value: encode(r, "")},
	}}
}

// NewLineage is random, and never 0.
func NewLineage() uint32 { return rand.N[uint32](math.MaxUint32) + 1 }

// SeedVoter makes the data directory of the first voter of a control store that starts anew, with the content of a
// snapshot (Snapshot.Anew, EmptyAnew). c.Dir must not be there yet; after an error it is not there either. Nobody can
// reach the voter while it is filled.
func SeedVoter(ctx context.Context, c EmbeddedConfig, client *tls.Config, s *Snapshot) error {
	if _, err := os.Lstat(c.Dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("voter's directory %s: %w", c.Dir, ErrExists)
	}
	// Clients find a voter at its client address, so it has another one until it is complete.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.ListenClient = netip.MustParseAddrPort(l.Addr().String())
	if err := l.Close(); err != nil {
		return err
	}
	c.Initial, c.Join, c.Lineage = []VoterAddr{{Name: c.Name, Peer: c.ListenPeer}}, false, s.Cluster.Lineage
	if err := fillVoter(ctx, c, client, s); err != nil {
		return errors.Join(err, os.RemoveAll(c.Dir))
	}
	return nil
}

func fillVoter(ctx context.Context, c EmbeddedConfig, client *tls.Config, s *Snapshot) error {
	e, err := StartEmbedded(ctx, c)
	if err != nil {
		return err
	}
	conf := EtcdConfig{Endpoints: []string{e.ClientURL()}, TLS: client}
	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cli, err := conf.dial(log)
	if err != nil {
		return errors.Join(err, e.Close())
	}
	k := &etcdKV{cli: cli, prefix: DefaultPrefix, log: log}
	return errors.Join(fill(ctx, k, s), cli.Close(), e.Close())
}

// seedBytes bounds a transaction of fill: etcd takes requests of 1.5 MiB.
const seedBytes = 512 << 10

// fill writes the snapshot into an empty store.
func fill(ctx context.Context, k kv, s *Snapshot) error {
	for from := 0; from < len(s.pairs); {
		var t txn
		size := 0
		for _, p := range s.pairs[from:] {
			if len(t.ops) == changesPerTxn || len(t.ops) > 0 && size+len(p.value) > seedBytes {
				break
			}
			t.ops = append(t.ops, op{key: p.key, value: p.value})
			size += len(p.key) + len(p.value)
		}
		if _, err := k.commit(ctx, t); err != nil { // once: the store is thrown away if it fails
			return fmt.Errorf("fill the control store: %w", err)
		}
		from += len(t.ops)
	}
	return nil
}

// Restoration implements Store.
func (c *Client) Restoration() (Restoration, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	if c.cache.mu.restored == nil {
		return Restoration{}, false
	}
	return c.cache.mu.restored.v, true
}

// changeRestoration changes the key, with an event.
func (c *Client) changeRestoration(ctx context.Context, action string, f func(*Restoration, *txn) (changed bool, err error)) (Restoration, error) {
	return again(ctx, c, func(ctx context.Context) (Restoration, error) {
		r, rev, err := read[Restoration](ctx, c, keyRestored)
		if errors.Is(err, ErrNotFound) {
			return r, fmt.Errorf("the control store was neither restored nor rebuilt: %w", ErrNotFound)
		}
		if err != nil {
			return r, err
		}
		was := r
		r.Stores, r.Lost = slices.Clone(r.Stores), slices.Clone(r.Lost)
		t := txn{conds: []cond{{key: keyRestored, rev: rev}}}
		changed, err := f(&r, &t)
		if err != nil || !changed {
			return r, err
		}
		slices.SortFunc(r.Stores, ident.StoreID.Compare)
		slices.SortFunc(r.Lost, ident.StoreID.Compare)
		t.ops = append(t.ops, op{key: keyRestored, value: encode(r, "")})
		_, err = c.commit(ctx, t, audit{action, "control", was, r})
		return r, err
	})
}

// ExpectStores implements Store.
func (c *Client) ExpectStores(ctx context.Context, stores []ident.StoreID) error {
	// Nodes may have noted what they knew before a store was declared lost.
	stores = slices.DeleteFunc(slices.Clone(stores), c.StoreLost)
	if r, ok := c.Restoration(); !ok || !r.Pending() || !slices.ContainsFunc(stores, func(s ident.StoreID) bool { return !slices.Contains(r.Stores, s) }) {
		return nil
	}
	_, err := c.changeRestoration(ctx, "control.expect-stores", func(r *Restoration, _ *txn) (bool, error) {
		n := len(r.Stores)
		for _, s := range stores {
			if !slices.Contains(r.Stores, s) {
				r.Stores = append(r.Stores, s)
			}
		}
		return r.Pending() && len(r.Stores) > n, nil
	})
	return err
}

// DeclareLost implements Store.
func (c *Client) DeclareLost(ctx context.Context, stores []ident.StoreID) (Restoration, error) {
	return c.changeRestoration(ctx, "control.declare-lost", func(r *Restoration, _ *txn) (bool, error) {
		if !r.Pending() {
			return false, fmt.Errorf("the restoration is settled; a node that is gone is taken out by dozo node remove: %w", ErrInUse)
		}
		n := len(r.Lost)
		for _, s := range stores {
			if p, err := c.pair(ctx, dirAnswered+s.String()); err != nil {
				return false, err
			} else if p.mod != 0 {
				return false, fmt.Errorf("store %s has answered: %w", s, ErrInUse)
			}
			if !slices.Contains(r.Stores, s) {
				return false, fmt.Errorf("store %s: %w among those that are waited for", s, ErrNotFound)
			}
			if !slices.Contains(r.Lost, s) {
				r.Lost = append(r.Lost, s)
			}
		}
		return len(r.Lost) > n, nil
	})
}

// DeclareComplete implements Store.
func (c *Client) DeclareComplete(ctx context.Context) (Restoration, error) {
	return c.changeRestoration(ctx, "control.declare-complete", func(r *Restoration, _ *txn) (bool, error) {
		if r.Complete || !r.Pending() {
			return false, nil
		}
		r.Complete = true
		return true, nil
	})
}
