// Package agent is what runs inside a guest: its init, and the server that carries out commands for the host. It is
// part of the dozo program, which the host puts into the guest's first file system (dozo lab guest agent).
//
// Start at Init, which makes the guest usable and then calls Serve. Stages of a command: the host's Exec frame, and one
// Stdin frame or more; the process; Stdout and Stderr frames as it writes; one Exit frame.
//
// Serve's goroutine reads frames and owns the table of commands; each command has one goroutine for each of its outputs
// and one that waits for it. All write whole frames under one lock; a host that does not read makes them wait,
// and the commands with them.
//
// Always true: every Exec gets exactly one Exit, after all that the command had written when it ended; what processes
// that it left behind write later is dropped; ended processes are reaped, whoever's children they were. The bytes are
// described at Frame.
package agent
