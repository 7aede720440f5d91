package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// ttyName reports whether a character device is a terminal: only those have terminal settings.
func ttyName(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
