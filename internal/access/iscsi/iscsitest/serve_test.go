package iscsitest

import (
	"log/slog"
	"os"
	"os/signal"
	"testing"
)

// TestServe serves until interrupted, for trying real initiators by hand:
// ISCSITEST_LISTEN=127.0.0.1:3261 go test -run TestServe ./internal/access/iscsi/iscsitest
func TestServe(t *testing.T) {
	addr := os.Getenv("ISCSITEST_LISTEN")
	if addr == "" {
		t.Skip("ISCSITEST_LISTEN is not set")
	}
	p := &Provider{Disks: map[string][]*Disk{"iqn.2026-01.example.dozo:mem": {NewDisk("mem", 1<<30, 512)}}}
	portal, err := Start(p, addr, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})), nil)
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, os.Interrupt)
	<-ch
	portal.Close()
}
