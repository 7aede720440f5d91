package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"dozo/internal/lab/router"
	"dozo/internal/lab/wan"
)

// Status is what a lab looks like now. Durations are milliseconds, shares percent, rates as ParseRate takes
// them and in bits a second (0: no limit).
type Status struct {
	Name   string       `json:"name"`
	Router RouterStatus `json:"router"`
	Sites  []SiteStatus `json:"sites"`
	Paths  []PathStatus `json:"paths"`
	Nodes  []NodeStatus `json:"nodes"`
}

// RouterStatus is the router's process.
type RouterStatus struct {
	Running  bool    `json:"running"`
	PID      int     `json:"pid"`
	UpS      float64 `json:"up_s"`
	RealTime bool    `json:"real_time"`
	Log      string  `json:"log"`
}

// LineStatus is an access link in one direction.
type LineStatus struct {
	Rate        string   `json:"rate"`
	RateBits    wan.Rate `json:"rate_bits_per_s"`
	BufferBytes int      `json:"buffer_bytes"`
	BufferAuto  bool     `json:"buffer_auto"`
}

// SiteStatus is a site, its access link, and what runs there.
type SiteStatus struct {
	Name      string       `json:"name"`
	NetNS     string       `json:"netns"`
	Addresses []netip.Addr `json:"addresses"`
	Up        LineStatus   `json:"up"`
	Down      LineStatus   `json:"down"`
	Processes []Process    `json:"processes"`
}

// PathStatus is one direction between two sites.
type PathStatus struct {
	From string `json:"from"`
	To   string `json:"to"`
	LineStatus
	DelayMs        float64 `json:"delay_ms"`
	JitterMs       float64 `json:"jitter_ms"`
	LossPercent    float64 `json:"loss_percent"`
	ReorderPercent float64 `json:"reorder_percent"`
	ReorderByMs    float64 `json:"reorder_by_ms"`
	Cut            bool    `json:"cut"`
}

