package bench

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseSize reads sizes as people write them: 512, 4k, 4KiB, 1M, 20G, 1TiB. All units are powers of 1,024.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRightFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	unit := strings.ToLower(s[len(digits):])
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")
	shift, ok := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[unit]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n < 0 || n > (1<<62)>>shift {
		return 0, fmt.Errorf("%q is not a size like 4k, 1MiB or 20G", s)
	}
	return n << shift, nil
}

// FormatSize is the shortest exact form of n.
func FormatSize(n int64) string {
	for i, u := range []string{"", "k", "M", "G", "T"} {
		if i == 4 || n>>(10*i)%1024 != 0 || n>>(10*i) == 0 {
			return strconv.FormatInt(n>>(10*i), 10) + u
		}
	}
	return ""
}

// ParseWorkload reads KIND:SIZE:DEPTH, for instance randwrite:4k:32. KIND is read, write, randread, randwrite, or
// rw70 and randrw70 for 70 % reads.
func ParseWorkload(s string) (Workload, error) {
	bad := func() (Workload, error) {
		return Workload{}, fmt.Errorf("%q is not a load like randwrite:4k:32 or randrw70:8k:16", s)
	}
	f := strings.Split(s, ":")
	if len(f) != 3 {
		return bad()
	}
	var w Workload
	kind := f[0]
	kind, w.Random = strings.CutPrefix(kind, "rand")
	switch {
	case kind == "read":
		w.ReadPercent = 100
	case kind == "write":
	case strings.HasPrefix(kind, "rw"):
		n, err := strconv.Atoi(kind[2:])
		if err != nil || n < 0 || n > 100 {
			return bad()
		}
		w.ReadPercent = n
	default:
		return bad()
	}
	size, err := ParseSize(f[1])
	if err != nil {
		return bad()
	}
	depth, err := strconv.Atoi(f[2])
	if err != nil || depth < 1 || size < 512 {
		return bad()
	}
	w.BlockSize, w.Depth = int(size), depth
	return w, nil
}

// String is the form that ParseWorkload reads.
func (w Workload) String() string {
	kind := ""
	if w.Random {
		kind = "rand"
	}
	switch w.ReadPercent {
	case 100:
		kind += "read"
	case 0:
		kind += "write"
	default:
		kind += "rw" + strconv.Itoa(w.ReadPercent)
	}
	return fmt.Sprintf("%s:%s:%d", kind, FormatSize(int64(w.BlockSize)), w.Depth)
}
