package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"dozo/internal/access"
	"dozo/internal/access/export"
	"dozo/internal/access/iscsi"
	"dozo/internal/api"
	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/cpulatency"
	"dozo/internal/ident"
	"dozo/internal/peer"
	"dozo/internal/pki"
	"dozo/internal/sysmon"
	"dozo/internal/trouble"
	"dozo/internal/version"
)

// Node is one running process.
type Node struct {
	cfg      *config.Config
	log      *slog.Logger
	id       *pki.Identity
	reg      *prometheus.Registry
	boot     ident.BootID
	instance uint64
	started  time.Time

	voter atomic.Pointer[control.Embedded]
	// Why the voter that should run here does not; nil or empty: it runs, or there is none.
	voterProblem atomic.Pointer[string]
	voterURL     atomic.Pointer[string] // where clients reach the voter that belongs here, nil: none does
	strangers    atomic.Uint64          // journals of which the stores here have replicas and the control store knows nothing

	ctl    atomic.Pointer[control.Client]
	self   atomic.Pointer[control.Node]
	stores map[ident.StoreID]*core.Store
	known  knownStores // of all nodes
	book   *trouble.Book
	leases *core.Leases
	pool   *peer.Pool
	frames *peer.Server
	keeper *access.LeaseKeeper
	awake  *cpulatency.Keeper // nil when off
	access *access.Server
	export *export.Exports
	iscsi  *iscsi.Server
	leave  atomic.Pointer[export.Exports] // once there may be sessions

	bounded map[ident.StoreID]*core.Bounded // of stores, as other sites write to them

	state struct {
		sync.Mutex
		name     string
		problems []string
	}
	wg sync.WaitGroup
}

// Serve runs the node of a configuration file until ctx ends.
func Serve(ctx context.Context, configFile string, out io.Writer) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	if cfg.Has(config.RoleWitness) {
		return fmt.Errorf("%s: a witness is started by: dozo witness --config %s", configFile, configFile)
	}
	return runAnew(ctx, cfg, out)
}

// Witness runs a voter of the control store and nothing else.
func Witness(ctx context.Context, configFile string, out io.Writer) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	if !cfg.Has(config.RoleWitness) {
		return fmt.Errorf("%s: the node's roles don't include witness; start it by: dozo serve --config %s", configFile, configFile)
	}
	return runAnew(ctx, cfg, out)
}

// endPatience is for how long a node that is to start anew ends in order. What its voter left may hold parts of it for ever, and
// nothing that was acknowledged depends on an end in order.
const endPatience = 20 * time.Second

// runAnew is run, and the program again if it ends because its voter can only come back in a new process.
func runAnew(ctx context.Context, cfg *config.Config, out io.Writer) error {
	began := time.Now()
	ended := make(chan error, 1)
	anew := make(chan struct{})
	go func() { ended <- run(ctx, cfg, out, func() { close(anew) }) }() // it ends with the process, if not before
	var err error
	select {
	case err = <-ended:
	case <-anew:
		select {
		case err = <-ended:
		case <-time.After(endPatience):
			err = errStartAnew
		}
	}
	if errors.Is(err, errStartAnew) && ctx.Err() == nil {
		newLogger(cfg.Log, out).Warn("the node starts anew", "node", string(cfg.Node), "why", err)
		return errors.Join(err, sysmon.StartAnew(1+timesAnew(began)))
	}
	return err
}

func newLogger(c config.Log, out io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // checked when it was loaded
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(out, o))
	}
	return slog.New(slog.NewTextHandler(out, o))
}

// anewLong is how long a process runs that was well: if its voter dies then, that is the first time again.
const anewLong = time.Hour

// timesAnew is how often in a row the process, which began then, was started anew.
func timesAnew(began time.Time) int {
	if time.Since(began) > anewLong {
		return 0
	}
	return sysmon.StartedAnew()
}

