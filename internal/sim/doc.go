// Package sim runs whole clusters in one process, from a seed, on virtual time, with faults, and checks what must never
// break: what clients saw is linearizable, what was acknowledged or flushed is there, there is one history, every site's
// copy is a prefix of it, and once the faults stop all copies are the same again.
//
// The code under test is the product's own: core.Store on in-memory disks, access.Server with its owners, control.Client
// on an in-memory control store. Simulated are the network between nodes (net.go: every message is encoded and decoded,
// delayed, held up by partitions, lost with its connection), processes that are killed or paused (proc.go), disks that
// lose what was not synced, fill up or rot (fault.go), and clients with several paths, which repeat what was not answered
// (client.go). Start at Run (run.go). What is checked stands in check.go (what clients saw) and history.go (what stores
// hold).
//
// A world is one bubble of testing/synctest: time passes when everything waits. One goroutine, World.drive, makes all
// deliveries and faults happen, one at a time; the others are the product's. Delays are a function of the seed, the
// connection and the number of the message on it, so they do not depend on the order in which goroutines run. That order
// does depend on the runtime: select, maps and timers of one moment draw random numbers there. Built by `make sim`, the
// runtime draws those from the seed too (tools/sim), and a seed replays exactly; built by plain `go test`, nearly.
//
// Nothing of the product imports this package. Times are virtual durations since the world's beginning.
package sim
