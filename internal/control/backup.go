package control

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"dozo/internal/ident"
)

// A backup is the whole control store at one revision, in a file: header, pairs, trailer. docs/format.md has the
// byte tables. It holds the secrets of hosts as they are.

// What the format of a backup fixes.
const (
	backupMagic      = "DOZOCTLB"
	backupEnd        = "DOZOCTLE"
	backupVersion    = 1
	backupHeaderSize = 96
	backupPairSize   = 20
	backupTrailSize  = 48
)

// Bounds of a backup, which a reader checks before it allocates. etcd takes no larger values.
const (
	backupKeyMax   = 4096
	backupValueMax = 2 << 20
	backupPairsMax = 16 << 20
)

// ErrBackup is a file that is no backup, or a damaged one.
var ErrBackup = errors.New("not a whole backup of a control store")

// Snapshot is the content of a control store at one revision, without what is leased.
type Snapshot struct {
	Rev     Rev
	Time    time.Time // when it was taken, by the clock of the node that took it
	Cluster Cluster
	pairs   []pair // ascending by key
}

// Summary counts what a snapshot holds.
type Summary struct {
	Sites      int    `json:"sites"`
	Nodes      int    `json:"nodes"`
	Stores     int    `json:"stores"`
	Hosts      int    `json:"hosts"`
	Volumes    int    `json:"volumes"`
	Tombstones int    `json:"tombstones"`
	Journals   int    `json:"journals"`
	Tokens     int    `json:"api_tokens"`
	Events     int    `json:"events"`
	Others     int    `json:"others"`    // indices, counters, revocations, tokens to join
	EpochMax   uint64 `json:"epoch_max"` // the highest of any journal
}

// Backup takes a snapshot: one reading of everything, at one revision.
func (c *Client) Backup(ctx context.Context) (*Snapshot, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	pairs, rev, err := c.listing(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("back up the control store: %w", err)
	}
	return newSnapshot(pairs, rev, c.o.Now())
}

