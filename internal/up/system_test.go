package up

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/apitest"
	"dozo/internal/api/dozov1"
	"dozo/internal/pki"
)

// TestMain makes this test binary a node when it is started as one: it answers the API as a node does, with a
// backend in memory.
func TestMain(m *testing.M) {
	if os.Getenv("DOZO_UP_FAKE") != "" {
		if err := fakeNode(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "fake node:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func fakeNode(args []string) error {
	if len(args) != 3 || args[1] != "--config" {
		return fmt.Errorf("arguments %q", args)
	}
	// What it is, it learns as a person would: from where its configuration lies.
	nd := filepath.Dir(args[2])
	rec, err := loadRecord(filepath.Dir(filepath.Dir(nd)))
	if err != nil {
		return err
	}
	plan, err := Plan(rec.Shape)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(plan, func(p Process) bool { return string(p.Name) == filepath.Base(nd) && p.Kind == args[0] })
	if i < 0 {
		return fmt.Errorf("%q: no such node", args)
	}
	c := struct{ Node, Address string }{string(plan[i].Name), plan[i].Addr.String()}
	if os.Getenv("FAKE_FAIL") == c.Node {
		return errors.New("the store is broken")
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	id, err := pki.Load(filepath.Join(nd, pki.CAFile), filepath.Join(nd, pki.NodeFile))
	if err != nil {
		return err
	}
	b := apitest.New()
	never := os.Getenv("FAKE_NEVER_READY") != ""
	b.SetHealth(api.Health{Ready: !never, State: "starting", Node: c.Node, Problems: []string{"waits for Godot"}})
	left, _ := strconv.Atoi(os.Getenv("FAKE_RECOVERING"))
	srv := api.NewServer(api.Options{Node: c.Node, Backend: &recoveringNode{Backend: b, left: left, asked: filepath.Join(nd, "asked")}, Peer: func(cs tls.ConnectionState) (pki.Peer, error) { return id.Check(cs, nil) }})
	ln, err := net.Listen("tcp", net.JoinHostPort(c.Address, "7070"))
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln, id.APIServer(nil)) })
	<-term
	if os.Getenv("FAKE_IGNORES_TERM") == c.Node {
		<-term
	}
	err = srv.Close()
	wg.Wait()
	return err
}

// recoveringNode says of a volume that it is recovering for the first times that it is asked.
type recoveringNode struct {
	*apitest.Backend
	mu    sync.Mutex
	left  int
	asked string // a file that is made when it has been asked for its health for the third time
	n     int
}

func (n *recoveringNode) Health() api.Health {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.n++; n.n == 3 {
		_ = os.WriteFile(n.asked, nil, 0o600)
	}
	return n.Backend.Health()
}

