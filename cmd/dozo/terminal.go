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

// keepTerminal gives a function that puts a terminal's settings back as they are now.
func keepTerminal(f *os.File) func() {
	settings, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return func() {}
	}
	return func() { _ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, settings) }
}
