package wan

import "time"

// runTime is how much of a line's time a run may stand for when it leaves: runs are handed on at the moment of their
// last byte, so the first is late by that much at most. Smaller runs cost more events.
const runTime = 100 * time.Microsecond

// line is a queue with a server of some rate: an access link in one direction, or the bottleneck of a path.
type line struct {
	Line
	limit int // Buffer, or what stands for it
	next  int // what follows: see Network.leave
	at    int // index of the site or path

	queue ring
	bytes int // of the queue and of part
	// serving: part is being sent since began, and its event is in the heap.
	serving bool
	part    Run
	began   Time

	stats QueueStats
}

// waiting is what is in the buffer at a moment: what of the run in service has been sent already has left it.
func (l *line) waiting(now Time) int {
	if !l.serving || l.Rate == 0 {
		return l.bytes
	}
	sent := min(l.Rate.bytesIn(now.Sub(l.began)), l.part.Bytes())
	return l.bytes - sent
}

// admit cuts a run in front of what does not fit: the first ok segments do.
func (l *line) admit(now Time, r *Run) (ok uint16) {
	room := l.limit - l.waiting(now)
	if n := r.Bytes(); n <= room {
		return r.Count
	}
	for ok < r.Count {
		room -= r.segment(r.First + ok)
		if room < 0 {
			break
		}
		ok++
	}
	return ok
}

// slice says how many segments of a run leave together.
func (l *line) slice(r *Run) uint16 {
	if r.Count == 1 {
		return 1
	}
	fit := l.Rate.bytesIn(runTime) / r.segment(0)
	return uint16(min(max(fit, 1), int(r.Count)))
}

// ring is a queue of runs that keeps its memory.
type ring struct {
	buf  []Run // its length is a power of two
	from uint64
	to   uint64
}

const ringMin = 64

func (q *ring) len() int { return int(q.to - q.from) }

func (q *ring) head() *Run { return &q.buf[q.from&uint64(len(q.buf)-1)] }

func (q *ring) push(r Run) {
	if q.len() == len(q.buf) {
		grown := make([]Run, max(ringMin, 2*len(q.buf)))
		for i := range q.len() {
			grown[i] = q.buf[(q.from+uint64(i))&uint64(len(q.buf)-1)]
		}
		q.to, q.from = uint64(q.len()), 0
		q.buf = grown
	}
	q.buf[q.to&uint64(len(q.buf)-1)] = r
	q.to++
}

func (q *ring) pop() Run {
	r := *q.head()
	q.from++
	return r
}
