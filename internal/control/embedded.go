package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"dozo/internal/ident"
	"dozo/internal/pki"
)

// VoterAddr is a voter's name and the address at which the other voters reach it.
type VoterAddr struct {
	Name ident.NodeName
	Peer netip.AddrPort
}

// EmbeddedConfig is of an etcd voter within this process.
type EmbeddedConfig struct {
	Name         ident.NodeName
	Dir          string         // made if it is not there
	ListenPeer   netip.AddrPort // for the other voters
	ListenClient netip.AddrPort
	// Initial lists all voters that the control store starts with, or that it has when this one joins; this one
	// included. Looked at only when Dir is new.
	Initial []VoterAddr
	// Join: the control store runs already, and Admin.AddVoter has been told of this one.
	Join      bool
	ClusterID string // keeps voters of two clusters from talking to each other
	// Lineage, if not 0, keeps voters of a control store that was started anew from talking to those of the former one.
	// Like Initial it is looked at only when Dir is new.
	Lineage uint32
	TLS     pki.EtcdFiles
	// Revoked, if not nil, ends what clients with a revoked certificate have under way; TLS.CRLFile is for new ones.
	Revoked pki.Revoked
	Log     *slog.Logger // default: nothing is logged
	// Free, if not nil, says how many bytes are free on the voter's disk.
	Free func() (uint64, error)

	// Heartbeat and Election are the leader's rhythm and the silence after which a new one is elected. Defaults:
	// 200 ms and 2 s, one and ten round trips of 200 ms, which suits distant sites; where all voters are on this
	// machine 100 ms and 700 ms: a takeover waits for the election if the voter that led died with the owner, which
	// takes one to two times that long. The first election is quicker, since a voter that starts counts as having
	// waited.
	Heartbeat, Election time.Duration

	quota     int64         // bytes of its database; 0: embeddedQuota
	tendEvery time.Duration // how often it is looked after; 0: tendEvery
}

// embeddedFormat is the number in a data directory's VERSION file.
//
//	1  etcd 3.7's own data directory beneath
const embeddedFormat = 1

// Sizes of the embedded etcd. What dozo keeps is some kilobytes a volume.
const (
	embeddedQuota     = 1 << 30 // bytes of its database, after which writes are refused
	embeddedSnapshot  = 5000    // entries between snapshots: little to replay, little memory
	embeddedCatchUp   = 2000    // entries kept for a voter that is behind, before it gets a snapshot
	embeddedRetention = "10000" // revisions that watches may be behind before they must list anew
)

// Embedded is a running voter.
type Embedded struct {
	etcd      *embed.Etcd
	clientURL string
	failed    chan error
	wg        sync.WaitGroup
	closeOnce sync.Once
	done      chan struct{}
	ended     atomic.Bool
	gone      chan goneNode // see NodeGone
	stood     atomic.Uint32 // for election, since a leader was gone
	free      func() (uint64, error)
	quota     int64
	tendEvery time.Duration
}

// goneMax bounds how many nodes may be said to be gone before the first of them is looked at.
const goneMax = 16

func httpsURL(a netip.AddrPort) url.URL { return url.URL{Scheme: "https", Host: a.String()} }

// ClientURL is the URL at which clients reach a voter that listens on the address.
func ClientURL(a netip.AddrPort) string { u := httpsURL(a); return u.String() }

