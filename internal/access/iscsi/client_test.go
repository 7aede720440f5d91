package iscsi_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
)

const (
	targetName = "iqn.2026-01.example.dozo:mem"
	hostName   = "iqn.2026-01.example.host:a"
)

// pdu is what travels, in either direction.
type pdu struct {
	bhs  [48]byte
	data []byte
}

func (p *pdu) op() byte             { return p.bhs[0] & 0x3f }
func (p *pdu) u32(at int) uint32    { return binary.BigEndian.Uint32(p.bhs[at:]) }
func (p *pdu) put(at int, v uint32) { binary.BigEndian.PutUint32(p.bhs[at:], v) }

// client is an initiator that does what tests tell it, right or wrong.
type client struct {
	t                        testing.TB
	nc                       net.Conn
	cmdSN, expStatSN         uint32
	itt                      uint32
	headerDigest, dataDigest bool
	isid                     byte
	cid                      uint16
	answerPings              bool
	keys                     map[string]string // what the login agreed upon
	tsih                     uint16
	immediate, initialR2T    bool
	maxSend, firstBurst      int
}

var crcTable = crc32.MakeTable(crc32.Castagnoli)

func dial(t testing.TB, portal *iscsitest.Portal) *client {
	t.Helper()
	nc, err := net.Dial("tcp", portal.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(time.Minute)) // against hanging, not part of any test
	return &client{t: t, nc: nc, cmdSN: 1, itt: 1, isid: 1, answerPings: true, keys: map[string]string{},
		immediate: true, initialR2T: true, maxSend: 8192, firstBurst: 65536}
}

func (c *client) send(p *pdu) error {
	p.bhs[5], p.bhs[6], p.bhs[7] = byte(len(p.data)>>16), byte(len(p.data)>>8), byte(len(p.data))
	b := append([]byte(nil), p.bhs[:]...)
	if c.headerDigest {
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crcTable))
	}
	if len(p.data) > 0 {
		data := append([]byte(nil), p.data...)
		for len(data)%4 != 0 {
			data = append(data, 0)
		}
		b = append(b, data...)
		if c.dataDigest {
			b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(data, crcTable))
		}
	}
	_, err := c.nc.Write(b)
	return err
}

// recv gives the next PDU that isn't a ping.
func (c *client) recv() (*pdu, error) {
	for {
		p := new(pdu)
		if _, err := io.ReadFull(c.nc, p.bhs[:]); err != nil {
			return nil, err
		}
		var sum [4]byte
		if c.headerDigest {
			if _, err := io.ReadFull(c.nc, sum[:]); err != nil {
				return nil, err
			}
			if binary.LittleEndian.Uint32(sum[:]) != crc32.Checksum(p.bhs[:], crcTable) {
				return nil, fmt.Errorf("wrong header digest")
			}
		}
		n := int(p.bhs[5])<<16 | int(p.bhs[6])<<8 | int(p.bhs[7])
		if n > 0 {
			p.data = make([]byte, (n+3)&^3)
			if _, err := io.ReadFull(c.nc, p.data); err != nil {
				return nil, err
			}
			if c.dataDigest {
				if _, err := io.ReadFull(c.nc, sum[:]); err != nil {
					return nil, err
				}
				if binary.LittleEndian.Uint32(sum[:]) != crc32.Checksum(p.data, crcTable) {
					return nil, fmt.Errorf("wrong data digest")
				}
			}
			p.data = p.data[:n]
		}
		if p.op() == 0x20 && p.u32(16) == 0xffffffff {
			if p.u32(20) != 0xffffffff && c.answerPings {
				c.nop(0xffffffff, p.u32(20), nil)
			}
			continue
		}
		// What uses its StatSN up acknowledges by number; a Data-In without status and an R2T don't.
		if p.op() != 0x31 && (p.op() != 0x25 || p.bhs[1]&1 != 0) {
			c.expStatSN = p.u32(24) + 1
		}
		return p, nil
	}
}

