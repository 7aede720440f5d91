package router

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"dozo/internal/lab/wan"
)

const (
	// readBatch is how many packets of one device are read before the others get their turn.
	readBatch = 64
	// sleepMax bounds a sleep, so that the runtime gets the thread now and then.
	sleepMax = 10 * time.Millisecond
	// A sleeping thread wakes some 50 microseconds late. Where few packets are under way, the loop wakes spinAhead early
	// and looks at the clock until a packet is due; that may cost one spinShare-th of a processor, and spinSaved at once.
	spinAhead = 80 * time.Microsecond
	spinShare = 10
	spinSaved = 2 * time.Millisecond
)

// loop is the router's thread and all it has. Only do may be called from elsewhere.
//
// It goes round: wait until a device has a packet or the network is due; carry out what is due (Deliver writes);
// run what do has left; read what has come and send it into the network.
type loop struct {
	net    *wan.Network
	pool   *pool
	routes routes
	sites  int
	tun    [wan.SitesMax]int
	epoll  int
	wake   int // eventfd
	start  time.Time
	counts Counts

	// spare is where the next packet is read to; in points at it.
	spare  [packetBlocks]uint32
	in     [packetBlocks]unix.Iovec
	out    [packetBlocks + 1]unix.Iovec
	header [virtioLen + headMax]byte

	// spin is how long the loop may look at the clock instead of sleeping.
	spin time.Duration

	pending atomic.Bool
	mu      struct {
		sync.Mutex
		calls  []func()
		closed bool
	}
	stop bool
}

func newLoop(cfg Config) (_ *loop, err error) {
	l := &loop{start: time.Now(), epoll: -1, wake: -1, sites: len(cfg.Sites)}
	for i := range l.tun {
		l.tun[i] = -1
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.net, err = wan.New(len(cfg.Sites), cfg.Seed, l); err != nil {
		return nil, err
	}
	if l.routes, err = newRoutes(cfg.Sites); err != nil {
		return nil, err
	}
	if l.pool, err = newPool(cfg.MemoryBytes); err != nil {
		return nil, err
	}
	for i := range l.spare {
		l.replace(i)
	}
	l.counts.Blocks = len(l.pool.packets)
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	if err = l.watch(l.wake, -1); err != nil {
		return nil, err
	}
	for i, s := range cfg.Sites {
		if l.tun[i], err = openTUN(s.NetNS, s.Device); err != nil {
			return nil, err
		}
		if err = l.watch(l.tun[i], i); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *loop) watch(fd, site int) error {
	return unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(site)})
}

