package router

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"dozo/internal/lab/wan"
)

// Config is what a router is started with.
type Config struct {
	Sites []SiteConfig `json:"sites"`
	// Changes are applied before the first packet.
	Changes []Change `json:"changes"`
	// MemoryBytes is for packets under way; 0: memoryDefault.
	MemoryBytes int `json:"memory_bytes,omitempty"`
	// Seed is of losses, jitter and reordering.
	Seed uint64 `json:"seed"`
}

// SiteConfig is one site.
type SiteConfig struct {
	Name string `json:"name"`
	// NetNS is the path of its network namespace, Device the name of the TUN device to make there.
	NetNS  string `json:"netns"`
	Device string `json:"device"`
	// Prefixes are routed to it: IPv4 of any length, IPv6 of 64 bits at most.
	Prefixes []netip.Prefix `json:"prefixes"`
}

// Patch changes some settings of a line or path; what is nil stays. Times are nanoseconds, rates bits a second
// (0: no limit), buffers bytes (0: automatic), loss and reorder 0 to 1.
type Patch struct {
	Rate      *wan.Rate      `json:"rate,omitempty"`
	Buffer    *int           `json:"buffer,omitempty"`
	Delay     *time.Duration `json:"delay,omitempty"`
	Jitter    *time.Duration `json:"jitter,omitempty"`
	Loss      *float64       `json:"loss,omitempty"`
	Reorder   *float64       `json:"reorder,omitempty"`
	ReorderBy *time.Duration `json:"reorder_by,omitempty"`
	Cut       *bool          `json:"cut,omitempty"`
}

// Kinds of Change.
const (
	KindPath = "path" // from From to To
	KindUp   = "up"   // what Site sends
	KindDown = "down" // what Site gets
)

// Change says what becomes different, and where.
type Change struct {
	Kind  string `json:"kind"`
	From  string `json:"from,omitempty"`
	To    string `json:"to,omitempty"`
	Site  string `json:"site,omitempty"`
	Patch Patch  `json:"patch"`
}

// Bounds of settings: what lies outside is a slip of the pen.
const (
	delayMax  = time.Minute
	bufferMax = 1 << 30
	rateMin   = 1000
	rateMax   = 100e9
)

// ErrSetting is a setting that can not be.
var ErrSetting = errors.New("impossible setting")

func (p Patch) line(l wan.Line) (wan.Line, error) {
	if p.Rate != nil {
		if *p.Rate != 0 && (*p.Rate < rateMin || *p.Rate > rateMax) {
			return l, fmt.Errorf("%w: rate of %d bit/s: want 1 kbit to 100 Gbit, or 0 for none", ErrSetting, *p.Rate)
		}
		l.Rate = *p.Rate
	}
	if p.Buffer != nil {
		// A full-sized packet must fit, or none ever passes.
		if *p.Buffer != 0 && (*p.Buffer < mtu || *p.Buffer > bufferMax) {
			return l, fmt.Errorf("%w: buffer of %d bytes: want %d to %d, or 0 for an automatic one", ErrSetting, *p.Buffer, mtu, bufferMax)
		}
		l.Buffer = *p.Buffer
	}
	return l, nil
}

func (p Patch) path(to wan.Path) (wan.Path, error) {
	var err error
	if to.Line, err = p.line(to.Line); err != nil {
		return to, err
	}
	for _, f := range []struct {
		name string
		from *time.Duration
		to   *time.Duration
	}{{"delay", p.Delay, &to.Delay}, {"jitter", p.Jitter, &to.Jitter}, {"reorder-by", p.ReorderBy, &to.ReorderBy}} {
		if f.from == nil {
			continue
		}
		if *f.from < 0 || *f.from > delayMax {
			return to, fmt.Errorf("%w: %s of %v: want 0 to %v", ErrSetting, f.name, *f.from, delayMax)
		}
		*f.to = *f.from
	}
	for _, f := range []struct {
		name     string
		from, to *float64
	}{{"loss", p.Loss, &to.Loss}, {"reorder", p.Reorder, &to.Reorder}} {
		if f.from == nil {
			continue
		}
		if !(*f.from >= 0 && *f.from <= 1) {
			return to, fmt.Errorf("%w: %s of %v: want 0 to 1", ErrSetting, f.name, *f.from)
		}
		*f.to = *f.from
	}
	if p.Cut != nil {
		to.Cut = *p.Cut
	}
	return to, nil
}

// pathOnly reports that the patch has what an access link does not.
func (p Patch) pathOnly() bool {
	return p.Delay != nil || p.Jitter != nil || p.Loss != nil || p.Reorder != nil || p.ReorderBy != nil || p.Cut != nil
}

// Operations of a Request.
const (
	OpApply = "apply" // carry out Changes: all, or none if one is wrong
	OpState = "state"
	OpStop  = "stop" // end the process
)

// Request is one line from a client, Response the line that answers it.
type Request struct {
	Op      string   `json:"op"`
	Changes []Change `json:"changes,omitempty"`
}

// Response is the answer to a Request.
type Response struct {
	Error string `json:"error,omitempty"`
	// Setting: the error is an ErrSetting.
	Setting bool   `json:"setting,omitempty"`
	State   *State `json:"state,omitempty"`
}

// State is all settings and counts.
type State struct {
	PID    int           `json:"pid"`
	Up     time.Duration `json:"up_ns"`
	Counts Counts        `json:"counts"`
	Paths  []PathState   `json:"paths"`
	Access []AccessState `json:"access"`
}

// Counts say how well the router itself works.
type Counts struct {
	// Delivered are runs of segments written to a device, Late those more than LateAfter after they were due, LateMax
	// the most by which one was.
	Delivered uint64        `json:"delivered"`
	Late      uint64        `json:"late"`
	LateMax   time.Duration `json:"late_max_ns"`
	// Stalls are times that the loop did not look at its devices for longer than LateAfter, StallMax the longest:
	// packets that came meanwhile were sent later by as much, which Late can not see.
	Stalls   uint64        `json:"stalls"`
	StallMax time.Duration `json:"stall_max_ns"`
	// Overflow are packets dropped because the router's memory was full, NoRoute those to nobody (multicast too),
	// Malformed those that could not be understood, WriteErrors those that the kernel did not take.
	Overflow    uint64 `json:"overflow"`
	NoRoute     uint64 `json:"no_route"`
	Malformed   uint64 `json:"malformed"`
	WriteErrors uint64 `json:"write_errors"`
	// RealTime: the process has real-time priority.
	RealTime bool `json:"real_time"`
	// BlocksFree and Blocks are the memory for packets, in 4 KiB.
	BlocksFree int `json:"blocks_free"`
	Blocks     int `json:"blocks"`
}

// LateAfter is the accuracy that a lab promises.
const LateAfter = 300 * time.Microsecond

// PathState is one direction between two sites.
type PathState struct {
	From     string         `json:"from"`
	To       string         `json:"to"`
	Settings wan.Path       `json:"settings"`
	Buffer   int            `json:"buffer"` // in force, where the setting says automatic
	Stats    wan.PathStats  `json:"stats"`
	Queue    wan.QueueStats `json:"queue"`
}

// AccessState is a site's access link.
type AccessState struct {
	Site      string         `json:"site"`
	Up        wan.Line       `json:"up"`
	Down      wan.Line       `json:"down"`
	UpQueue   wan.QueueStats `json:"up_queue"`
	DownQueue wan.QueueStats `json:"down_queue"`
}
