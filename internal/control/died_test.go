package control

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

// TestVoterDies: where etcd's code would end the process, because its disk is full, the voter alone ends; also while it starts.
func TestVoterDies(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, what := range []struct {
		name string
		say  func(*zap.Logger)
	}{
		{"fatal", func(l *zap.Logger) { l.Fatal("failed to save", zap.Error(fmt.Errorf("write: %w", syscall.ENOSPC))) }},
		{"panic", func(l *zap.Logger) { l.Panic("failed to commit", zap.Error(fmt.Errorf("write: %w", syscall.ENOSPC))) }},
	} {
		t.Run(what.name, func(t *testing.T) {
			k := newVoterKit(t)
			e := start(t, single(k.config(t, "v1")))
			went := make(chan struct{})
			go func() {
				defer close(went)
				what.say(e.etcd.Server.Logger())
				t.Error("it went on behind its last words")
			}()
			<-went
			select {
			case err := <-e.Failed():
				if !errors.Is(err, ErrVoterDied) || !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("it died of %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("nobody was told")
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestVoterThatDoesNotEnd: a voter dies while it holds what the rest of it waits for, as where its database can not be
// committed. Close does not wait for it for ever, and says that not all of it has ended.
func TestVoterThatDoesNotEnd(t *testing.T) {
	t.Parallel() // it mostly waits
	k := newVoterKit(t)
	e := start(t, single(k.config(t, "v1")))
	tx := e.etcd.Server.Backend().BatchTx()
	went := make(chan struct{})
	go func() {
		defer close(went)
		tx.Lock()
		e.etcd.Server.Logger().Fatal("failed to commit tx", zap.Error(fmt.Errorf("write: %w", syscall.ENOSPC)))
	}()
	<-went
	err := <-e.Failed()
	if !errors.Is(err, ErrVoterDied) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("it died of %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if e.Ended() {
		t.Error("it is said to have ended, and the lock is still held")
	}
	tx.Unlock() // the test's process goes on
}
