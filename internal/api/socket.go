package api

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// socketPathMax is what sun_path holds, without its final zero byte.
const socketPathMax = 107

// ListenSocket makes a unix socket that only its owner can open, in place of one that a dead process left. If
// something answers there already, it is an error.
func ListenSocket(path string) (net.Listener, error) {
	// It is bound under another name and renamed once its mode is right: there is no moment at which others
	// could open it, nor one at which the old one is gone and the new one not yet there.
	tmp := filepath.Join(filepath.Dir(path), ".s"+strconv.Itoa(os.Getpid()))
	if len(path) > socketPathMax || len(tmp) > socketPathMax {
		return nil, fmt.Errorf("socket %s: its path has %d bytes, and unix sockets can have %d: choose a directory with a shorter name", path, len(path), socketPathMax)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("socket %s: another process answers there", path)
	}
	_ = os.Remove(tmp)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	if err = os.Chmod(tmp, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = ln.Close()
		_ = os.Remove(tmp)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return &socketListener{UnixListener: ln, path: path}, nil
}

// socketListener removes the socket's file when it is closed.
type socketListener struct {
	*net.UnixListener
	path string
	once sync.Once
}

// Close implements net.Listener. A second call does nothing.
func (l *socketListener) Close() (err error) {
	l.once.Do(func() {
		_ = os.Remove(l.path)
		err = l.UnixListener.Close()
	})
	return err
}
