package uring

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestLayout(t *testing.T) {
	if a, b, c := unsafe.Sizeof(params{}), unsafe.Sizeof(sqe{}), unsafe.Sizeof(cqe{}); a != 120 || b != sqeSize || c != cqeSize {
		t.Fatalf("sizes %d, %d, %d", a, b, c)
	}
}

// open gives a ring, or ends the test where the kernel lets nobody have one: then nothing uses it either.
func open(t *testing.T) *Ring {
	r, err := Open()
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("no io_uring here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDatasync(t *testing.T) {
	r := open(t)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 4 * len(r.done) {
		wg.Go(func() {
			f, err := os.Create(filepath.Join(dir, string(rune('a'+i))))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for range 20 {
				if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
					t.Error(err)
				}
				if err := r.Datasync(int(f.Fd())); err != nil && !errors.Is(err, ErrBusy) {
					t.Error(err)
				}
				if err := r.Sync(int(f.Fd())); err != nil && !errors.Is(err, ErrBusy) {
					t.Error(err)
				}
				if err := r.WriteBack(int(f.Fd()), 0, 4096); err != nil && !errors.Is(err, ErrBusy) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(r.mu.free) != len(r.done) {
		t.Errorf("%d of %d slots are free", len(r.mu.free), len(r.done))
	}
}

func TestErrors(t *testing.T) {
	r := open(t)
	if err := r.Datasync(1 << 20); !errors.Is(err, unix.EBADF) {
		t.Errorf("closed descriptor: %v", err)
	}
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if err := r.Datasync(p[0]); !errors.Is(err, unix.EINVAL) {
		t.Errorf("pipe: %v", err)
	}
	if len(r.mu.free) != len(r.done) {
		t.Errorf("%d of %d slots are free", len(r.mu.free), len(r.done))
	}
}

// TestBusy: with all slots taken a call is refused and the ring works on.
func TestBusy(t *testing.T) {
	r := open(t)
	free := r.mu.free
	r.mu.free = nil
	if err := r.Datasync(0); !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
	r.mu.free = free
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := r.Datasync(int(f.Fd())); err != nil {
		t.Error(err)
	}
}

func BenchmarkDatasync(b *testing.B) {
	r, err := Open()
	if err != nil {
		b.Skip(err)
	}
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	b.Run("ring", func(b *testing.B) {
		for b.Loop() {
			f.WriteAt(page, 0)
			if err := r.Datasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("call", func(b *testing.B) {
		for b.Loop() {
			f.WriteAt(page, 0)
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
	})
}
