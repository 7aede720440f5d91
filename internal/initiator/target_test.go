package initiator

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// scriptedTarget is a small target with a disk in memory, whose behaviour tests bend: by the keys that it answers
// with, by script, which may handle any request itself, and by its hooks in the initiator under test.
type scriptedTarget struct {
	t      testing.TB
	l      net.Listener
	addr   string
	wg     sync.WaitGroup
	answer map[string]string // results of login keys; others: accept what is offered
	chap   CHAP              // required if set
	// redirect is sent as TargetAddress with a login status of class 1; one use if temporary.
	redirect     string
	redirectPerm bool
	window       uint32
	r2tSize      int // bytes asked for at once; 0: MaxBurstLength
	r2tBackwards bool
	dataInSize   int // bytes of one Data-In; 0: what the initiator takes
	noCollapse   bool
	// script sees every request in full feature phase; true means handled.
	script func(c *targetConn, p *PDU) bool

	mu       sync.Mutex
	disk     []byte
	sessions map[uint16]*targetSession
	nextTSIH uint16
	logins   int
	conns    map[*targetConn]struct{}
	down     bool // refuse connections
}

type targetSession struct {
	tsih     uint16
	isid     [6]byte
	expCmdSN uint32
	early    map[uint32]func() // commands beyond expCmdSN
	keys     map[string]string
	tasks    map[uint32]*targetTask
}

type targetTask struct {
	cmd  PDU
	buf  []byte
	got  int // bytes of a write that came
	want int
	ttt  uint32
	sent sync.Map // Data-In and R2T (PDU) by number (uint32); a reassigned task has two connections at it
	next uint32
	done bool
	off  int // of the next R2T
}

type targetConn struct {
	t      *scriptedTarget
	c      net.Conn
	s      *targetSession
	f      framing
	cid    uint16
	wmu    sync.Mutex
	statSN uint32
	sent   map[uint32]PDU // by StatSN
}

const fakeName = "iqn.2026-01.test:disk"

func newScriptedTarget(t testing.TB) *scriptedTarget {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &scriptedTarget{t: t, l: l, addr: l.Addr().String(), answer: map[string]string{}, window: 64,
		disk: make([]byte, 4<<20), sessions: map[uint16]*targetSession{}, nextTSIH: 1, conns: map[*targetConn]struct{}{}}
	x.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			x.wg.Go(func() { x.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		x.dropAll()
		x.wg.Wait()
	})
	return x
}

// dropAll closes all connections, as a dying target does.
func (x *scriptedTarget) dropAll() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for c := range x.conns {
		c.c.Close()
	}
}

// publish makes what a test has set visible to the connections that come.
func (x *scriptedTarget) publish() { x.setDown(false) }

func (x *scriptedTarget) setDown(down bool) {
	x.mu.Lock()
	x.down = down
	x.mu.Unlock()
}

func (x *scriptedTarget) serve(nc net.Conn) {
	c := &targetConn{t: x, c: nc, sent: map[uint32]PDU{}, f: framing{maxData: maxDataLen}, statSN: 100}
	x.mu.Lock()
	x.conns[c] = struct{}{}
	down := x.down
	x.mu.Unlock()
	defer func() {
		nc.Close()
		x.mu.Lock()
		delete(x.conns, c)
		x.mu.Unlock()
	}()
	if down || !c.login() {
		return
	}
	for {
		p, err := c.read()
		if err != nil {
			return
		}
		if x.script != nil && x.script(c, p) {
			continue
		}
		if !c.handle(p) {
			return
		}
	}
}

func (c *targetConn) read() (*PDU, error) {
	h := make([]byte, bhsLen)
	if _, err := io.ReadFull(c.c, h); err != nil {
		return nil, err
	}
	b := (*BHS)(h)
	rest := make([]byte, c.f.headerLen(b)-bhsLen+c.f.dataWireLen(b.DataLen()))
	if _, err := io.ReadFull(c.c, rest); err != nil {
		return nil, err
	}
	p := &PDU{}
	n, err := c.f.decode(append(h, rest...), p)
	if err == nil && n != bhsLen+len(rest) {
		err = fmt.Errorf("decoded %d of %d", n, bhsLen+len(rest))
	}
	return p, err
}

