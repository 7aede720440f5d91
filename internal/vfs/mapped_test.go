package vfs

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// memoryFile is a file of a tmpfs, wherever one is mounted, with its descriptor as somebody else would have it.
func memoryFile(t *testing.T) (*osFile, int) {
	fd, err := unix.MemfdCreate("dozo-vfs", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	f, err := Default.OpenReadWrite(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f.(*osFile), fd
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8) ^ byte(i)
	}
	return b
}

// openMemory reads a file of memory until it is mapped.
func openMemory(t *testing.T, f *osFile, want []byte) {
	t.Helper()
	got := make([]byte, 100)
	for i := range mapAfter {
		if err := f.ReadCachedAt(got, int64(i)); err != nil || !bytes.Equal(got, want[i:i+100]) {
			t.Fatalf("read %d: other bytes, or %v", i, err)
		}
	}
	if f.window.mem.Load() == nil {
		t.Fatal("not mapped after many reads")
	}
}

// What is mapped reads as the file does: what is written later, what is cut off, and what comes behind the end.
func TestMappedRead(t *testing.T) {
	f, _ := memoryFile(t)
	want := pattern(50_000)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	openMemory(t, f, want)
	check := func(off int64, n int, end error) {
		t.Helper()
		got := make([]byte, n)
		m, err := f.ReadAt(got, off)
		if err != end || !bytes.Equal(got[:m], want[min(off, int64(len(want))):min(off+int64(n), int64(len(want)))]) {
			t.Fatalf("read of %d at %d: %d bytes, %v", n, off, m, err)
		}
	}
	copy(want[40_000:], "written when the file was mapped")
	if _, err := f.WriteAt(want[40_000:40_100], 40_000); err != nil {
		t.Fatal(err)
	}
	check(39_990, 500, nil)
	check(49_990, 10, nil)
	check(49_990, 11, io.EOF)
	more := pattern(10_000)
	if _, err := f.WriteAt(more, 50_000); err != nil {
		t.Fatal(err)
	}
	want = append(want, more...)
	check(49_000, 9000, nil) // the mapping ends within
	if err := f.Truncate(45_000); err != nil {
		t.Fatal(err)
	}
	want = want[:45_000]
	check(44_990, 20, io.EOF) // within a page that is still there
	check(44_000, 1000, nil)
	if err := f.Truncate(60_000); err != nil {
		t.Fatal(err)
	}
	want = append(want, make([]byte, 15_000)...)
	check(44_000, 10_000, nil)
	if err := f.ReadCachedAt(make([]byte, 10), math.MaxInt64-5); err == nil {
		t.Fatal("read behind the largest offset")
	}
	if _, err := f.ReadAt(make([]byte, 10), -1); err == nil {
		t.Fatal("read before the first byte")
	}
}

// A file that somebody else cuts off gives errors and no crash.
func TestMappedReadOfWhatIsGone(t *testing.T) {
	f, fd := memoryFile(t)
	want := pattern(64 << 10)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	openMemory(t, f, want)
	if err := unix.Ftruncate(fd, 4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8192)
	if n, err := f.ReadAt(got, 0); n != 4096 || err != io.EOF || !bytes.Equal(got[:n], want[:n]) {
		t.Fatalf("%d, %v", n, err)
	}
	if err := f.ReadCachedAt(got, 32<<10); err != ErrNotCached {
		t.Fatalf("%v, want ErrNotCached", err)
	}
	if n, err := f.ReadAt(got[:4096], 0); n != 4096 || err != nil {
		t.Fatalf("what is there: %d, %v", n, err)
	}
}

// TestMappedReadOfDisk: a file on a disk is read from its mapping while the kernel has said that it is in memory, and only as far as that.
func TestMappedReadOfDisk(t *testing.T) {
	file, err := Default.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	f := file.(*osFile)
	defer f.Close()
	f.memory.Do(func() {}) // a disk, whatever it is
	want := pattern(1 << 20)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	read := func(off int64) {
		t.Helper()
		got := make([]byte, 5000)
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, want[off:off+5000]) {
			t.Fatalf("at %d: other bytes, or %v", off, err)
		}
	}
	now := int64(0)
	ask := func(n int32) bool { return f.ask(now, 500_000, n) }
	yes := false
	for range 10 { // what was just written may have been put out of memory again
		now += 2 * int64(windowTime)
		if ask(askAfter) {
			t.Fatal("the read that begins to count is enough")
		}
		now += int64(windowTime) / 2
		if ask(askAfter - 1) {
			t.Fatal("asked too early")
		}
		if yes = ask(1); yes || f.window.state.Load() == windowNever {
			break
		}
		if _, err := f.pread(make([]byte, len(want)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if !yes {
		// A kernel before 6.5 does not say what is in memory: nothing is read from the mapping, then or later.
		if f.window.state.Load() != windowNever {
			t.Fatal("not in memory, though it was read just now")
		}
		f.window.until.Store(math.MaxInt64)
		if f.readMapped(make([]byte, 100), 0) {
			t.Fatal("read from the mapping of a file that may not be in memory")
		}
		read(0)
		return
	}
	if w := &f.window; w.until.Load() != now+int64(windowTime) || w.sure.Load() != 500_000 {
		t.Fatalf("sure up to %d until %d", w.sure.Load(), w.until.Load())
	}
	f.window.until.Store(math.MaxInt64)
	read(0)
	read(495_000)
	read(498_000) // beyond what was asked for
	if got := make([]byte, 5000); f.readMapped(got, 498_000) {
		t.Fatal("read from the mapping what the kernel was not asked for")
	}
	f.window.until.Store(0)
	read(3)
	if ask(askAfter) {
		t.Fatal("asked twice within a second")
	}
}

// Many readers at once, one of which maps the file, and a writer behind them.
func TestMappedReadersAtOnce(t *testing.T) {
	f, _ := memoryFile(t)
	want := pattern(256 << 10)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			got := make([]byte, 4200)
			for i := range 200 {
				off := (g*7919 + i*4099) % (250 << 10)
				if _, err := f.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+4200]) {
					t.Errorf("at %d: other bytes, or %v", off, err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 50 {
			if _, err := f.WriteAt(want[:5000], int64(256<<10+i*5000)); err != nil {
				t.Error(err)
			}
		}
		if err := f.Truncate(256 << 10); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
}

// BenchmarkRead compares reads from a mapping with reads by system call, of records of 4 KiB at random places of 512 MiB.
func BenchmarkRead(b *testing.B) {
	fd, err := unix.MemfdCreate("dozo-vfs", unix.MFD_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	file, err := Default.OpenReadWrite(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		b.Fatal(err)
	}
	f := file.(*osFile)
	defer f.Close()
	chunk := pattern(1 << 20)
	for i := range int64(512) {
		if _, err := f.WriteAt(chunk, i<<20); err != nil {
			b.Fatal(err)
		}
	}
	const record = 4224
	got := make([]byte, 64*record)
	for name, read := range map[string]func(p []byte, off int64) (int, error){"mapped": f.ReadAt, "pread": f.pread} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(record)
			b.ReportAllocs()
			for i := range b.N {
				off := int64(i) * 7919 % (512<<20/record - 1) * record
				if _, err := read(got[i%64*record:][:record], off); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
