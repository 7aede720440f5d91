package guest

import (
	"fmt"
	"io"
)

// cpioWriter writes an archive that the kernel takes as its first file system: cpio in its "newc" form (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst).
type cpioWriter struct {
	w     io.Writer
	inode int
	err   error
}

const (
	modeDir  = 0o040755
	modeFile = 0o100755
)

func (c *cpioWriter) dir(name string) { c.entry(name, modeDir, 0, nil) }

// file copies exactly size bytes.
func (c *cpioWriter) file(name string, size int64, from io.Reader) {
	if size > 1<<32-1 {
		c.err = fmt.Errorf("%s has %d bytes; the format takes 4 GiB", name, size)
		return
	}
	c.entry(name, modeFile, size, from)
}

func (c *cpioWriter) entry(name string, mode int, size int64, from io.Reader) {
	if c.err != nil {
		return
	}
	c.inode++
	// magic, inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name with its
	// zero, checksum (only of another form).
	_, c.err = fmt.Fprintf(c.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0)
	c.write(name + "\x00")
	c.pad(110 + len(name) + 1)
	if size > 0 && c.err == nil {
		_, c.err = io.CopyN(c.w, from, size)
	}
	c.pad(int(size % 4))
}

func (c *cpioWriter) write(s string) {
	if c.err == nil {
		_, c.err = io.WriteString(c.w, s)
	}
}

// pad fills to a multiple of 4.
func (c *cpioWriter) pad(n int) { c.write("\x00\x00\x00"[:(4-n%4)%4]) }

func (c *cpioWriter) close() error {
	c.inode = -1
	c.entry("TRAILER!!!", 0, 0, nil)
	return c.err
}