// send numbers p if it has a status number and sends it.
func (c *targetConn) send(p *PDU, usesStatSN bool) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.t.mu.Lock()
	p.BHS.SetUint32(offExpCmdSN, c.s.expCmdSN)
	p.BHS.SetUint32(offMaxCmdSN, c.s.expCmdSN+c.t.window-1)
	c.t.mu.Unlock()
	p.BHS.SetUint32(offStatSN, c.statSN)
	p.BHS.SetDataLen(len(p.Data))
	if usesStatSN {
		c.sent[c.statSN] = *p
		c.statSN++
	}
	c.c.Write(c.f.append(nil, p))
}

func (c *targetConn) resend(p PDU) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.c.Write(c.f.append(nil, &p))
}

func (c *targetConn) login() bool {
	x := c.t
	keys := map[string]string{}
	var first BHS
	var challenge = []byte("0123456789abcdef")
	authed := x.chap.Secret == ""
	for round := 0; ; round++ {
		p, err := c.read()
		if err != nil || p.BHS.Op() != OpLogin {
			return false
		}
		if round == 0 {
			first = p.BHS
			c.cid = p.BHS.Uint16(20)
		}
		kvs, err := parseKeys(p.Data)
		if err != nil {
			return false
		}
		got := map[string]string{}
		var out []KeyValue
		for _, kv := range kvs {
			got[kv.Key] = kv.Value
			if r, ok := keyRules[kv.Key]; ok {
				v := kv.Value
				if a, ok := x.answer[kv.Key]; ok {
					v = a
				} else if r.kind == 'l' {
					v, _, _ = strings.Cut(v, ",")
				}
				if r.kind != 'd' || x.answer[kv.Key] != "" {
					out = append(out, KeyValue{kv.Key, v})
				}
				keys[kv.Key] = v
				if r.kind == 'd' {
					keys[kv.Key] = kv.Value
				}
			}
		}
		r := &PDU{}
		h := &r.BHS
		h[0] = byte(OpLoginResp)
		h[1] = p.BHS[1] &^ 0x40
		copy(h[8:16], p.BHS[8:16])
		h.SetUint32(offITT, p.BHS.ITT())
		status := uint16(0)
		x.mu.Lock()
		redirect := x.redirect
		if redirect != "" && !x.redirectPerm {
			x.redirect = ""
		}
		x.mu.Unlock()
		switch {
		case redirect != "":
			status = 0x0101
			if x.redirectPerm {
				status = 0x0102
			}
			out = []KeyValue{{"TargetAddress", redirect + ",1"}}
			h[1] = 0
		case got["TargetName"] != "" && got["TargetName"] != fakeName:
			status = 0x0203
		case got["AuthMethod"] != "":
			m := "None"
			if !authed {
				m = "CHAP"
				h[1] = 0
				if !listHas(got["AuthMethod"], m) {
					status = 0x0201
				}
			}
			out = append(out, KeyValue{"AuthMethod", m})
		case got["CHAP_A"] != "":
			out = append(out, KeyValue{"CHAP_A", "5"}, KeyValue{"CHAP_I", "7"}, KeyValue{"CHAP_C", formatBinary(challenge)})
		case got["CHAP_R"] != "":
			want := formatBinary(chapResponse(chapHash(5), 7, x.chap.Secret, challenge))
			if got["CHAP_N"] != x.chap.User || got["CHAP_R"] != want {
				status = 0x0201
				break
			}
			authed = true
			if got["CHAP_C"] != "" {
				ch, _ := parseBinary(got["CHAP_C"])
				id, _ := strconv.Atoi(got["CHAP_I"])
				out = append(out, KeyValue{"CHAP_N", x.chap.TargetUser},
					KeyValue{"CHAP_R", formatBinary(chapResponse(chapHash(5), byte(id), x.chap.TargetSecret, ch))})
			}
		case !authed:
			status = 0x0201
		}
		h[36], h[37] = byte(status>>8), byte(status)
		final := h[1]&flagTransit != 0 && h[1]&3 == stageFull
		x.mu.Lock()
		c.s = &targetSession{expCmdSN: p.BHS.Uint32(offCmdSN)}
		if final && status == 0 {
			c.enterLocked(first, keys)
			h.SetUint16(14, c.s.tsih)
		}
		x.mu.Unlock()
		r.Data = appendKeys(nil, out)
		c.send(r, true)
		if status != 0 {
			return false
		}
		if final {
			c.f.headerDigest, c.f.dataDigest = keys["HeaderDigest"] == "CRC32C", keys["DataDigest"] == "CRC32C"
			return true
		}
	}
}