// run runs a node; anew is called if it ends in order to be started anew.
func run(ctx context.Context, cfg *config.Config, out io.Writer, anew func()) (err error) {
	n := &Node{cfg: cfg, log: newLogger(cfg.Log, out).With("node", string(cfg.Node)), instance: peer.NewInstance(), started: time.Now(),
		stores: map[ident.StoreID]*core.Store{}, bounded: map[ident.StoreID]*core.Bounded{}, reg: prometheus.NewRegistry(), book: trouble.NewBook()}
	n.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	n.setState("starting")
	if cfg.Limits.Memory > 0 {
		debug.SetMemoryLimit(int64(cfg.Limits.Memory))
	}
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("boot ID: %w", err)
	}
	if n.boot, err = ident.ParseBootID(string(text)); err != nil {
		return err
	}
	if err := cfg.Appointed(); err != nil {
		return err
	}
	if n.id, err = pki.Load(cfg.TLS.CAFile, cfg.TLS.NodeFile); err != nil {
		return err
	}
	if self := n.id.Self(); self.Name != string(cfg.Node) {
		return fmt.Errorf("certificate %s is of node %s, the configuration is of %s", cfg.TLS.NodeFile, self.Name, cfg.Node)
	}
	n.log.Info("dozo starts", "version", version.Get().Version, "boot", n.boot.String())

	// From here on parts are running; they end in the reverse order.
	stop := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(stop))
	leaving := make(chan struct{})
	// What runs is told to end once volumes are served elsewhere, and initiators have been asked to go there.
	unasked := context.AfterFunc(stop, func() {
		defer close(leaving)
		if e := n.leave.Load(); e != nil {
			n.access.HandOverAll() // before anybody is told to go: initiators that look find the volume's new owner
			e.Leave()
		}
		cancel()
	})
	var closers []func()
	defer func() {
		n.setState("stopping")
		if errors.Is(err, errStartAnew) {
			anew()
			if e := n.leave.Load(); e != nil {
				n.access.HandOverAll()
				e.Leave() // initiators go elsewhere before the sessions end
			}
		}
		if !unasked() {
			<-leaving
		}
		cancel()
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
		n.wg.Wait()
		n.log.Info("dozo ends", "err", err)
	}()
	onClose := func(f func()) { closers = append(closers, f) }
	fatal := make(chan error, 8)

	if err := n.serveAPI(onClose, fatal); err != nil {
		return err
	}
	if err := n.openStores(onClose); err != nil {
		return err
	}
	if err := n.startControl(ctx, onClose, fatal); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if !cfg.Has(config.RoleWitness) {
		if cfg.CPULatency == config.CPULatencyAuto {
			n.awake = cpulatency.New(n.log, cpulatency.Device)
			n.wg.Go(func() { n.awake.Run(ctx) })
			n.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dozo_processors_kept_awake",
				Help: "1 while the processors of the machine are kept from deep sleep for this node's requests."}, func() float64 {
				if n.awake.Held() {
					return 1
				}
				return 0
			}))
		}
		if err := n.startPeers(ctx, onClose, fatal); err != nil {
			return err
		}
	}
	if cfg.Has(config.RoleAccess) {
		if err := n.startAccess(ctx, onClose, fatal); err != nil {
			return err
		}
	}
	if len(n.stores) > 0 {
		n.wg.Go(func() { n.buryDeleted(ctx) })
	}
	n.startBlocks(ctx, fatal)
	n.wg.Go(func() { n.keepCertificate(ctx) })
	n.setState("ready")
	n.log.Info("dozo is ready", "took", time.Since(n.started).Round(time.Millisecond))
	select {
	case <-ctx.Done():
		return nil
	case err := <-fatal:
		return err
	}
}

func (n *Node) setState(s string) {
	n.state.Lock()
	n.state.name = s
	n.state.Unlock()
}

// control is the control store, nil while it hasn't been reached.
func (n *Node) control() *control.Client { return n.ctl.Load() }

func (n *Node) revoked(serial string) bool {
	c := n.control()
	return c != nil && c.Revoked(serial)
}

// serveAPI opens the API first, so that /healthz can say how the start goes on.
func (n *Node) serveAPI(onClose func(func()), fatal chan<- error) error {
	srv := api.NewServer(api.Options{Node: string(n.cfg.Node), Log: n.log, Backend: &backend{n}, Registerer: n.reg,
		Peer:    func(cs tls.ConnectionState) (pki.Peer, error) { return n.id.Check(cs, n.revoked) },
		Metrics: promhttp.HandlerFor(n.reg, promhttp.HandlerOpts{})})
	onClose(func() { _ = srv.Close() })
	l, err := net.Listen("tcp", n.cfg.ManagementAddr.String())
	if err != nil {
		return fmt.Errorf("API: %w", err)
	}
	n.wg.Go(func() {
		if err := srv.Serve(l, n.id.APIServer(n.revoked, "h2", "http/1.1")); err != nil {
			fatal <- fmt.Errorf("API: %w", err)
		}
	})
	if n.cfg.Socket == "" {
		return nil
	}
	u, err := api.ListenSocket(n.cfg.Socket)
	if err != nil {
		return fmt.Errorf("API: %w", err)
	}
	n.wg.Go(func() {
		if err := srv.ServeSocket(u); err != nil {
			fatal <- fmt.Errorf("API socket: %w", err)
		}
	})
	return nil
}
