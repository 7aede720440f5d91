//go:build e2e

package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	imageBytes     = 1 << 30
	partitionStart = 1 << 20
)

// makeImage makes a partitioned disk with an ext4 file system that has a tree of files in it, as qcow2: GOROOT's
// sources in the short form, a Debian root made by debootstrap in the long one. Then it makes a second image that
// differs from the first at places all over it.
func makeImage(t *testing.T, s *system) (first, second string) {
	t.Helper()
	dir := filepath.Join(s.dir, "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(strings.TrimSpace(s.must(exec.Command("go", "env", "GOROOT"))), "src")
	if long() {
		need(t, "debootstrap")
		tree = filepath.Join(dir, "root")
		s.must(exec.Command("debootstrap", "--variant=minbase", "bookworm", tree))
	}
	raw := filepath.Join(dir, "disk.raw")
	f, err := os.Create(raw)
	if err == nil {
		err = errors.Join(f.Truncate(imageBytes), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	table := exec.Command("sfdisk", "--quiet", raw)
	table.Stdin = strings.NewReader("label: gpt\nstart=1MiB, type=linux\n")
	s.must(table)
	// The backup of the partition table needs the last 33 sectors.
	s.must(exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "-E", "offset=1048576", raw, "1022M"))
	first, second = filepath.Join(dir, "first.qcow2"), filepath.Join(dir, "second.qcow2")
	s.must(exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, first))
	s.must(exec.Command("cp", "--sparse=always", first, second))
	change := []string{"-f", "qcow2"}
	for at := 2; at < 1000; at += 37 {
		change = append(change, "-c", "write -q -P "+string(rune('1'+at%9))+" "+itoa(at)+"M 300k", "-c", "discard -q "+itoa(at+1)+"M 64k")
	}
	s.must(exec.Command("qemu-io", append(change, second)...))
	for _, f := range []string{raw, filepath.Join(dir, "root")} {
		if err := os.RemoveAll(f); err != nil {
			t.Fatal(err)
		}
	}
	return first, second
}

func compare(image, url string) *exec.Cmd {
	return exec.Command("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, url)
}

func write(image, url string) *exec.Cmd {
	return exec.Command("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", image, url)
}

// identical compares an image with the volume through several access servers at once.
func identical(t *testing.T, when, image string, urls ...string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, u := range urls {
		wg.Go(func() {
			if _, err := run(compare(image, u)); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// TestImage writes a virtual machine's image to a volume by qemu-img at site 1 and reads it at sites 2 and 3; looks
// for all of it in the files of sites 2 and 3; goes on writing and reading while a node of site 1 that is not the
// owner is killed; and reads it again after every process was killed.
func TestImage(t *testing.T) {
	need(t, "qemu-img", "qemu-io", "mke2fs", "sfdisk", "cp")
	s := start(t, 3, 2)
	first, second := makeImage(t, s)
	iqn := s.create("image", itoa(imageBytes))

	begun := time.Now()
	s.must(write(first, s.url(1, 1, iqn)))
	t.Logf("written after %v", time.Since(begun).Round(time.Millisecond))
	identical(t, "after writing", first, s.url(2, 2, iqn), s.url(3, 1, iqn))

	begun = time.Now()
	s.dozo("volume", "wait", "image", "--replicated", "--timeout", "600s")
	t.Logf("sites 2 and 3 hold it after another %v", time.Since(begun).Round(time.Millisecond))
	everythingThere(t, s, "image", true)

	owner := s.show("image").Volume.Owner
	victim, at := "s1n2", 1
	if owner == "s1n2" {
		victim, at = "s1n1", 2
	}
	t.Logf("owner %s, killing %s", owner, victim)
	writer := s.background(write(second, s.url(1, at, iqn)))
	reader := s.background(exec.Command("qemu-img", "bench", "-f", "raw", "-c", "3000", "-d", "8", "-s", "65536", s.url(2, 2, iqn)))
	time.Sleep(300 * time.Millisecond) // somewhere in the middle; any place is as good
	if !writer.running() {
		t.Log("the writer was faster than the kill")
	}
	s.kill(victim)
	writer.wait(t, 2*time.Minute)
	reader.wait(t, 2*time.Minute)
	identical(t, "after "+victim+" was killed", second, s.url(1, at, iqn), s.url(2, 2, iqn), s.url(3, 1, iqn))

	s.kill(s.names()...)
	begun = time.Now()
	s.up()
	t.Logf("all processes were killed; started again in %v", time.Since(begun).Round(time.Millisecond))
	identical(t, "after all processes were killed", second, s.url(1, 1, iqn), s.url(1, 2, iqn), s.url(2, 2, iqn), s.url(3, 1, iqn))
	s.dozo("volume", "wait", "image", "--replicated", "--timeout", "600s")
	everythingThere(t, s, "image", false)
}