// enterLocked finds or makes the session of a login.
func (c *targetConn) enterLocked(first BHS, keys map[string]string) {
	x := c.t
	x.logins++
	var isid [6]byte
	copy(isid[:], first[8:14])
	if tsih := first.Uint16(14); tsih != 0 && x.sessions[tsih] != nil {
		c.s = x.sessions[tsih]
		return
	}
	for id, s := range x.sessions { // reinstatement
		if s.isid == isid {
			delete(x.sessions, id)
			for o := range x.conns {
				if o.s == s && o != c {
					o.c.Close()
				}
			}
		}
	}
	c.s = &targetSession{tsih: x.nextTSIH, isid: isid, expCmdSN: first.Uint32(offCmdSN), early: map[uint32]func(){},
		keys: keys, tasks: map[uint32]*targetTask{}}
	x.sessions[x.nextTSIH] = c.s
	x.nextTSIH++
}

func (c *targetConn) num(key string, def int) int {
	if v, err := strconv.Atoi(c.s.keys[key]); err == nil {
		return v
	}
	return def
}

// handle does what a target does; false ends the connection.
func (c *targetConn) handle(p *PDU) bool {
	h := &p.BHS
	switch h.Op() {
	case OpSCSICommand:
		run := func() { c.command(p) }
		c.t.mu.Lock()
		if h[0]&flagImmediate != 0 {
			c.t.mu.Unlock()
			run()
			return true
		}
		sn := h.Uint32(offCmdSN)
		if sn != c.s.expCmdSN {
			if !snLess(sn, c.s.expCmdSN) {
				c.s.early[sn] = run
			}
			c.t.mu.Unlock()
			return true
		}
		for run != nil {
			c.s.expCmdSN++
			c.t.mu.Unlock()
			run()
			c.t.mu.Lock()
			run = c.s.early[c.s.expCmdSN]
			delete(c.s.early, c.s.expCmdSN)
		}
		c.t.mu.Unlock()
	case OpDataOut:
		c.dataOut(p)
	case OpNopOut:
		if h.ITT() == tagNone {
			return true
		}
		r := &PDU{Data: p.Data}
		r.BHS[0], r.BHS[1] = byte(OpNopIn), flagFinal
		r.BHS.SetUint32(offITT, h.ITT())
		r.BHS.SetUint32(offTTT, tagNone)
		c.send(r, true)
	case OpTaskMgmt:
		resp := byte(0)
		if h[1]&0x7f == byte(TMFTaskReassign) {
			c.t.mu.Lock()
			task := c.s.tasks[h.TTT()]
			c.t.mu.Unlock()
			if task == nil {
				resp = 1
			} else {
				defer c.carryOn(task, h.Uint32(offDataSN))
			}
		}
		r := &PDU{}
		r.BHS[0], r.BHS[1], r.BHS[2] = byte(OpTaskMgmtResp), flagFinal, resp
		r.BHS.SetUint32(offITT, h.ITT())
		c.send(r, true)
	case OpText:
		r := &PDU{Data: appendKeys(nil, []KeyValue{{"TargetName", fakeName}, {"TargetAddress", c.t.addr + ",1"}, {"TargetAddress", "[::1]:99,2"}})}
		if bytes.HasPrefix(p.Data, []byte("MaxRecv")) {
			r.Data = nil
		}
		r.BHS[0], r.BHS[1] = byte(OpTextResp), flagFinal
		r.BHS.SetUint32(offITT, h.ITT())
		r.BHS.SetUint32(offTTT, tagNone)
		c.send(r, true)
	case OpLogout:
		r := &PDU{}
		r.BHS[0], r.BHS[1] = byte(OpLogoutResp), flagFinal
		r.BHS.SetUint32(offITT, h.ITT())
		c.send(r, true)
		return false
	case OpSNACK:
		c.snack(h)
	}
	return true
}

