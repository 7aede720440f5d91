package bench

import (
	"fmt"
	"strconv"
	"strings"

	"dozo/internal/size"
)

// blockSizeMax bounds one I/O, and with the depth the buffers of a run.
const blockSizeMax = 16 << 20

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
	block, err := size.Parse(f[1])
	if err != nil {
		return bad()
	}
	depth, err := strconv.Atoi(f[2])
	if err != nil || depth < 1 || block < 512 || block > blockSizeMax {
		return bad()
	}
	w.BlockSize, w.Depth = int(block), depth
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
	return fmt.Sprintf("%s:%s:%d", kind, size.Exact(uint64(w.BlockSize)), w.Depth)
}
