package history_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/initiator"
	"dozo/internal/initiator/history"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const name = "iqn.2026-01.example.dozo:mem"

// server is a target whose disk outlives it.
type server struct {
	t    *testing.T
	disk *iscsitest.Disk
	p    *iscsitest.Portal
	addr string
}

func newServer(t *testing.T) *server {
	s := &server{t: t, disk: iscsitest.NewDisk("mem", 16<<20, 512), addr: "127.0.0.1:0"}
	s.start()
	t.Cleanup(func() { s.p.Close() })
	return s
}

func (s *server) start() {
	s.t.Helper()
	var err error
	for range 100 {
		p := &iscsitest.Provider{Disks: map[string][]*iscsitest.Disk{name: {s.disk}}}
		if s.p, err = iscsitest.Start(p, s.addr, slog.New(slog.DiscardHandler), nil); err == nil {
			s.addr = s.p.Address
			return
		}
		time.Sleep(10 * time.Millisecond) // the port of the old one
	}
	s.t.Fatal(err)
}

func (s *server) open(ctx context.Context) *initiator.Disk {
	s.t.Helper()
	sess, err := initiator.Dial(ctx, initiator.Config{Portal: s.addr, Target: name, ReconnectTimeout: 20 * time.Second, RetryLimit: 100})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { sess.Close(ctx) })
	d, err := initiator.OpenDisk(ctx, sess, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// TestWriterSurvivesServerDeaths restarts the target under a writer, then checks, then spoils and checks again.
func TestWriterSurvivesServerDeaths(t *testing.T) {
	srv := newServer(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	d := srv.open(ctx)
	path := filepath.Join(t.TempDir(), "log")
	l, err := history.NewLog(path, 16, 1024)
	if err != nil {
		t.Fatal(err)
	}
	w, err := history.NewWriter(d, l, history.WriterConfig{FlushEvery: 100, FUA: 0.02, BlocksMax: 4, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for i := range 4 {
			// Each life lasts for some writes, not for some time.
			for goal := w.Stats().Acked + 1500; w.Stats().Acked < goal && ctx.Err() == nil; {
				time.Sleep(time.Millisecond)
			}
			if i < 3 {
				srv.p.Close()
				srv.start()
			}
		}
		stop()
	}()
	st, err := w.Run(run)
	<-killed
	if err != nil {
		t.Fatalf("%+v: %v", st, err)
	}
	if d.S.Stats().Reconnects < 3 || st.Acked < 6000 || st.Flushes == 0 || st.Failed != 0 || st.Issued != st.Acked {
		t.Fatalf("%+v, %d reconnects", st, d.S.Stats().Reconnects)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	l, err = history.OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, level := range []history.Level{history.Acked, history.Flushed} {
		res, err := l.Check(ctx, d, level)
		if err != nil || res.Violations != 0 || res.Checked < 900 {
			t.Fatalf("%s: %+v %v", level, res, err)
		}
	}
	// The log goes on: a second run with the same file.
	w, err = history.NewWriter(d, l, history.WriterConfig{Writes: 500, Seed: 2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt(ctx, make([]byte, 4096), 100*4096, false); err != nil {
		t.Fatal(err)
	}
	res, err := l.Check(ctx, d, history.Acked)
	if err != nil || res.Violations != 1 || res.First.Block != 100 || res.First.Kind != "lost" {
		t.Fatalf("%+v %+v %v", res, res.First, err)
	}
}

func TestClientsOnSharedBlocks(t *testing.T) {
	srv := newServer(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	rec, err := history.RunClients(ctx, history.ClientsConfig{Disks: []*initiator.Disk{srv.open(ctx), srv.open(ctx)}, Clients: 4, Ops: 2000})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(rec.Ops()); n < 2000 {
		t.Fatalf("%d operations", n)
	}
	if err := history.CheckRegisters(rec.Ops()); err != nil {
		t.Fatal(err)
	}
}
