package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCachedReadOfMemory: what lies in tmpfs is in memory, although the kernel does not say so for a read.
func TestCachedReadOfMemory(t *testing.T) {
	fd, err := unix.MemfdCreate("dozo-vfs", unix.MFD_CLOEXEC) // a file of a tmpfs, wherever one is mounted
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f, err := Default.OpenReadWrite(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := []byte("in memory")
	if _, err := f.WriteAt(want, 5000); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := f.ReadCachedAt(got, 5000); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %q, %v", got, err)
	}
	if err := f.ReadCachedAt(got, 5001); err != ErrNotCached {
		t.Fatalf("beyond the end: %v, want ErrNotCached", err)
	}
}

// Both file systems keep the same contract.
func TestContract(t *testing.T) {
	for name, fsys := range map[string]FS{"memory": NewMem(0), "real": Default, "faults": NewFaults(NewMem(0))} {
		t.Run(name, func(t *testing.T) {
			dir := "/t"
			if name == "real" {
				dir = t.TempDir() + "/t"
			}
			ok := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			ok(fsys.MkdirAll(dir + "/a/b"))
			ok(fsys.MkdirAll(dir + "/a/b"))
			if _, err := fsys.Open(dir + "/a/none"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("open: %v", err)
			}
			f, err := fsys.Create(dir + "/a/f")
			ok(err)
			if _, err := fsys.Create(dir + "/a/f"); !errors.Is(err, fs.ErrExist) {
				t.Fatalf("create twice: %v", err)
			}
			ok(f.Preallocate(0, 10000))
			if n, err := f.Size(); n != 10000 || err != nil {
				t.Fatalf("size %d, %v", n, err)
			}
			bufs := [][]byte{bytes.Repeat([]byte{1}, 5000), nil, {2, 3}, bytes.Repeat([]byte{4}, 100)}
			n, err := f.WriteVAt(bufs, 4000)
			ok(err)
			want := append(make([]byte, 4000), slices.Concat(bufs...)...)
			want = append(want, make([]byte, 10000-len(want))...)
			if n != 5102 {
				t.Fatalf("wrote %d", n)
			}
			got := make([]byte, 10000)
			_, err = f.ReadAt(got, 0)
			ok(err)
			if !bytes.Equal(got, want) {
				t.Fatal("read other bytes than were written")
			}
			if err := f.ReadCachedAt(got[:100], 3990); err == nil && !bytes.Equal(got[:100], want[3990:4090]) {
				t.Fatal("cached read of other bytes")
			}
			if n, err := f.ReadAt(got[:10], 9995); n != 5 || err != io.EOF {
				t.Fatalf("at the end: %d, %v", n, err)
			}
			many := make([][]byte, 3000) // more than one system call takes
			for i := range many {
				many[i] = []byte{byte(i), byte(i >> 8)}
			}
			_, err = f.WriteVAt(many, 9000)
			ok(err)
			got = make([]byte, 6000)
			_, err = f.ReadAt(got, 9000)
			ok(err)
			if !bytes.Equal(got, slices.Concat(many...)) {
				t.Fatal("many buffers: other bytes")
			}
			ok(f.Truncate(4100))
			ok(f.Preallocate(4100, 5000))
			got = make([]byte, 900)
			_, err = f.ReadAt(got, 4100)
			ok(err)
			if !bytes.Equal(got, make([]byte, 900)) {
				t.Fatal("what was cut off came back")
			}
			f.WriteBack(0, 4096)
			ok(f.SyncData())
			ok(fsys.SyncDir(dir + "/a"))
			ok(fsys.Rename(dir+"/a/f", dir+"/a/g"))
			names, err := fsys.List(dir + "/a")
			slices.Sort(names)
			if err != nil || !slices.Equal(names, []string{"b", "g"}) {
				t.Fatalf("list %v, %v", names, err)
			}
			ok(fsys.Remove(dir + "/a/g"))
			if _, err := f.ReadAt(got, 0); err != nil {
				t.Fatalf("an open handle of a removed file: %v", err)
			}
			ok(f.Close())
			lock, err := fsys.Lock(dir + "/lock")
			ok(err)
			if _, err := fsys.Lock(dir + "/lock"); !errors.Is(err, ErrLocked) {
				t.Fatalf("locked twice: %v", err)
			}
			ok(lock.Close())
			lock, err = fsys.Lock(dir + "/lock")
			ok(err)
			ok(lock.Close())
			if u, err := fsys.Usage(dir); err != nil || u.Total == 0 || u.Free > u.Total {
				t.Fatalf("usage %+v, %v", u, err)
			}
		})
	}
}

func content(t *testing.T, m *Mem, name string) string {
	t.Helper()
	f, err := m.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	defer f.Close()
	n, _ := f.Size()
	b := make([]byte, n)
	f.ReadAt(b, 0)
	return string(b)
}

