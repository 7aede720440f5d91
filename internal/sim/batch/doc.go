// Command batch runs many seeds of the simulator: it builds the tests of package sim with a runtime whose choices come
// from the seed (overlay.go), runs each seed in a process of its own, a few at a time, and sums up what they say. `make sim` calls it.
//
// The standard library that is installed stays as it is: the go command takes patched copies of a few of its files from a
// directory of their own (-overlay). A Go release in which those files read differently is refused, loudly, before
// anything is built.
package main
