// Package bench puts load on iSCSI targets and measures it: what `dozo bench` runs.
//
// Start at Run (one load, load.go) and Compare (two sides in turn, compare.go). Histogram is where latencies go.
//
// Each session has Depth slots. A slot is one command that, when it is answered, is measured and sent again with the
// next offset, all within the session's reader goroutine: no goroutine, channel or allocation for an I/O. What slots
// share is atomic counters, and with Verify a lock for each logical unit.
//
// Latencies are in nanoseconds inside and microseconds in reports; rates are per second; MB are 10^6 bytes.
package bench
