// Command dozo is the one binary: node, control, and the command line for people and scripts.
//
// Start at newRoot, which has the tree of commands; each is in a file of its own, as an options struct, the
// flags that fill it, and a run method that knows nothing of flags. What they do is done by internal/...;
// wire.go is where the commands that run a node are connected to it. Exit codes: exit.go.
package main
