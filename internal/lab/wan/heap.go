package wan

// Kinds of event.
const (
	evServed  = iota // a line has sent the run at the head of its queue
	evArrived        // a run has come to the far end of a path
)

type event struct {
	at   Time
	seq  uint64 // order among events of one moment: first come, first served
	kind uint8
	line *line // of evServed
	run  Run   // of evArrived
}

func (a *event) before(b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// events is a binary heap. container/heap would allocate for each event.
type events struct {
	list []event
	seq  uint64
}

func (h *events) push(e event) {
	h.seq++
	e.seq = h.seq
	h.list = append(h.list, e)
	i := len(h.list) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !e.before(&h.list[up]) {
			break
		}
		h.list[i] = h.list[up]
		i = up
	}
	h.list[i] = e
}

func (h *events) pop() event {
	top := h.list[0]
	n := len(h.list) - 1
	e := h.list[n]
	h.list = h.list[:n]
	if n == 0 {
		return top
	}
	i := 0
	for {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && h.list[c+1].before(&h.list[c]) {
			c++
		}
		if !h.list[c].before(&e) {
			break
		}
		h.list[i] = h.list[c]
		i = c
	}
	h.list[i] = e
	return top
}