// NodeStatus is a dozo node.
type NodeStatus struct {
	Name    string     `json:"name"`
	Site    string     `json:"site"`
	Address netip.Addr `json:"address"`
	PID     int        `json:"pid"` // 0: it does not run
	Log     string     `json:"log"`
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func percent(share float64) float64 { return share * 100 }

func lineStatus(l wan.Line, delay time.Duration) LineStatus {
	s := LineStatus{Rate: FormatRate(l.Rate), RateBits: l.Rate, BufferBytes: l.Buffer, BufferAuto: l.Buffer == 0}
	if s.BufferAuto {
		s.BufferBytes = wan.AutoBuffer(l.Rate, delay)
	}
	return s
}

// Status describes the lab; also one whose router does not run.
func (l *Lab) Status() (*Status, error) {
	left, err := find(l.Name)
	if err != nil {
		return nil, err
	}
	st := &Status{Name: l.Name, Paths: []PathStatus{}, Nodes: l.nodeStatus(left.procs)}
	st.Router.Log = stateDir(l.Name) + "/" + routerLog
	state, err := l.State()
	switch {
	case errors.Is(err, ErrNoRouter):
		state = &router.State{Access: make([]router.AccessState, len(l.Sites))}
	case err != nil:
		return nil, err
	default:
		st.Router.Running, st.Router.PID, st.Router.UpS, st.Router.RealTime = true, state.PID, state.Up.Seconds(), state.Counts.RealTime
	}
	for i, s := range l.Sites {
		a := state.Access[i]
		ss := SiteStatus{Name: s.Name, NetNS: s.NetNS, Addresses: s.Addresses, Processes: []Process{}, Up: lineStatus(a.Up, 0), Down: lineStatus(a.Down, 0)}
		for _, p := range left.procs {
			if p.Site == s.Name {
				ss.Processes = append(ss.Processes, p)
			}
		}
		st.Sites = append(st.Sites, ss)
	}
	for _, p := range state.Paths {
		c := p.Settings
		st.Paths = append(st.Paths, PathStatus{
			From: p.From, To: p.To, LineStatus: lineStatus(c.Line, c.Delay), DelayMs: ms(c.Delay), JitterMs: ms(c.Jitter),
			LossPercent: percent(c.Loss), ReorderPercent: percent(c.Reorder), ReorderByMs: ms(c.ReorderBy), Cut: c.Cut,
		})
	}
	return st, nil
}

// Stat is what came of the packets since the lab was made. Packets are segments of 1,500 bytes at most, also
// where the kernel gave them to the router as one.
type Stat struct {
	Name   string       `json:"name"`
	UpS    float64      `json:"up_s"`
	Router RouterStat   `json:"router"`
	Paths  []PathStat   `json:"paths"`
	Access []AccessStat `json:"access"`
}

// RouterStat says how exact the router was. Written are runs of packets that left together, Late those more than 0.3 ms
// after they were due; Stalls the times that the router did not look for new packets for as long.
type RouterStat struct {
	Written     uint64  `json:"written"`
	Late        uint64  `json:"late"`
	LateMaxMs   float64 `json:"late_max_ms"`
	Stalls      uint64  `json:"stalls"`
	StallMaxMs  float64 `json:"stall_max_ms"`
	Overflow    uint64  `json:"overflow"`
	NoRoute     uint64  `json:"no_route"`
	Malformed   uint64  `json:"malformed"`
	WriteErrors uint64  `json:"write_errors"`
	MemoryUsed  int     `json:"memory_used_bytes"`
	Memory      int     `json:"memory_bytes"`
}

// QueueStat is a line and its buffer.
type QueueStat struct {
	Bytes       int    `json:"bytes"`
	BytesMax    int    `json:"bytes_max"`
	Passed      uint64 `json:"passed"`
	Dropped     uint64 `json:"dropped"`
	PassedBytes uint64 `json:"passed_bytes"`
}

// PathStat is one direction between two sites. DroppedQueue counts full buffers of access links, too.
type PathStat struct {
	From           string    `json:"from"`
	To             string    `json:"to"`
	Sent           uint64    `json:"sent"`
	Delivered      uint64    `json:"delivered"`
	DeliveredBytes uint64    `json:"delivered_bytes"`
	DroppedQueue   uint64    `json:"dropped_queue"`
	Lost           uint64    `json:"lost"`
	DroppedCut     uint64    `json:"dropped_cut"`
	Reordered      uint64    `json:"reordered"`
	Queue          QueueStat `json:"queue"`
}

// AccessStat is a site's access link.
type AccessStat struct {
	Site string    `json:"site"`
	Up   QueueStat `json:"up"`
	Down QueueStat `json:"down"`
}

// Stat asks the router for its counts.
func (l *Lab) Stat() (*Stat, error) {
	state, err := l.State()
	if err != nil {
		return nil, err
	}
	c := state.Counts
	st := &Stat{Name: l.Name, UpS: state.Up.Seconds(), Paths: []PathStat{}, Router: RouterStat{
		Written: c.Delivered, Late: c.Late, LateMaxMs: ms(c.LateMax), Stalls: c.Stalls, StallMaxMs: ms(c.StallMax),
		Overflow: c.Overflow, NoRoute: c.NoRoute, Malformed: c.Malformed, WriteErrors: c.WriteErrors,
		MemoryUsed: (c.Blocks - c.BlocksFree) * router.BlockSize, Memory: c.Blocks * router.BlockSize,
	}}
	for _, p := range state.Paths {
		s := p.Stats
		st.Paths = append(st.Paths, PathStat{
			From: p.From, To: p.To, Sent: s.Sent, Delivered: s.Delivered, DeliveredBytes: s.DeliveredBytes, DroppedQueue: s.DroppedQueue,
			Lost: s.Lost, DroppedCut: s.DroppedCut, Reordered: s.Reordered, Queue: QueueStat(p.Queue),
		})
	}
	for _, a := range state.Access {
		st.Access = append(st.Access, AccessStat{Site: a.Site, Up: QueueStat(a.UpQueue), Down: QueueStat(a.DownQueue)})
	}
	return st, nil
}

// AddressRange writes a site's addresses briefly: the first of each family, and how many there are.
func AddressRange(list []netip.Addr) string {
	half := len(list) / 2
	if half == 0 {
		return ""
	}
	var out []string
	for _, part := range [][]netip.Addr{list[:half], list[half:]} {
		s := part[0].String()
		if half > 1 {
			s = fmt.Sprintf("%s (%d)", s, half)
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}
