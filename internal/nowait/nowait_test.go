package nowait

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWritesArriveAndNeverWait(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	big := bytes.Repeat([]byte("0123456789abcdef"), SizeMax/8)
	var want []byte
	for _, pieces := range [][][]byte{{[]byte("a")}, {[]byte("bc"), nil, []byte("def")}, {big[:100], big[100:5000]}} {
		n, err := Writev(fds[0], pieces)
		if all := bytes.Join(pieces, nil); err != nil || n != len(all) {
			t.Fatalf("Writev: %d of %d, %v", n, len(all), err)
		}
		want = append(want, bytes.Join(pieces, nil)...)
	}
	if n, err := Write(fds[0], []byte("end")); n != 3 || err != nil {
		t.Fatalf("Write: %d, %v", n, err)
	}
	want = append(want, "end"...)
	got := make([]byte, len(want)+1)
	if n, err := unix.Read(fds[1], got); err != nil || !bytes.Equal(got[:n], want) {
		t.Fatalf("read %d bytes, %v; want %d", n, err, len(want))
	}
	if n, err := Read(fds[1], got); n != -1 || err != unix.EAGAIN {
		t.Errorf("an empty socket gave %d, %v, want EAGAIN", n, err)
	}
	if _, err := Write(fds[0], []byte("more")); err != nil {
		t.Fatal(err)
	}
	if n, err := Read(fds[1], got); err != nil || string(got[:n]) != "more" {
		t.Errorf("Read: %d, %v", n, err)
	}
	for range 10000 {
		if _, err = Write(fds[0], big[:SizeMax]); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a full socket gave %v, want EAGAIN", err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = Writev(fds[0], [][]byte{big[:10], big[:10]}) }); n > 1 {
		t.Errorf("%v allocations in a Writev", n)
	}
}
