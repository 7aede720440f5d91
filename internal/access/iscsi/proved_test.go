package iscsi_test

import (
	"encoding/binary"
	"testing"
)

// sameInRecords starts a WRITE SAME of a pattern that is longer than a record.
func (c *client) sameInRecords() (itt uint32) {
	cdb := make([]byte, 16)
	cdb[0] = 0x93
	binary.BigEndian.PutUint32(cdb[10:], 8<<11)
	itt, _ = c.start(cdb, 0, pattern(512, 3))
	return itt
}

// TestACopyGoesByWhatIsProved: rule R9 of commands that take long. Their later calls are stamped with what the initiator has proved to have
// received since, and not with the present: by a path that it has given up nothing is proved any more.
func TestACopyGoesByWhatIsProved(t *testing.T) { goesByWhatIsProved(t, (*client).copyInForeground) }

func TestAWriteSameGoesByWhatIsProved(t *testing.T) { goesByWhatIsProved(t, (*client).sameInRecords) }

func goesByWhatIsProved(t *testing.T, begin func(*client) uint32) {
	portal, d := serve(t, nil, nil)
	last := stampsSeen(d)
	portal.Provider.Tick() // 1
	c := dial(t, portal).login().ready()
	c.nop(5, 0xffffffff, nil)
	c.must(c.recv())
	for _, x := range []struct {
		echo bool
		want uint64
	}{{false, 1}, {true, 3}} {
		release := d.Hold()
		itt := begin(c)
		c.quiet("held")
		portal.Provider.Tick()
		if x.echo { // what is sent now is acknowledged by what comes next
			c.quiet("held")
			c.quiet("held")
		}
		if d.Pending() == 0 {
			t.Fatal("the command has not begun")
		}
		release()
		c.good(c.finish(itt, pattern(512, 3)))
		if r := last(); r.Stamp.Tick != x.want {
			t.Errorf("stamp %+v, want %d", r.Stamp, x.want)
		}
	}
}
