package iscsi_test

import (
	"encoding/binary"
	"testing"
)

// TestAnAbortWaitsForACopy: rule R9. The calls of a third-party copy have IDs of their own, which nobody refuses at the owner of the
// volume, so whoever is told that it is aborted must not find it at work.
func TestAnAbortWaitsForACopy(t *testing.T) {
	list := make([]byte, 16+28)
	list[11] = 28
	segment := list[16:]
	segment[0], segment[3] = 2, 24
	binary.BigEndian.PutUint32(segment[4:], 0xffffffff) // from the unit itself to itself
	segment[11], segment[27] = 8, 64
	cdb := make([]byte, 16)
	cdb[0], cdb[13] = 0x83, byte(len(list))
	for _, x := range []struct {
		what string
		end  func(c *client, itt uint32)
		keys []string
	}{
		{"ABORT TASK", func(c *client, itt uint32) { c.tmf(1, itt) }, nil},
		{"ABORT TASK SET", func(c *client, _ uint32) { c.tmf(2, 0xffffffff) }, nil},
		{"CLEAR TASK SET", func(c *client, _ uint32) { c.tmf(4, 0xffffffff) }, nil},
		{"LOGICAL UNIT RESET", func(c *client, _ uint32) { c.tmf(5, 0xffffffff) }, nil},
		{"TARGET WARM RESET", func(c *client, _ uint32) { c.tmf(6, 0xffffffff) }, nil},
		{"I_T NEXUS RESET", func(c *client, _ uint32) { c.tmf(11, 0xffffffff) }, []string{"iSCSIProtocolLevel=2"}},
	} {
		t.Run(x.what, func(t *testing.T) {
			portal, d := serve(t, nil, nil)
			c := dial(t, portal).login(x.keys...).ready()
			release := d.Hold()
			itt, _ := c.start(cdb, 0, list)
			x.end(c, itt)
			c.nop(5, 0xffffffff, nil)
			if p := c.must(c.recv()); p.op() != 0x20 {
				t.Errorf("opcode %#x while the copy has something under way", p.op())
			}
			if d.Pending() == 0 {
				t.Fatal("the copy has not begun")
			}
			release()
			if p := c.must(c.recv()); p.op() != 0x22 || p.bhs[2] != 0 {
				t.Errorf("opcode %#x, response %d", p.op(), p.bhs[2])
			}
		})
	}
}