// StartEmbedded starts the voter and returns once it takes part, which needs a majority of the voters; until
// then it waits for the others, as long as ctx allows. A voter whose data directory exists goes on from there.
func StartEmbedded(ctx context.Context, c EmbeddedConfig) (*Embedded, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := prepareDir(c.Dir); err != nil {
		return nil, err
	}
	cfg, err := c.etcd()
	if err != nil {
		return nil, err
	}
	failed := make(chan error, 1)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(c.Log, lastWords{failed}))
	type started struct {
		etcd *embed.Etcd
		err  error
	}
	start := make(chan started, 1)
	go func() { // it ends with StartEtcd, or by lastWords
		etcd, err := embed.StartEtcd(cfg)
		start <- started{etcd, err}
	}()
	var s started
	select {
	case s = <-start:
	case s.err = <-failed:
	}
	if s.err != nil {
		return nil, fmt.Errorf("start embedded control store %s: %w", c.Name, s.err)
	}
	etcd := s.etcd
	e := &Embedded{etcd: etcd, clientURL: ClientURL(c.ListenClient), failed: failed, done: make(chan struct{}),
		gone: make(chan goneNode, goneMax), free: c.Free, quota: cfg.QuotaBackendBytes, tendEvery: cmp.Or(c.tendEvery, tendEvery)}
	e.wg.Go(func() { e.attend(c.Name) })
	e.wg.Go(func() { e.succeed(c.Log) })
	e.wg.Go(func() { e.tend(c.Log) })
	select {
	case <-etcd.Server.ReadyNotify():
		return e, nil
	case err := <-e.failed:
		return nil, errors.Join(fmt.Errorf("start embedded control store %s: %w", c.Name, err), e.Close())
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("start embedded control store %s: no majority of its voters: %w", c.Name, context.Cause(ctx)), e.Close())
	}
}

// attend listens to what etcd reports, as it expects somebody to: the failure of a listener or of the server.
func (e *Embedded) attend(name ident.NodeName) {
	for {
		var err error
		select {
		case <-e.done:
			return
		case <-e.etcd.Server.StopNotify():
			err = fmt.Errorf("embedded control store %s stopped by itself: it was removed from the voters, or can not go on", name)
		case err = <-e.etcd.Err():
		}
		select {
		case e.failed <- err:
		default: // one failure is enough to end upon
		}
		select {
		case <-e.etcd.Server.StopNotify():
			return
		default:
		}
	}
}

// etcd translates the configuration.
func (c EmbeddedConfig) etcd() (*embed.Config, error) {
	if c.TLS == (pki.EtcdFiles{}) {
		return nil, invalidf("embedded control store %s: no certificate", c.Name)
	}
	if !HasVoterData(c.Dir) && !slices.ContainsFunc(c.Initial, func(v VoterAddr) bool { return v.Name == c.Name }) {
		return nil, invalidf("embedded control store %s: it is not among the initial voters %s", c.Name, initialCluster(c.Initial))
	}
	heartbeat, election := c.rhythm()
	cfg := embed.NewConfig()
	cfg.Name = string(c.Name)
	cfg.Dir = filepath.Join(c.Dir, "etcd")
	cfg.ListenPeerUrls = []url.URL{httpsURL(c.ListenPeer)}
	cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
	cfg.ListenClientUrls = []url.URL{httpsURL(c.ListenClient)}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	cfg.InitialCluster = initialCluster(c.Initial)
	cfg.InitialClusterToken = "dozo-" + c.ClusterID
	if c.Lineage != 0 {
		cfg.InitialClusterToken += fmt.Sprintf("-%08x", c.Lineage)
	}
	if c.Join {
		cfg.ClusterState = embed.ClusterStateFlagExisting
	}
	cfg.TickMs = uint(heartbeat.Milliseconds())
	cfg.ElectionMs = uint(election.Milliseconds())
	cfg.InitialElectionTickAdvance = true
	cfg.SnapshotCount = embeddedSnapshot
	cfg.SnapshotCatchUpEntries = embeddedCatchUp
	cfg.QuotaBackendBytes = cmp.Or(c.quota, embeddedQuota)
	cfg.AutoCompactionMode = embed.CompactorModeRevision
	cfg.AutoCompactionRetention = embeddedRetention
	cfg.EnableGRPCGateway = false
	cfg.StrictReconfigCheck = true
	cfg.TlsMinVersion = "TLS1.3"
	tls := transport.TLSInfo{
		CertFile: c.TLS.CertFile, KeyFile: c.TLS.CertFile,
		TrustedCAFile: c.TLS.CAFile, ClientCertAuth: true, CRLFile: c.TLS.CRLFile,
		// Nodes are told from users, and from anything else, by a name that only their certificates have. Where
		// they come from doesn't matter: a node may have addresses that its certificate doesn't know.
		AllowedHostnames:    []string{c.TLS.ServerName},
		ServerName:          c.TLS.ServerName,
		SkipClientSANVerify: true,
	}
	cfg.PeerTLSInfo, cfg.ClientTLSInfo = tls, tls
	if c.Revoked != nil {
		cfg.GRPCAdditionalServerOptions = revokedGuard{c.Revoked}.options()
	}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop()) // what it says of its own accord is nothing to anybody
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("embedded control store %s: %w", c.Name, err)
	}
	return cfg, nil
}