// newSnapshot leaves out what is leased: it is made anew by the nodes that are there. Every value must be readable:
// a backup that can't be restored is none.
func newSnapshot(pairs []pair, rev Rev, now time.Time) (*Snapshot, error) {
	s := &Snapshot{Rev: rev, Time: now.UTC()}
	for _, p := range pairs {
		if !leased(p.key) {
			s.pairs = append(s.pairs, p)
		}
	}
	slices.SortFunc(s.pairs, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	content, err := s.content()
	if err != nil {
		return nil, err
	}
	s.Cluster = content.cluster.v
	return s, nil
}

// leased says of a key that it is there as long as a node renews it. Written without its lease it would stand for ever.
func leased(key string) bool {
	dir, _ := splitDir(key)
	return dir == dirAlive || dir == dirHolds
}

// content decodes everything. A snapshot without a cluster is of no control store of ours.
func (s *Snapshot) content() (content, error) {
	t := newContent()
	var errs []error
	for _, p := range s.pairs {
		if err := t.put(p); err != nil {
			errs = append(errs, err)
		}
	}
	if t.cluster == nil && len(errs) == 0 {
		errs = append(errs, ErrNoCluster)
	}
	return t, errors.Join(errs...)
}

// Summary counts.
func (s *Snapshot) Summary() (Summary, error) {
	t, err := s.content()
	if err != nil {
		return Summary{}, err
	}
	out := Summary{Sites: len(t.sites), Nodes: len(t.nodes), Stores: len(t.nodeByStore), Hosts: len(t.hosts), Journals: len(t.journals), Tokens: len(t.tokens)}
	for _, v := range t.volumes {
		if v.v.Deleted != nil {
			out.Tombstones++
		} else {
			out.Volumes++
		}
	}
	for _, j := range t.journals {
		out.EpochMax = max(out.EpochMax, j.v.Epoch.Number)
	}
	for _, p := range s.pairs {
		switch dir, _ := splitDir(p.key); dir {
		case dirEvents:
			out.Events++
		case keyCluster, dirSites, dirNodes, dirHosts, dirVolumes, dirJournals, dirAPI:
		default:
			out.Others++
		}
	}
	return out, nil
}

// Stores lists the stores that nodes had registered.
func (s *Snapshot) Stores() ([]ident.StoreID, error) {
	t, err := s.content()
	if err != nil {
		return nil, err
	}
	var out []ident.StoreID
	for id := range t.nodeByStore {
		out = append(out, id)
	}
	slices.SortFunc(out, ident.StoreID.Compare)
	return out, nil
}

// Sites lists the sites, by number.
func (s *Snapshot) Sites() ([]Site, error) {
	t, err := s.content()
	if err != nil {
		return nil, err
	}
	return sorted(t.sites, func(a, b Site) int { return cmp.Compare(a.ID, b.ID) }), nil
}

// Write writes the snapshot's file.
func (s *Snapshot) Write(w io.Writer) error {
	sum := sha256.New()
	b := bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<20)
	id, err := hex.DecodeString(s.Cluster.ID)
	if err != nil || len(id) != 16 {
		return fmt.Errorf("back up the control store: cluster ID %q: want 32 hexadecimal digits", s.Cluster.ID)
	}
	le := binary.LittleEndian
	h := make([]byte, backupHeaderSize)
	copy(h, backupMagic)
	le.PutUint16(h[12:], backupVersion)
	le.PutUint32(h[16:], FormatVersion)
	le.PutUint32(h[20:], s.Cluster.Lineage)
	le.PutUint64(h[24:], uint64(s.Rev))
	le.PutUint64(h[32:], uint64(s.Time.UnixNano()))
	le.PutUint64(h[40:], uint64(len(s.pairs)))
	copy(h[48:64], id)
	le.PutUint32(h[8:], crc32.Checksum(h[12:], castagnoli))
	_, _ = b.Write(h) // bufio keeps the first error for Flush
	for _, p := range s.pairs {
		if len(p.key) == 0 || len(p.key) > backupKeyMax || len(p.value) > backupValueMax {
			return fmt.Errorf("back up the control store: key %.80q has %d bytes, its value %d", p.key, len(p.key), len(p.value))
		}
		var h [backupPairSize]byte
		le.PutUint16(h[4:], uint16(len(p.key)))
		le.PutUint32(h[8:], uint32(len(p.value)))
		le.PutUint64(h[12:], uint64(p.mod))
		le.PutUint32(h[0:], pairCRC(h[4:], p.key, p.value))
		_, _ = b.Write(h[:])
		_, _ = b.WriteString(p.key)
		_, _ = b.Write(p.value)
	}
	if err := b.Flush(); err != nil {
		return err
	}
	t := make([]byte, 0, backupTrailSize)
	t = append(t, backupEnd...)
	t = le.AppendUint64(t, uint64(len(s.pairs)))
	t = sum.Sum(t)
	_, err = w.Write(t)
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func pairCRC(head []byte, key string, value []byte) uint32 {
	c := crc32.Update(0, castagnoli, head)
	c = crc32.Update(c, castagnoli, []byte(key))
	return crc32.Update(c, castagnoli, value)
}

// ReadSnapshot reads and verifies a snapshot's file: every checksum, and that every value can be read.
func ReadSnapshot(r io.Reader) (*Snapshot, error) {
	s, err := parseSnapshot(r)
	if err != nil {
		return nil, err
	}
	t, err := s.content()
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	if c := t.cluster.v; c.ID != s.Cluster.ID || c.Lineage != s.Cluster.Lineage {
		return nil, fmt.Errorf("%w: its header says cluster %s, its content %s", ErrBackup, s.Cluster.ID, c.ID)
	}
	s.Cluster = t.cluster.v
	return s, nil
}

// parseSnapshot takes the bytes apart.
func parseSnapshot(r io.Reader) (*Snapshot, error) {
	sum := &summing{r: bufio.NewReaderSize(r, 1<<20), sum: sha256.New()}
	le := binary.LittleEndian
	h := make([]byte, backupHeaderSize)
	if err := sum.full(h); err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrBackup, err)
	}
	if string(h[:8]) != backupMagic {
		return nil, fmt.Errorf("%w: it starts with %q", ErrBackup, h[:8])
	}
	if v := le.Uint16(h[12:]); v > backupVersion {
		return nil, fmt.Errorf("backup of version %d, this program knows versions up to %d: %w", v, backupVersion, ErrNewerFormat)
	}
	if want, got := le.Uint32(h[8:]), crc32.Checksum(h[12:], castagnoli); want != got {
		return nil, fmt.Errorf("%w: header checksum %08x, computed %08x", ErrBackup, want, got)
	}
	if v := le.Uint32(h[16:]); v > FormatVersion {
		return nil, fmt.Errorf("backup of a control store in format %d, this program knows formats up to %d: %w", v, FormatVersion, ErrNewerFormat)
	}
	n := le.Uint64(h[40:])
	if le.Uint16(h[12:]) < 1 || le.Uint16(h[14:]) != 0 || n > backupPairsMax || slices.ContainsFunc(h[64:], func(b byte) bool { return b != 0 }) {
		return nil, fmt.Errorf("%w: header with %d pairs", ErrBackup, n)
	}
	s := &Snapshot{Rev: Rev(le.Uint64(h[24:])), Time: time.Unix(0, int64(le.Uint64(h[32:]))).UTC(),
		Cluster: Cluster{ID: hex.EncodeToString(h[48:64]), Lineage: le.Uint32(h[20:])}}
	for i := range n {
		p, err := sum.pair()
		if err != nil {
			return nil, fmt.Errorf("%w: pair %d of %d: %w", ErrBackup, i+1, n, err)
		}
		if i > 0 && p.key <= s.pairs[i-1].key {
			return nil, fmt.Errorf("%w: key %.80q is out of order", ErrBackup, p.key)
		}
		s.pairs = append(s.pairs, p)
	}
	want := sum.sum.Sum(nil)
	t := make([]byte, backupTrailSize)
	if err := sum.full(t); err != nil {
		return nil, fmt.Errorf("%w: its end is missing: %w", ErrBackup, err)
	}
	if string(t[:8]) != backupEnd || le.Uint64(t[8:]) != n || string(t[16:]) != string(want) {
		return nil, fmt.Errorf("%w: the checksum of the whole is wrong", ErrBackup)
	}
	if _, err := sum.r.ReadByte(); err != io.EOF {
		return nil, fmt.Errorf("%w: there is something behind its end", ErrBackup)
	}
	return s, nil
}

// summing reads and keeps the checksum of what was read.
type summing struct {
	r   *bufio.Reader
	sum hash.Hash
}

func (s *summing) full(b []byte) error {
	if _, err := io.ReadFull(s.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	_, _ = s.sum.Write(b)
	return nil
}

func (s *summing) pair() (pair, error) {
	le := binary.LittleEndian
	var h [backupPairSize]byte
	if err := s.full(h[:]); err != nil {
		return pair{}, err
	}
	nk, nv, mod := int(le.Uint16(h[4:])), le.Uint32(h[8:]), le.Uint64(h[12:])
	if nk == 0 || nk > backupKeyMax || nv > backupValueMax || mod > math.MaxInt64 || le.Uint16(h[6:]) != 0 {
		return pair{}, fmt.Errorf("key of %d bytes, value of %d", nk, nv)
	}
	b := make([]byte, nk+int(nv))
	if err := s.full(b); err != nil {
		return pair{}, err
	}
	p := pair{key: string(b[:nk]), value: b[nk:], mod: Rev(mod)}
	if want, got := le.Uint32(h[0:]), pairCRC(h[4:], p.key, p.value); want != got {
		return pair{}, fmt.Errorf("checksum %08x, computed %08x", want, got)
	}
	return p, nil
}