func (n *recoveringNode) Status(ctx context.Context, req *dozov1.StatusRequest) (*dozov1.StatusResponse, error) {
	r, err := n.Backend.Status(ctx, req)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil && n.left > 0 {
		n.left--
		r.Volumes = append(r.Volumes, &dozov1.VolumeStatus{Name: "disk1", State: "recovering"}, &dozov1.VolumeStatus{Name: "disk2", State: "serving"})
	}
	return r, err
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}
func (b *syncBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// options of a system of one site of two nodes, with a witness, on a network that is this test's own.
func options(t *testing.T, n int) (Options, *syncBuffer) {
	t.Helper()
	one, two, netN := 1, 2, 60+os.Getpid()%100+n
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out := &syncBuffer{}
	dir := filepath.Join(t.TempDir(), "d")
	t.Cleanup(func() {
		if err := Down(dir, out); err != nil && !errors.Is(err, ErrNoSystem) && !errors.Is(err, ErrNewerFormat) {
			t.Errorf("down: %v", err)
		}
		reap()
	})
	return Options{Dir: dir, Wish: Wish{Sites: &one, Nodes: &two, Net: &netN}, Program: exe, Env: []string{"DOZO_UP_FAKE=1"}, Out: out, Timeout: 30 * time.Second}, out
}

// reap takes away the zombies of nodes that were left running by Release and have ended since.
func reap() {
	for {
		var ws syscall.WaitStatus
		if pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}

func pids(t *testing.T, dir string) map[string]instance {
	t.Helper()
	out := map[string]instance{}
	for _, n := range []string{"s1n1", "s1n2", "witness"} {
		text, err := os.ReadFile(filepath.Join(dir, "nodes", n, pidFile))
		if err != nil {
			t.Fatal(err)
		}
		i, err := parseInstance(string(text))
		if err != nil {
			t.Fatal(err)
		}
		out[n] = i
	}
	return out
}

func TestDetachedLife(t *testing.T) {
	o, out := options(t, 0)
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Print(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"site-1", "s1n2", "witness", "volume create", "--dir " + o.Dir} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	first := pids(t, o.Dir)

	// While the starter holds the lock, another one is told who it is.
	var re *RunningError
	if _, err := Start(t.Context(), o); !errors.As(err, &re) || re.Supervisor != strconv.Itoa(os.Getpid()) || len(re.Nodes) != 3 {
		t.Errorf("second start while the lock is held: %v", err)
	}
	s.Release()
	if _, err := Start(t.Context(), o); !errors.As(err, &re) || re.Supervisor != "" || !strings.Contains(err.Error(), fmt.Sprintf("s1n1 (pid %d)", first["s1n1"].pid)) {
		t.Errorf("second start: %v", err)
	}

	// The context that was written is enough to call the API.
	ctx, err := api.ContextSource{Dir: o.Dir}.Find()
	if err != nil {
		t.Fatal(err)
	}
	co, err := ctx.Options()
	if err != nil {
		t.Fatal(err)
	}
	c, err := api.Dial(co)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Cluster.Version(t.Context(), &dozov1.VersionRequest{}); err != nil {
		t.Errorf("call with the context file: %v", err)
	}

	// A dead node is started again; the others are not touched.
	if err := first["s1n2"].signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDead(t, first["s1n2"])
	o.Wish = Wish{}
	s, err = Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s.Release()
	second := pids(t, o.Dir)
	if second["s1n1"] != first["s1n1"] || second["witness"] != first["witness"] || second["s1n2"] == first["s1n2"] {
		t.Errorf("before %v, after %v", first, second)
	}

	// Another shape is refused, naming what there is.
	three := 3
	o.Wish.Sites = &three
	if _, err := Start(t.Context(), o); !errors.Is(err, ErrOtherShape) || !strings.Contains(err.Error(), "--sites 1") {
		t.Errorf("other shape: %v", err)
	}

	if err := Down(o.Dir, out); err != nil {
		t.Fatal(err)
	}
	for n, i := range second {
		if i.alive() {
			t.Errorf("%s is alive", n)
		}
	}
	// Everything starts again with what is there, and a configuration that a person changed stays.
	path := filepath.Join(o.Dir, "nodes", "s1n1", configFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, "# mine\n"...)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Wish.Sites = nil
	s, err = Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s.Release()
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, text) {
		t.Errorf("the configuration was written again: %v", err)
	}
}

func waitDead(t *testing.T, i instance) {
	t.Helper()
	for i.alive() {
		if t.Context().Err() != nil {
			t.Fatal("still alive")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestFollow(t *testing.T) {
	o, out := options(t, 1)
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	all := pids(t, o.Dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	restart := make(chan os.Signal, 1)
	done := make(chan error, 1)
	go func() { done <- s.Follow(ctx, restart) }()

	if err := all["s1n1"].signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, out, "s1n1 (pid "+strconv.Itoa(all["s1n1"].pid)+") ended: signal: killed")
	restart <- syscall.SIGHUP
	waitFor(t, out, "s1n1 runs again")
	again := pids(t, o.Dir)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for n, i := range again {
		if i.alive() {
			t.Errorf("%s is alive", n)
		}
	}
}

func waitFor(t *testing.T, out *syncBuffer, text string) {
	t.Helper()
	for !strings.Contains(out.String(), text) {
		if t.Context().Err() != nil {
			t.Fatalf("no %q in\n%s", text, out)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestFollowEndsWithTheLastNode(t *testing.T) {
	o, out := options(t, 2)
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range pids(t, o.Dir) {
		if err := i.signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Follow(t.Context(), nil); err != nil || !strings.Contains(out.String(), "no node runs any more") {
		t.Errorf("%v\n%s", err, out)
	}
	// The lock is free again.
	if s, err = Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s.Release()
}

func TestNodeThatFailsIsShownWithItsLog(t *testing.T) {
	o, _ := options(t, 3)
	o.Env = append(o.Env, "FAKE_FAIL=s1n2")
	_, err := Start(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "s1n2") || !strings.Contains(err.Error(), "the store is broken") || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("%v", err)
	}
	if left := runningNames(o.Dir); len(left) != 0 {
		t.Errorf("left running: %v", left)
	}
}

// deadline is a context whose deadline has come once done is closed.
type deadline struct {
	context.Context
	done chan struct{}
}

func (d deadline) Done() <-chan struct{} { return d.done }

func (d deadline) Err() error {
	select {
	case <-d.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestNodeThatIsNotReadyIsShownWithItsReason(t *testing.T) {
	o, _ := options(t, 4)
	o.Env, o.Timeout = append(o.Env, "FAKE_NEVER_READY=1"), time.Hour
	over := deadline{t.Context(), make(chan struct{})}
	go func() { // the time is over once all have said why they are not ready
		defer close(over.done)
		for t.Context().Err() == nil {
			if asked, _ := filepath.Glob(filepath.Join(o.Dir, "nodes", "*", "asked")); len(asked) == 3 {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	_, err := Start(over, o)
	if err == nil || !strings.Contains(err.Error(), "is not ready after 1h0m0s") || !strings.Contains(err.Error(), "waits for Godot") {
		t.Errorf("%v", err)
	}
	if left := runningNames(o.Dir); len(left) != 0 {
		t.Errorf("left running: %v", left)
	}
}

func TestPortInUse(t *testing.T) {
	o, _ := options(t, 5)
	at := fmt.Sprintf("127.%d.1.2:3260", *o.Wish.Net)
	ln, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = Start(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "s1n2 needs "+at) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the shape is fixed, though nothing could be started")
	}
}

func TestDirectoriesThatAreRefused(t *testing.T) {
	o, _ := options(t, 6)
	newer := filepath.Join(o.Dir, shapeFile)
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(newer, []byte("format: 2\nsomething: else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), o); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("newer format: %v", err)
	}
	if err := os.Rename(newer, filepath.Join(o.Dir, "thesis.txt")); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), "thesis.txt") {
		t.Errorf("a directory with something in it: %v", err)
	}
	o.Dir = filepath.Join(t.TempDir(), "none")
	one := 1
	o.Wish = Wish{Sites: &one, Nodes: &one}
	if _, err := Start(t.Context(), o); !errors.Is(err, ErrShape) {
		t.Errorf("one node: %v", err)
	}
	if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("an impossible system left a directory")
	}
}

func TestStopKillsWhatDoesNotEnd(t *testing.T) {
	o, _ := options(t, 7)
	o.Env = append(o.Env, "FAKE_IGNORES_TERM=s1n1")
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s.Release()
	i := pids(t, o.Dir)["s1n1"]
	killed := false
	if err := stop(map[string]instance{"s1n1": i}, 50*time.Millisecond, func(_ string, k bool) { killed = k }); err != nil || !killed || i.alive() {
		t.Errorf("%v, killed %v, alive %v", err, killed, i.alive())
	}
}

func TestAnotherProcessWithThePidIsLeftAlone(t *testing.T) {
	// The pid file means a process that had this pid before us.
	me, err := newInstance(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	me.start--
	if me.alive() {
		t.Error("taken for another")
	}
	if err := me.signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%v", err)
	}
}

// TestStartWaitsForVolumes: who starts a system with data may use it at once, or is told what is not served yet.
func TestStartWaitsForVolumes(t *testing.T) {
	o, out := options(t, 9)
	o.Env = append(o.Env, "FAKE_RECOVERING=3")
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "not served") {
		t.Errorf("volumes that are served after a while:\n%s", out)
	}
	s.Release()
	if err := Down(o.Dir, out); err != nil {
		t.Fatal(err)
	}
	reap()
	o.Env = append(o.Env, "FAKE_RECOVERING=1000000")
	o.Served = 300 * time.Millisecond
	if s, err = Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s.Release()
	if !strings.Contains(out.String(), "volumes that are not served yet: disk1 (1); see dozo status") {
		t.Errorf("volumes that are not served:\n%s", out)
	}
}