func (l *loop) close() {
	for _, fd := range append(l.tun[:], l.epoll, l.wake) {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if l.pool != nil {
		_ = l.pool.close()
	}
}

// replace puts a free block where one of the spare ones was.
func (l *loop) replace(i int) {
	l.spare[i] = l.pool.take()
	l.in[i].Base = &l.pool.data(l.spare[i])[0]
	l.in[i].SetLen(BlockSize)
}

func (l *loop) now() wan.Time { return wan.Time(time.Since(l.start)) }

// do runs f on the loop's thread and waits for it; false: the loop has ended.
func (l *loop) do(f func()) bool {
	done := make(chan struct{})
	l.mu.Lock()
	if l.mu.closed {
		l.mu.Unlock()
		return false
	}
	l.mu.calls = append(l.mu.calls, func() { f(); close(done) })
	l.pending.Store(true)
	l.mu.Unlock()
	one := [8]byte{1}
	_, _ = unix.Write(l.wake, one[:]) // it can only fail by being full, and then the loop wakes anyway
	<-done
	return true
}

func (l *loop) calls() {
	l.mu.Lock()
	list := l.mu.calls
	l.mu.calls = nil
	l.pending.Store(false)
	l.mu.Unlock()
	for _, f := range list {
		f()
	}
}

// run is the loop; it returns after stop was set by a call.
func (l *loop) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() {
		l.mu.Lock()
		l.mu.closed = true
		l.mu.Unlock()
		l.calls()
	}()
	var events [wan.SitesMax + 1]unix.EpollEvent
	looked := l.now()
	for !l.stop {
		before := l.now()
		wait := min(max(l.net.Next().Sub(before), 0), sleepMax)
		spins := false
		if wait > 0 && l.spin >= spinAhead {
			spins = wait <= spinAhead
			wait = max(0, wait-spinAhead)
		}
		ts := unix.NsecToTimespec(int64(wait))
		l.stalled(before.Sub(looked))
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.epoll), uintptr(unsafe.Pointer(&events[0])),
			uintptr(len(events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
		looked = l.now()
		if errno != 0 && errno != unix.EINTR {
			return fmt.Errorf("epoll_pwait2: %w", errno)
		}
		if errno != 0 {
			n = 0
		}
		if n == 0 {
			// Nothing came, so the sleep was to end at a deadline.
			l.stalled(looked.Sub(before) - wait)
		}
		if spins {
			l.spin -= looked.Sub(before)
		} else {
			l.spin = min(spinSaved, l.spin+looked.Sub(before)/spinShare)
		}
		l.net.Advance(looked)
		if l.pending.Load() {
			l.calls()
		}
		for i := range int(n) {
			if site := int(events[i].Fd); site >= 0 {
				l.read(site)
			} else {
				var count [8]byte
				_, _ = unix.Read(l.wake, count[:]) // non-blocking; its content means nothing
			}
		}
	}
	return nil
}

func (l *loop) stalled(d time.Duration) {
	l.counts.StallMax = max(l.counts.StallMax, d)
	if d > LateAfter {
		l.counts.Stalls++
	}
}

// read takes the packets that a site has sent and puts them into the network.
func (l *loop) read(site int) {
	for range readBatch {
		n, _, errno := unix.RawSyscall(unix.SYS_READV, uintptr(l.tun[site]), uintptr(unsafe.Pointer(&l.in[0])), packetBlocks)
		if errno != 0 || n == 0 {
			return
		}
		l.packet(site, int(n))
	}
}

// packet puts the packet that was just read, n bytes with the virtio header, into the network. Its blocks become the
// packet's, and the reader gets others; a packet that goes nowhere leaves them with the reader.
func (l *loop) packet(site, n int) {
	first := l.pool.data(l.spare[0])
	s, err := inspect(first[:min(n, BlockSize)], n)
	if err != nil {
		l.counts.Malformed++
		return
	}
	to := l.routes.find(first[virtioLen:], s.v6)
	if to < 0 || to == site {
		l.counts.NoRoute++
		return
	}
	blocks := blocksOf(n)
	if len(l.pool.free) < blocks {
		l.counts.Overflow++
		return
	}
	id := l.pool.newPacket()
	p := &l.pool.packets[id]
	r := wan.Single(id, n-virtioLen)
	if s.super {
		r = wan.Super(id, s.head, s.seg, s.payload)
	}
	r.From, r.To = uint8(site), uint8(to)
	p.bytes, p.refs, p.head, p.l4 = uint32(n), uint32(r.Count), uint16(s.head), uint16(s.l4)
	for i := range blocks {
		p.block[i] = l.spare[i]
		l.replace(i)
	}
	l.net.Send(l.now(), r)
}

// Drop is for the Network.
func (l *loop) Drop(r wan.Run, _ wan.Cause) { l.pool.release(r.Packet, r.Count) }

// Deliver writes a run to its site's device.
func (l *loop) Deliver(r wan.Run, due wan.Time) {
	late := l.now().Sub(due)
	l.counts.Delivered++
	l.counts.LateMax = max(l.counts.LateMax, late)
	if late > LateAfter {
		l.counts.Late++
	}
	p := &l.pool.packets[r.Packet]
	n := 0
	if r.Whole() {
		n = l.gather(0, p, 0, int(p.bytes))
	} else {
		first := l.pool.data(p.block[0])
		offset := int(r.First) * int(r.Seg)
		length := r.Bytes() - int(r.Count)*int(r.Head)
		s := shape{v6: first[virtioLen]>>4 == 6, head: int(p.head), l4: int(p.l4), seg: int(r.Seg)}
		h := segmentHeader(l.header[:], first, s, int(r.First), offset, length, r.First == 0, r.First+r.Count == r.Total)
		l.out[0].Base = &l.header[0]
		l.out[0].SetLen(h)
		n = l.gather(1, p, virtioLen+int(p.head)+offset, length)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(l.tun[r.To]), uintptr(unsafe.Pointer(&l.out[0])), uintptr(n)); errno != 0 {
		l.counts.WriteErrors++
	}
	l.pool.release(r.Packet, r.Count)
}

// gather puts bytes of a packet into out, from its entry n, and gives the number of entries.
func (l *loop) gather(n int, p *packet, from, length int) int {
	for length > 0 {
		b := l.pool.data(p.block[from/BlockSize])[from%BlockSize:]
		b = b[:min(len(b), length)]
		l.out[n].Base = &b[0]
		l.out[n].SetLen(len(b))
		n++
		from += len(b)
		length -= len(b)
	}
	return n
}
