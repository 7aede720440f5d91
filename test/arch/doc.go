// Package arch has the tests that hold the shape of the tree: which package may import which, and that every
// package says what it is. Start at imports_test.go. It has no code of its own.
package arch
