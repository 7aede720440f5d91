//go:build !exact

package sim

// seedRuntime does nothing: the runtime's own choices stay random.
func seedRuntime(uint64) {}

// Exact reports that a seed replays exactly in this build.
const Exact = false