func (c *targetConn) snack(h *BHS) {
	begin, run := h.Uint32(offBufOffset), h.Uint32(offResidual)
	switch h[1] & 0xf {
	case snackStatus:
		for sn := begin; sn != begin+run; sn++ {
			c.wmu.Lock()
			p, ok := c.sent[sn]
			c.wmu.Unlock()
			if ok {
				c.resend(p)
			}
		}
	case snackData:
		c.t.mu.Lock()
		task := c.s.tasks[h.ITT()]
		c.t.mu.Unlock()
		if task == nil {
			return
		}
		for sn := begin; sn != begin+run; sn++ {
			if p, ok := task.sent.Load(sn); ok {
				c.resend(p.(PDU))
			}
		}
	}
}

// sense answers with CHECK CONDITION.
func (c *targetConn) status(itt uint32, status Status, key, asc byte, n uint32) {
	r := &PDU{}
	r.BHS[0], r.BHS[1], r.BHS[3] = byte(OpSCSIResponse), flagFinal, byte(status)
	r.BHS.SetUint32(offITT, itt)
	r.BHS.SetUint32(offDataSN, n)
	if status == StatusCheckCondition {
		s := make([]byte, 20)
		binary.BigEndian.PutUint16(s, 18)
		s[2], s[4], s[9], s[14] = 0x70, key, 10, asc
		r.Data = s
	}
	c.send(r, true)
}

