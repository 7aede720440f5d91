package iscsi_test

import (
	"io"
	"strconv"
	"testing"
	"time"
)

// FuzzSession sends two connections of one session, at recovery level 1 or 2 and with digests off, whatever it likes after
// the login, in turns: the server neither panics nor hangs, another session is served, and nothing is left behind.
func FuzzSession(f *testing.F) {
	portal, _ := serve(f, nil, nil)
	request := func(op, flags byte, change func(*pdu)) []byte {
		p := new(pdu)
		p.bhs[0], p.bhs[1] = op, flags
		p.put(16, 7)
		p.put(20, 0xffffffff)
		p.put(24, 1)
		change(p)
		return append(p.bhs[:], p.data...)
	}
	read := request(0x01, 0xc0, func(p *pdu) { p.put(20, 4096); copy(p.bhs[32:], rw10(0x28, 0, 8)) })
	later := request(0x01, 0xa0, func(p *pdu) { p.put(24, 2); p.put(20, 512); copy(p.bhs[32:], rw10(0x2a, 0, 1)) })
	f.Add(read, later)
	f.Add(request(0x10, 0x80, func(*pdu) {}), request(0x10, 0x81, func(*pdu) {}))
	f.Add(request(0x42, 0x85, func(p *pdu) { p.put(24, 3) }), request(0x42, 0x81, func(p *pdu) { p.put(24, 9); p.put(32, 4) }))
	f.Add(request(0x46, 0x81, func(p *pdu) { p.bhs[21] = 1 }), request(0x04, 0x40, func(*pdu) {}))
	f.Add(append(append([]byte(nil), later...), request(0x05, 0x80, func(p *pdu) { p.put(20, 0) })...), read)
	// Connection recovery: a task of one connection, which is logged out for recovery and reassigned, and asked about.
	reassign := append(request(0x46, 0x82, func(*pdu) {}), request(0x42, 0x88, func(p *pdu) { p.put(16, 8); p.put(20, 7) })...)
	reassign = append(append(reassign, request(0x42, 0x89, func(p *pdu) { p.put(16, 9); p.put(20, 7) })...), 0)
	f.Add(append(append([]byte(nil), read...), later...), reassign)
	f.Add(request(0x42, 0x8b, func(*pdu) {}), append(request(0x42, 0x8c, func(*pdu) {}), 1))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		a := dial(t, portal)
		a.isid = 0x33
		a.login("MaxConnections=2", "ErrorRecoveryLevel="+strconv.Itoa(1+len(two)%2), "InitialR2T=No", "iSCSIProtocolLevel=2",
			"DefaultTime2Wait=0", "DefaultTime2Retain=1")
		b := dial(t, portal)
		b.tsih, b.cid, b.isid, b.cmdSN = a.tsih, 1, a.isid, a.cmdSN
		b.login()
		for len(one)+len(two) > 0 {
			for _, x := range []struct {
				c *client
				b *[]byte
			}{{a, &one}, {b, &two}} {
				n := min(48, len(*x.b))
				_, _ = x.c.nc.Write((*x.b)[:n])
				*x.b = (*x.b)[n:]
			}
		}
		for _, c := range []*client{a, b} {
			_ = c.nc.(interface{ CloseWrite() error }).CloseWrite()
		}
		for _, c := range []*client{a, b} {
			_ = c.nc.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.Copy(io.Discard, c.nc); err != nil {
				if e, ok := err.(interface{ Timeout() bool }); ok && e.Timeout() {
					t.Fatal("the server holds on to a connection that has ended")
				}
			}
		}
		good := dial(t, portal)
		good.isid = 0x44
		good.login().ready()
		good.good(good.do(rw10(0x28, 0, 1), 512, nil))
	})
}
