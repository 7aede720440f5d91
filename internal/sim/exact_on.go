//go:build exact

package sim

import _ "unsafe" // for go:linkname

// seedRuntime has the runtime draw from a seed for whoever runs in a bubble. It is only there in a runtime that
// package batch has patched.
//
//go:linkname seedRuntime runtime.dozoSeed
func seedRuntime(seed uint64)

// Exact reports that a seed replays exactly in this build.
const Exact = true