func (c *client) must(p *pdu, err error) *pdu {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// number sets the sequence numbers of a request.
func (c *client) number(p *pdu) {
	p.put(24, c.cmdSN)
	p.put(28, c.expStatSN)
	if p.bhs[0]&0x40 == 0 {
		c.cmdSN++
	}
}

// loginStep sends one Login Request and gives the response with its keys.
func (c *client) loginStep(csg, nsg int, transit bool, keys ...string) (*pdu, map[string]string) {
	c.t.Helper()
	p := &pdu{data: []byte(strings.Join(keys, "\x00") + "\x00")}
	if len(keys) == 0 {
		p.data = nil
	}
	p.bhs[0], p.bhs[1] = 0x43, byte(csg<<2|nsg)
	if transit {
		p.bhs[1] |= 0x80
	} else {
		p.bhs[1] &^= 3
	}
	p.bhs[8], p.bhs[13] = 0x80, c.isid
	binary.BigEndian.PutUint16(p.bhs[14:], c.tsih)
	binary.BigEndian.PutUint16(p.bhs[20:], c.cid)
	p.put(16, 0)
	c.number(p)
	if err := c.send(p); err != nil {
		c.t.Fatal(err)
	}
	r := c.must(c.recv())
	got := map[string]string{}
	for _, kv := range strings.Split(strings.TrimRight(string(r.data), "\x00"), "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			got[k] = v
			c.keys[k] = v
		}
	}
	return r, got
}

func status(p *pdu) int { return int(p.bhs[36])<<8 | int(p.bhs[37]) }

// login goes straight to full feature phase with some keys.
func (c *client) login(keys ...string) *client {
	c.t.Helper()
	r, got := c.loginStep(1, 3, true, append([]string{"InitiatorName=" + hostName, "TargetName=" + targetName}, keys...)...)
	if status(r) != 0 || r.bhs[1] != 0x87 {
		c.t.Fatalf("login: status %#04x, flags %#02x", status(r), r.bhs[1])
	}
	c.begin(got, binary.BigEndian.Uint16(r.bhs[14:]))
	return c
}

func (c *client) begin(got map[string]string, tsih uint16) {
	c.tsih = tsih
	c.headerDigest, c.dataDigest = got["HeaderDigest"] == "CRC32C", got["DataDigest"] == "CRC32C"
	c.initialR2T = got["InitialR2T"] != "No"
	c.immediate = got["ImmediateData"] != "No"
	if n, err := strconv.Atoi(got["MaxRecvDataSegmentLength"]); err == nil {
		c.maxSend = n
	}
	if n, err := strconv.Atoi(got["FirstBurstLength"]); err == nil {
		c.firstBurst = n
	}
}

func (c *client) nop(itt, ttt uint32, data []byte) {
	p := &pdu{data: data}
	p.bhs[0], p.bhs[1] = 0x40, 0x80
	p.put(16, itt)
	p.put(20, ttt)
	c.number(p)
	_ = c.send(p)
}

// result is how a command ended.
type result struct {
	status   byte
	sense    []byte
	data     []byte
	flags    byte
	residual uint32
	r2ts     int
}

// key, asc give the sense.
func (r *result) code() (key byte, code uint16) {
	if len(r.sense) < 14 {
		return 0, 0
	}
	return r.sense[2] & 15, binary.BigEndian.Uint16(r.sense[12:])
}

// start sends a SCSI Command with what data go unasked; it gives the task tag and how much was sent.
func (c *client) start(cdb []byte, read int, out []byte, attr ...byte) (itt uint32, sent int) {
	c.t.Helper()
	p := new(pdu)
	p.bhs[0], p.bhs[1] = 0x01, 0x80
	if len(attr) > 0 {
		p.bhs[1] |= attr[0]
	}
	copy(p.bhs[32:], cdb)
	itt = c.itt
	c.itt++
	p.put(16, itt)
	p.put(20, uint32(read))
	if read > 0 {
		p.bhs[1] |= 0x40
	}
	unasked := 0
	if out != nil {
		p.bhs[1] |= 0x20
		p.put(20, uint32(len(out)))
		first := min(c.firstBurst, len(out))
		if c.immediate {
			sent = min(first, c.maxSend)
			p.data = out[:sent]
		}
		if !c.initialR2T && first > sent {
			p.bhs[1] &^= 0x80
			unasked = first
		}
	}
	c.number(p)
	if err := c.send(p); err != nil {
		c.t.Fatal(err)
	}
	if unasked > sent {
		c.dataOut(itt, 0xffffffff, out[:unasked], sent)
		sent = unasked
	}
	return itt, sent
}