func (c *targetConn) command(p *PDU) {
	h := &p.BHS
	cdb := h[32:48]
	lba := binary.BigEndian.Uint64(cdb[2:10])
	n := int(binary.BigEndian.Uint32(cdb[10:14])) * 512
	task := &targetTask{cmd: *p}
	c.t.mu.Lock()
	c.s.tasks[h.ITT()] = task
	c.t.mu.Unlock()
	switch cdb[0] {
	case 0x00, 0x91, 0x42:
		if len(p.Data) < int(h.TTT()) && cdb[0] == 0x42 {
			task.buf, task.want = make([]byte, h.TTT()), int(h.TTT())
			c.ask(task)
			return
		}
		c.status(h.ITT(), StatusGood, 0, 0, 0)
	case 0x12:
		b := make([]byte, 96)
		b[4] = 91
		copy(b[8:], "DOZO    SCRIPTED TARGET ")
		if cdb[1] == 1 {
			b = append([]byte{0, 0x80, 0, 4}, "SN01"...)
		}
		task.buf = b[:min(len(b), int(h.TTT()))]
		c.dataIn(task, 0)
	case 0x1a:
		task.buf = []byte{23, 0, 0, 0, 8, 18, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		c.dataIn(task, 0)
	case 0x9e:
		b := make([]byte, 32)
		binary.BigEndian.PutUint64(b, uint64(len(c.t.disk)/512-1))
		binary.BigEndian.PutUint32(b[8:], 512)
		b[13], b[14] = 3, 0x80
		task.buf = b
		c.dataIn(task, 0)
	case 0x88, 0x8a:
		if int(lba)*512+n > len(c.t.disk) {
			c.status(h.ITT(), StatusCheckCondition, SenseIllegalRequest, 0x21, 0)
			return
		}
		if cdb[0] == 0x88 {
			c.t.mu.Lock()
			task.buf = bytes.Clone(c.t.disk[lba*512:][:n])
			c.t.mu.Unlock()
			c.dataIn(task, 0)
			return
		}
		task.buf, task.want = make([]byte, n), n
		task.got = copy(task.buf, p.Data)
		task.off = task.got
		if h[1]&flagFinal == 0 {
			// Unsolicited Data-Out follow, up to FirstBurstLength.
			task.off = min(n, c.num("FirstBurstLength", 65536))
			return
		}
		c.ask(task)
	default:
		c.status(h.ITT(), StatusCheckCondition, SenseIllegalRequest, 0x20, 0)
	}
}

func (c *targetConn) dataIn(task *targetTask, from uint32) {
	size := c.num("MaxRecvDataSegmentLength", 8192)
	if c.t.dataInSize > 0 {
		size = min(size, c.t.dataInSize)
	}
	h := &task.cmd.BHS
	sn := uint32(0)
	for off := 0; off < len(task.buf); sn++ {
		n := min(size, len(task.buf)-off)
		r := &PDU{Data: task.buf[off : off+n]}
		b := &r.BHS
		b[0] = byte(OpDataIn)
		last := off+n == len(task.buf)
		if last {
			b[1] = flagFinal
			if !c.t.noCollapse {
				b[1] |= flagStatus
			}
			if want := int(h.TTT()); want > len(task.buf) {
				b[1] |= flagUnderflow
				b.SetUint32(offResidual, uint32(want-len(task.buf)))
			}
		}
		b.SetUint32(offITT, h.ITT())
		b.SetUint32(offTTT, tagNone)
		b.SetUint32(offDataSN, sn)
		b.SetUint32(offBufOffset, uint32(off))
		if sn >= from {
			c.send(r, last && !c.t.noCollapse)
			task.sent.Store(sn, *r)
		}
		off += n
	}
	if c.t.noCollapse {
		c.status(h.ITT(), StatusGood, 0, 0, sn)
	}
}

// ask sends the next R2T, or finishes the write.
func (c *targetConn) ask(task *targetTask) {
	h := &task.cmd.BHS
	if task.got >= task.want {
		task.done = true
		if h[32] == 0x8a {
			lba := binary.BigEndian.Uint64(h[34:42])
			c.t.mu.Lock()
			copy(c.t.disk[lba*512:], task.buf)
			c.t.mu.Unlock()
		}
		c.status(h.ITT(), StatusGood, 0, 0, task.next)
		return
	}
	n := c.num("MaxBurstLength", 262144)
	if c.t.r2tSize > 0 {
		n = min(n, c.t.r2tSize)
	}
	n = min(n, task.want-task.got)
	off := task.off
	if c.t.r2tBackwards {
		off = task.want - (task.got - task.off) - n
		// got counts what came, the first burst included; the rest comes from the end.
	} else {
		task.off += n
	}
	r := &PDU{}
	b := &r.BHS
	b[0], b[1] = byte(OpR2T), flagFinal
	b.SetUint32(offITT, h.ITT())
	task.ttt++
	b.SetUint32(offTTT, task.ttt)
	b.SetUint32(offDataSN, task.next)
	b.SetUint32(offBufOffset, uint32(off))
	b.SetUint32(offResidual, uint32(n))
	task.sent.Store(task.next, *r)
	task.next++
	c.send(r, false)
}

func (c *targetConn) dataOut(p *PDU) {
	c.t.mu.Lock()
	task := c.s.tasks[p.BHS.ITT()]
	c.t.mu.Unlock()
	if task == nil || task.done {
		return
	}
	copy(task.buf[p.BHS.Uint32(offBufOffset):], p.Data)
	task.got += len(p.Data)
	if p.BHS[1]&flagFinal != 0 {
		c.ask(task)
	}
}

// carryOn goes on with a reassigned task.
func (c *targetConn) carryOn(task *targetTask, expDataSN uint32) {
	if task.want == 0 {
		c.dataIn(task, expDataSN)
		return
	}
	task.got, task.off, task.done = 0, 0, false
	c.ask(task)
}

// async sends an asynchronous message.
func (c *targetConn) async(event byte, p1, p2, p3 uint16) {
	r := &PDU{}
	b := &r.BHS
	b[0], b[1], b[36] = byte(OpAsync), flagFinal, event
	b.SetUint32(offITT, tagNone)
	b.SetUint16(38, p1)
	b.SetUint16(40, p2)
	b.SetUint16(42, p3)
	c.send(r, true)
}

// ping sends a NOP-In that wants an answer.
func (c *targetConn) ping(ttt uint32, data []byte) {
	r := &PDU{Data: data}
	r.BHS[0], r.BHS[1] = byte(OpNopIn), flagFinal
	r.BHS.SetUint32(offITT, tagNone)
	r.BHS.SetUint32(offTTT, ttt)
	c.send(r, false)
}
