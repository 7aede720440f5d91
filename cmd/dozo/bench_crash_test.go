package main

import (
	"bytes"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestCrashWriterOutlivesALossAtItsLogin: a target that dies during the first login is waited for; one that isn't there is an error.
func TestCrashWriterOutlivesALossAtItsLogin(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var logins atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 48))
			_ = c.(*net.TCPConn).SetLinger(0) // a reset, as from a process that was killed
			c.Close()
			if logins.Add(1) == 3 {
				l.Close()
			}
		}
	}()
	var said bytes.Buffer
	var o benchCrashWriter
	o.login.reconnect, o.login.timeout = 2*time.Second, time.Second
	url := "iscsi://" + l.Addr().String() + "/iqn.2026-11.test:x/0"
	_, err = o.open(t.Context(), &app{err: &said}, url)
	if err == nil || logins.Load() != 3 || said.Len() == 0 {
		t.Fatalf("%d logins, %q: %v", logins.Load(), said.String(), err)
	}
	said.Reset()
	o.login.reconnect = time.Hour
	if _, err := o.open(t.Context(), &app{err: &said}, url); !errors.Is(err, syscall.ECONNREFUSED) || said.Len() != 0 {
		t.Fatalf("nobody there: %q, %v", said.String(), err)
	}
}