// dataOut sends out[at:] in segments as one burst.
func (c *client) dataOut(itt, ttt uint32, out []byte, at int) {
	for sn := uint32(0); at < len(out); sn++ {
		n := min(c.maxSend, len(out)-at)
		p := &pdu{data: out[at : at+n]}
		p.bhs[0] = 0x05
		if at+n == len(out) {
			p.bhs[1] = 0x80
		}
		p.put(16, itt)
		p.put(20, ttt)
		p.put(28, c.expStatSN)
		p.put(36, sn)
		p.put(40, uint32(at))
		if err := c.send(p); err != nil {
			c.t.Fatal(err)
		}
		at += n
	}
}

// finish answers R2Ts and collects data until a command's status.
func (c *client) finish(itt uint32, out []byte) *result {
	c.t.Helper()
	r := new(result)
	for {
		p := c.must(c.recv())
		if p.u32(16) != itt {
			c.t.Fatalf("opcode %#x for task %#x while %#x is under way", p.op(), p.u32(16), itt)
		}
		switch p.op() {
		case 0x31:
			r.r2ts++
			at, n := int(p.u32(40)), int(p.u32(44))
			c.dataOut(itt, p.u32(20), out[:at+n], at)
			continue
		case 0x25:
			if int(p.u32(40)) != len(r.data) {
				c.t.Fatalf("Data-In at %d, want %d", p.u32(40), len(r.data))
			}
			r.data = append(r.data, p.data...)
			if p.bhs[1]&1 == 0 {
				continue
			}
		case 0x21:
			if len(p.data) > 2 {
				r.sense = p.data[2:]
			}
		default:
			c.t.Fatalf("opcode %#x", p.op())
		}
		r.status, r.flags, r.residual = p.bhs[3], p.bhs[1]&0x06, p.u32(44)
		return r
	}
}

func (c *client) do(cdb []byte, read int, out []byte) *result {
	c.t.Helper()
	itt, _ := c.start(cdb, read, out)
	return c.finish(itt, out)
}

// ready consumes the unit attention of a new nexus.
func (c *client) ready() *client {
	c.t.Helper()
	r := c.do(make([]byte, 6), 0, nil)
	if key, code := r.code(); r.status != 2 || key != 6 || code != 0x2900 {
		c.t.Fatalf("first command: status %#x sense %x/%04x, want the unit attention of a new nexus", r.status, key, code)
	}
	return c
}

func (c *client) good(r *result) *result {
	c.t.Helper()
	if r.status != 0 {
		key, code := r.code()
		c.t.Fatalf("status %#x sense %x/%04x", r.status, key, code)
	}
	return r
}

func rw10(op byte, lba uint32, blocks uint16) []byte {
	cdb := make([]byte, 10)
	cdb[0] = op
	binary.BigEndian.PutUint32(cdb[2:], lba)
	binary.BigEndian.PutUint16(cdb[7:], blocks)
	return cdb
}

// tmf sends a task management function.
func (c *client) tmf(function byte, refITT uint32) uint32 {
	p := new(pdu)
	p.bhs[0], p.bhs[1] = 0x42, 0x80|function
	itt := c.itt
	c.itt++
	p.put(16, itt)
	p.put(20, refITT)
	c.number(p)
	if err := c.send(p); err != nil {
		c.t.Fatal(err)
	}
	return itt
}

// serve starts a target with one disk; it is closed, and leaks nothing, when the test ends.
func serve(t testing.TB, change func(*iscsi.Config), more func(*iscsitest.Provider)) (*iscsitest.Portal, *iscsitest.Disk) {
	t.Helper()
	d := iscsitest.NewDisk("mem", 64<<20, 512)
	p := &iscsitest.Provider{Disks: map[string][]*iscsitest.Disk{targetName: {d}}}
	if more != nil {
		more(p)
	}
	portal, err := iscsitest.Start(p, "127.0.0.1:0", slog.New(slog.DiscardHandler), func(c *iscsi.Config) {
		c.PingEvery = -1
		if change != nil {
			change(c)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		portal.Close()
		d.Wait()
		if open, _ := p.Sessions(); open != 0 {
			t.Errorf("%d sessions are still open after Close", open)
		}
	})
	return portal, d
}

func crcOf(b []byte) uint32 { return crc32.Checksum(b, crcTable) }
