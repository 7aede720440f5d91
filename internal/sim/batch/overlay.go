package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// patch replaces a text of the standard library that must be there exactly once.
type patch struct{ old, new string }

// patches make the runtime deterministic for goroutines in a bubble of synctest, of which one runs at a time
// (GOMAXPROCS=1): what select, maps, timers of one moment and math/rand draw comes from one seeded stream; nobody is
// preempted; and nothing depends on how long something really took.
var patches = map[string][]patch{
	"runtime/rand.go": {
		{"func rand() uint64 {\n", "func rand() uint64 {\n\tif getg().bubble != nil {\n\t\treturn dozoRand()\n\t}\n"},
		{"// rand32 is uint32(rand()), called from compiler-generated code.\n", `// dozoState is the state of the stream that goroutines in a bubble draw from.
var dozoState uint64

// dozoRand is splitmix64.
//
//go:nosplit
func dozoRand() uint64 {
	dozoState += 0x9e3779b97f4a7c15
	z := dozoState
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// dozoRandn is a number below n.
//
//go:nosplit
func dozoRandn(n uint32) uint32 {
	return uint32((uint64(uint32(dozoRand())) * uint64(n)) >> 32)
}

// dozoSeed begins the stream of a seed.
//
//go:linkname dozoSeed
func dozoSeed(seed uint64) {
	dozoState = seed
	getg().m.p.ptr().schedtick = 0
}

// rand32 is uint32(rand()), called from compiler-generated code.
`},
	},
	"runtime/select.go": {
		{"\t\tj := cheaprandn(uint32(norder + 1))\n", "\t\tj := uint32(0)\n\t\tif getg().bubble != nil {\n\t\t\tj = dozoRandn(uint32(norder + 1))\n\t\t} else {\n\t\t\tj = cheaprandn(uint32(norder + 1))\n\t\t}\n"},
	},
	"runtime/time.go": {
		{"\t\t\tt.rand = cheaprand()\n", "\t\t\tt.rand = uint32(dozoRand())\n"},
	},
	"runtime/alg.go": {
		{"\t\thashkey[i] = uintptr(bootstrapRand())\n", "\t\thashkey[i] = uintptr(0x9e3779b97f4a7c15*uint64(i+1) | 1)\n"},
		{"\t\tkey[i] = bootstrapRand()\n", "\t\tkey[i] = 0x9e3779b97f4a7c15 * uint64(i+1)\n"},
	},
	"runtime/proc.go": {
		{"func preemptone(pp *p) bool {\n", "func preemptone(pp *p) bool {\n\tif pp != nil {\n\t\treturn false\n\t}\n"},
	},
	// Goroutines begin with a stack that most need: growing it was a tenth of a seed's time.
	"runtime/stack.go": {
		{"var startingStackSize uint32 = fixedStack\n", "var startingStackSize uint32 = 8 * fixedStack / 2\n"},
		{"\t\tstartingStackSize = fixedStack\n", "\t\tstartingStackSize = 8 * fixedStack / 2\n"},
		{"\tstartingStackSize = uint32(round2(int32(avg)))\n", "\t_ = avg\n"},
	},
	// A seed's memory is never used twice; with large pages the kernel has less to do for it. Those that are set aside
	// (vm.nr_hugepages) come first: a virtual machine's other pages may have gone back to its host, which takes up to 40 times as long.
	"runtime/mem_linux.go": {
		{"\tp, err := mmap(v, n, _PROT_READ|_PROT_WRITE, _MAP_ANON|_MAP_FIXED|_MAP_PRIVATE, -1, 0)\n\tif err == _ENOMEM {\n\t\tthrow(\"runtime: out of memory\")\n\t}\n\tif p != v",
			"\tvar p unsafe.Pointer\n\terr := _ENOMEM\n\tif (uintptr(v)|n)&(2<<20-1) == 0 {\n\t\tp, err = mmap(v, n, _PROT_READ|_PROT_WRITE, _MAP_ANON|_MAP_FIXED|_MAP_PRIVATE|0x40000, -1, 0)\n\t}\n" +
				"\tif err != 0 {\n\t\tp, err = mmap(v, n, _PROT_READ|_PROT_WRITE, _MAP_ANON|_MAP_FIXED|_MAP_PRIVATE, -1, 0)\n\t}\n\tif err == _ENOMEM {\n\t\tthrow(\"runtime: out of memory\")\n\t}\n\tif p != v"},
		{"\tif debug.disablethp != 0 {\n\t\tsysNoHugePageOS(v, n)\n\t}\n}\n", "\tif debug.disablethp != 0 {\n\t\tsysNoHugePageOS(v, n)\n\t} else {\n\t\tsysHugePageOS(v, n)\n\t}\n}\n"},
	},
	"internal/sync/mutex.go": {
		{"\tstarvationThresholdNs = 1e6\n", "\tstarvationThresholdNs = 1e18\n"},
	},
}

// writeOverlay writes the patched files and the list of them for the go command, and gives the list's name.
func writeOverlay(goroot, dir string) (string, error) {
	replace := map[string]string{}
	for name, list := range patches {
		from := filepath.Join(goroot, "src", filepath.FromSlash(name))
		b, err := os.ReadFile(from)
		if err != nil {
			return "", fmt.Errorf("overlay: %w", err)
		}
		text := string(b)
		for _, p := range list {
			if n := strings.Count(text, p.old); n != 1 {
				return "", fmt.Errorf("overlay: %s has %d times the text %q, wanted once: this Go release is not known", from, n, p.old)
			}
			text = strings.Replace(text, p.old, p.new, 1)
		}
		to := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("overlay: %w", err)
		}
		replace[from] = to
	}
	list := filepath.Join(dir, "overlay.json")
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(list, b, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("overlay: %w", err)
	}
	return list, nil
}