// rhythm gives Heartbeat and Election with their defaults.
func (c EmbeddedConfig) rhythm() (heartbeat, election time.Duration) {
	heartbeat, election = c.Heartbeat, c.Election
	here := len(c.Initial) > 0 && !slices.ContainsFunc(c.Initial, func(v VoterAddr) bool { return !v.Peer.Addr().IsLoopback() })
	if heartbeat <= 0 {
		heartbeat = 200 * time.Millisecond
		if here {
			heartbeat = 100 * time.Millisecond
		}
	}
	if election <= 0 {
		election = 10 * heartbeat
		if here {
			election = 7 * heartbeat
		}
	}
	return heartbeat, election
}

func initialCluster(voters []VoterAddr) string {
	parts := make([]string, len(voters))
	for i, v := range voters {
		parts[i] = string(v.Name) + "=" + ClientURL(v.Peer)
	}
	return strings.Join(parts, ",")
}

// HasVoterData reports whether the directory holds a voter that took part before: then it goes on as what it
// was, and EmbeddedConfig.Initial and Join do not count.
func HasVoterData(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "etcd", "member", "wal"))
	return err == nil
}

// prepareDir makes the directory with its VERSION file, or checks the one that is there.
func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("control store directory: %w", err)
	}
	file := filepath.Join(dir, "VERSION")
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, "etcd")); err == nil {
			return fmt.Errorf("control store directory %s holds data and no VERSION file: it was not made by this program, or is damaged", dir)
		}
		return pki.WriteFileAtomic(file, fmt.Appendf(nil, "%d\n", embeddedFormat))
	}
	if err != nil {
		return fmt.Errorf("control store directory: %w", err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || v < 1 {
		return fmt.Errorf("control store directory: %s says %q: want a number", file, text)
	}
	if v > embeddedFormat {
		return fmt.Errorf("control store directory %s is in format %d, this program knows formats up to %d: %w; start it with that version", dir, v, embeddedFormat, ErrNewerFormat)
	}
	return nil
}

// ClientURL is where clients reach this voter.
func (e *Embedded) ClientURL() string { return e.clientURL }

// Failed gives an error if the voter can not go on. The owner must then Close it, since what is left of it would
// go on taking connections, and usually end the process; a voter that was removed needs its directory deleted
// before it can join again.
func (e *Embedded) Failed() <-chan error { return e.failed }

// Leads reports whether this voter is the leader now.
func (e *Embedded) Leads() bool {
	return e.etcd.Server.Leader() == e.etcd.Server.MemberID()
}

// Ended reports, once Close has returned, that nothing of the voter is left: one may be started in its directory again. Else
// what is left may hold its locks, and only the end of the process ends it.
func (e *Embedded) Ended() bool { return e.ended.Load() }

// ErrVoterDied is what Failed gives if the voter can not go on because of its disk, or of itself; not if it was removed.
var ErrVoterDied = errors.New("the voter has died")

// closePatience is how long Close waits for a voter. One that has died may hold for ever what the rest of it waits for.
const closePatience = 10 * time.Second

// Close stops the voter and waits for it, unless it has died and does not end. A second call does nothing.
func (e *Embedded) Close() error {
	e.closeOnce.Do(func() {
		close(e.done)
		e.wg.Wait()
		closed := make(chan struct{})
		go func() {
			defer close(closed) // also if that ends by lastWords
			select {
			case <-e.etcd.Server.ReadyNotify():
			default:
				// Before a voter is ready its listeners wait for that, and Close for them: end the wait first.
				e.etcd.Server.Stop()
			}
			e.etcd.Close()
			e.ended.Store(true) // not if that ended by lastWords
		}()
		select {
		case <-closed:
		case <-time.After(closePatience):
		}
	})
	return nil
}