func TestCrashDropsWhatIsNotSynced(t *testing.T) {
	m := NewMem(0)
	m.MkdirAll("/d")
	m.SyncDir("/")
	f, _ := m.Create("/d/f")
	f.WriteAt([]byte("one"), 0)
	f.SyncData()
	if got := content(t, m.CrashClone(Crash{}), "/d/f"); got != "absent" {
		t.Fatalf("a name that was not synced: %q", got)
	}
	m.SyncDir("/d")
	f.WriteAt([]byte("two and more"), 0)
	m.Rename("/d/f", "/d/g")
	c := m.CrashClone(Crash{})
	if got := content(t, c, "/d/f"); got != "one" || content(t, c, "/d/g") != "absent" {
		t.Fatalf("%q", got)
	}
	c = m.CrashClone(Crash{Percent: 100, Rand: rand.New(rand.NewPCG(1, 1))})
	if got := content(t, c, "/d/g"); got != "two and more" || content(t, c, "/d/f") != "absent" {
		t.Fatalf("all kept: %q", got)
	}
	// The clone and the original don't see each other's writes.
	g, _ := c.OpenReadWrite("/d/g")
	g.WriteAt([]byte("xxx"), 0)
	if got := content(t, m, "/d/g"); got != "two and more" {
		t.Fatalf("%q", got)
	}
	f.WriteAt([]byte("yyy"), 0)
	if got := content(t, c, "/d/g"); got != "xxx and more" {
		t.Fatalf("%q", got)
	}
}

// Unsynced sectors survive or not, each whole; synced ones always do.
func TestCrashTearsAtSectors(t *testing.T) {
	m := NewMem(0)
	f, _ := m.Create("/f")
	m.SyncDir("/")
	f.WriteAt(bytes.Repeat([]byte{1}, 8192), 0)
	f.SyncData()
	f.WriteAt(bytes.Repeat([]byte{2}, 4096), 1024)
	torn := false
	for seed := range uint64(20) {
		got := content(t, m.CrashClone(Crash{Percent: 50, Rand: rand.New(rand.NewPCG(seed, 0))}), "/f")
		old, fresh := 0, 0
		for at := 0; at < len(got); at += sectorSize {
			s := got[at : at+sectorSize]
			switch {
			case s == string(bytes.Repeat([]byte{1}, sectorSize)):
				old++
			case s == string(bytes.Repeat([]byte{2}, sectorSize)) && at >= 1024 && at < 5120:
				fresh++
			default:
				t.Fatalf("seed %d: sector at %d is neither", seed, at)
			}
		}
		torn = torn || old > 8 && fresh > 0
	}
	if !torn {
		t.Error("no write was ever torn")
	}
}

func TestSpaceRunsOut(t *testing.T) {
	m := NewMem(10 * pageSize)
	f, _ := m.Create("/f")
	if err := f.Preallocate(0, 8*pageSize); err != nil {
		t.Fatal(err)
	}
	g, _ := m.Create("/g")
	if _, err := g.WriteAt(make([]byte, 3*pageSize), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("beyond the device: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 8*pageSize), 0); err != nil {
		t.Fatalf("within what was preallocated: %v", err)
	}
	f.Truncate(pageSize)
	if _, err := g.WriteAt(make([]byte, 3*pageSize), 0); err != nil {
		t.Fatalf("after a truncation: %v", err)
	}
	m.Remove("/f")
	m.Remove("/g")
	if u, _ := m.Usage("/"); u.Free != 6*pageSize { // the handles still hold them
		t.Fatalf("free %d", u.Free)
	}
	f.Close()
	g.Close()
	if u, _ := m.Usage("/"); u.Free != 10*pageSize {
		t.Fatalf("free %d", u.Free)
	}
}

func TestFaults(t *testing.T) {
	f := NewFaults(NewMem(0))
	remove := f.Add(FailOn(OpSyncData, "f*", syscall.EIO))
	a, _ := f.Create("/f1")
	b, _ := f.Create("/g1")
	if err := a.SyncData(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("%v", err)
	}
	if err := b.SyncData(); err != nil {
		t.Fatal(err)
	}
	remove()
	if err := a.SyncData(); err != nil {
		t.Fatal(err)
	}
	f.Add(NoSpaceAfter(10))
	if _, err := a.WriteAt(make([]byte, 8), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.WriteAt(make([]byte, 8), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%v", err)
	}
	f.OnRead(FlipBit("f1", 3, 2))
	got := make([]byte, 4)
	a.ReadAt(got, 2)
	if got[1] != 4 {
		t.Fatalf("%v", got)
	}
}

// TestNextData: where a file has holes they are skipped, and nothing that was written is.
func TestNextData(t *testing.T) {
	for name, fsys := range map[string]FS{"memory": NewMem(0), "real": Default, "faults": NewFaults(NewMem(0))} {
		t.Run(name, func(t *testing.T) {
			dir := "/t"
			if name == "real" {
				dir = t.TempDir()
			} else if err := fsys.MkdirAll(dir); err != nil {
				t.Fatal(err)
			}
			f, err := fsys.Create(dir + "/f")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			const size, at = 4 << 20, 3<<20 + 5000
			if err := f.Preallocate(0, 64<<10); err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("here"), at); err != nil {
				t.Fatal(err)
			}
			for _, synced := range []bool{false, true} {
				if synced {
					if err := f.SyncData(); err != nil {
						t.Fatal(err)
					}
				}
				// A file system that doesn't tell says of each offset that something may be there.
				if got, err := f.NextData(1000); err != nil || got < 1000 || got > at {
					t.Errorf("synced %t: next data from 1000 on at %d, %v; written at %d", synced, got, err, at)
				}
				if got, err := f.NextData(at + 1); err != nil || got != at+1 {
					t.Errorf("synced %t: next data from within the written bytes at %d, %v", synced, got, err)
				}
				if got, err := f.NextData(size); err != nil || got != size {
					t.Errorf("synced %t: next data from the end on at %d, %v", synced, got, err)
				}
			}
		})
	}
}
