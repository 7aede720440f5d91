package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dozo/internal/initiator"
	"dozo/internal/initiator/bench"
	"dozo/internal/size"
	"dozo/internal/sysmon"
)

func newBench(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "bench", Short: "Put load on iSCSI targets, compare them, and check what survives crashes",
		Long: `Put load on iSCSI targets, compare them, and check what survives crashes. Any target will do.

URLs are iscsi://[USER%SECRET@]HOST[:PORT]/TARGET-NAME[/LUN], as dozo volume targets prints them.
Writing loads destroy what is on the unit.`,
	}
	c.AddCommand(newBenchISCSI(a), newBenchCompare(a), newBenchDiscover(a), newBenchCrashWriter(a), newBenchCrashCheck(a), newBenchLinearize(a))
	return c
}

// sizeFlag is a flag that holds bytes as people write them.
type sizeFlag int64

func (s *sizeFlag) String() string { return size.Exact(uint64(*s)) }
func (s *sizeFlag) Type() string   { return "size" }
func (s *sizeFlag) Set(v string) error {
	n, err := size.Parse(v)
	if err != nil {
		return err
	}
	if n > math.MaxInt64 {
		return fmt.Errorf("%s is too large", v)
	}
	*s = sizeFlag(n)
	return nil
}

// loginFlags say how sessions are logged in.
type loginFlags struct {
	name                     string
	headerDigest, dataDigest bool
	level                    int
	initialR2T               bool
	noImmediate              bool
	maxRecv, maxBurst, first sizeFlag
	reconnect                time.Duration
	timeout                  time.Duration
	targetUser, targetSecret string
}

func (l *loginFlags) add(f *pflag.FlagSet) {
	o := initiator.DefaultOffer()
	l.maxRecv, l.maxBurst, l.first = sizeFlag(o.MaxRecvDataSegmentLength), sizeFlag(o.MaxBurstLength), sizeFlag(o.FirstBurstLength)
	f.StringVar(&l.name, "initiator-name", initiator.DefaultInitiatorName, "InitiatorName")
	f.BoolVar(&l.headerDigest, "header-digest", false, "CRC32C over headers")
	f.BoolVar(&l.dataDigest, "data-digest", false, "CRC32C over data")
	f.IntVar(&l.level, "recovery-level", 0, "ErrorRecoveryLevel to offer, 0 to 2")
	f.BoolVar(&l.initialR2T, "initial-r2t", false, "offer InitialR2T=Yes")
	f.BoolVar(&l.noImmediate, "no-immediate-data", false, "offer ImmediateData=No")
	f.Var(&l.maxRecv, "max-recv", "MaxRecvDataSegmentLength to declare")
	f.Var(&l.maxBurst, "max-burst", "MaxBurstLength to offer")
	f.Var(&l.first, "first-burst", "FirstBurstLength to offer")
	f.DurationVar(&l.reconnect, "reconnect", 30*time.Second, "how long to try to log in again after a loss; 0: not at all")
	f.DurationVar(&l.timeout, "command-timeout", 0, "abort commands without an answer after this time (default never)")
	f.StringVar(&l.targetUser, "target-user", "", "name that the target must give (mutual CHAP)")
	f.StringVar(&l.targetSecret, "target-secret-file", "", "`file` with the secret that the target must know (mutual CHAP)")
}

// retryLimit is enough for BUSY during a takeover of some seconds.
const retryLimit = 200

func (l *loginFlags) config() (initiator.Config, error) {
	o := initiator.DefaultOffer()
	if l.headerDigest {
		o.HeaderDigest = "CRC32C"
	}
	if l.dataDigest {
		o.DataDigest = "CRC32C"
	}
	if l.level < 0 || l.level > 2 {
		return initiator.Config{}, usageError{fmt.Errorf("--recovery-level is 0, 1 or 2")}
	}
	o.ErrorRecoveryLevel = l.level
	o.InitialR2T, o.ImmediateData = l.initialR2T, !l.noImmediate
	o.MaxRecvDataSegmentLength, o.MaxBurstLength, o.FirstBurstLength = int(l.maxRecv), int(l.maxBurst), int(l.first)
	c := initiator.Config{Initiator: l.name, Offer: &o, ReconnectTimeout: l.reconnect, CommandTimeout: l.timeout, RetryLimit: retryLimit}
	if l.targetSecret != "" {
		secret, err := readSecretFile(l.targetSecret)
		if err != nil {
			return c, err
		}
		c.CHAP.TargetUser, c.CHAP.TargetSecret = l.targetUser, secret
	}
	return c, nil
}

// loadFlags are what all loads have in common.
type loadFlags struct {
	login       loginFlags
	sessions    int
	connections int
	offset      sizeFlag
	size        sizeFlag
	runtime     time.Duration
	ramp        time.Duration
	prefill     bool
	quiet       bool
	seed        uint64
	errors      uint64
}

func (l *loadFlags) add(f *pflag.FlagSet, runtime time.Duration) {
	l.login.add(f)
	f.IntVar(&l.sessions, "sessions", 1, "sessions for each URL")
	f.IntVar(&l.connections, "connections", 1, "connections of each session")
	f.Var(&l.offset, "offset", "first byte of the region")
	f.Var(&l.size, "size", "size of the region (default to the end)")
	f.DurationVar(&l.runtime, "runtime", runtime, "how long to measure")
	f.DurationVar(&l.ramp, "ramp", 0, "how long to run before measuring")
	f.BoolVar(&l.prefill, "prefill", false, "write the whole region once before")
	f.BoolVarP(&l.quiet, "quiet", "q", false, "no progress on standard error")
	f.Uint64Var(&l.seed, "seed", 0, "of the random offsets")
	f.Uint64Var(&l.errors, "max-errors", 0, "I/Os that may fail before the run does")
}

// steadyMost is how many connections there may be for steady: with more, one goroutine reads them all (initiator.Poller) and the client is
// never idle anyway.
const steadyMost = 8

// steady gives the client a runtime that costs a waiting connection little: its monitor keeps a slow beat
// (internal/sysmon), and as each connection is read by a thread that waits in the kernel, none may keep a processor from the others for that
// beat. It may start the program anew, so it comes before anything else.
func (l *loadFlags) steady(urls int) {
	connections := urls * max(1, l.sessions) * max(1, l.connections)
	if connections > steadyMost {
		return
	}
	// Without it the client only takes more of the processors.
	_ = sysmon.KeepAwake()
	runtime.GOMAXPROCS(runtime.NumCPU() + connections)
}

func (l *loadFlags) config(progress io.Writer) (bench.Config, error) {
	ic, err := l.login.config()
	c := bench.Config{
		Initiator: ic, Sessions: l.sessions, Connections: l.connections, Offset: int64(l.offset), Size: int64(l.size),
		Runtime: l.runtime, Ramp: l.ramp, Prefill: l.prefill, Seed: l.seed, ErrorsMax: l.errors,
	}
	if !l.quiet {
		c.Progress = progress
	}
	if err == nil && (l.sessions < 1 || l.connections < 1) {
		err = usageError{fmt.Errorf("%d sessions of %d connections: want 1 at least of each", l.sessions, l.connections)}
	}
	return c, err
}

// checkURLs says which URL is none.
func checkURLs(urls []string) error {
	for _, text := range urls {
		switch u, err := initiator.ParseURL(text); {
		case err != nil:
			return usageError{err}
		case u.Target == "":
			return usageError{fmt.Errorf("iscsi://%s names no target: want iscsi://HOST[:PORT]/TARGET[/LUN]; dozo bench discover lists the targets of a portal", u.Portal)}
		}
	}
	return nil
}
