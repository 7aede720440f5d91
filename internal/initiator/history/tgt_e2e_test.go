//go:build e2e

package history_test

import (
	"context"
	"testing"
	"time"

	"dozo/internal/initiator"
	"dozo/internal/initiator/history"
	"dozo/internal/initiator/tgttest"
)

// TestWriterAcrossTgtDeaths kills tgtd under the writer. Its file is in the page cache, so nothing may be lost.
func TestWriterAcrossTgtDeaths(t *testing.T) {
	tgt := tgttest.Start(t, 64<<20)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	s, err := initiator.Dial(ctx, initiator.Config{Portal: tgt.Portal, Target: tgt.Target, ReconnectTimeout: 5 * time.Minute, RetryLimit: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(ctx)
	d, err := initiator.OpenDisk(ctx, s, initiator.FlatLUN(1))
	if err != nil {
		t.Fatal(err)
	}
	l, err := history.NewLog("", 0, 4096)
	if err != nil {
		t.Fatal(err)
	}
	w, err := history.NewWriter(d, l, history.WriterConfig{})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for i := range 4 {
			for goal := w.Stats().Acked + 5000; w.Stats().Acked < goal && ctx.Err() == nil; {
				time.Sleep(5 * time.Millisecond)
			}
			if i < 3 {
				tgt.Restart(t)
			}
		}
		stop()
	}()
	st, err := w.Run(run)
	<-killed
	t.Logf("%+v, %d reconnects", st, s.Stats().Reconnects)
	if err != nil || s.Stats().Reconnects < 3 {
		t.Fatalf("%d reconnects, %v", s.Stats().Reconnects, err)
	}
	res, err := l.Check(ctx, d, history.Acked)
	if err != nil || res.Violations != 0 {
		t.Fatalf("%+v %+v %v", res, res.First, err)
	}
}
