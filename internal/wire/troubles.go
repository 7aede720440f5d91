package wire

import (
	"time"

	"dozo/internal/ident"
)

// Troubles asks a node what has become of what it sees to be wrong, since what it answered last.
type Troubles struct {
	Self     uint64 // the asking node's instance: what was said by a former one is remembered for it
	Instance uint64 // whose answer was the last; 0: none was heard
	After    uint64 // its version
}

// TroublesReply answers Troubles.
type TroublesReply struct {
	Instance   uint64
	Version    uint64
	Whole      bool // everything that holds, not the changes: the asking node did not know this instance
	Changes    []Trouble
	Remembered []Trouble // with Whole: what was said by nodes that say no more of it
}

// Trouble is something that is wrong.
type Trouble struct {
	Reason  string
	Journal ident.JournalID // of the volume, zero where it is something else
	Of      string          // a node, a store, a site
	Over    bool            // it is not wrong any more
	Age     time.Duration   // since it holds
}

// Type implements Message.
func (*Troubles) Type() Type { return TypeTroubles }

// Type implements Message.
func (*TroublesReply) Type() Type { return TypeTroubles }

const reasonMax = 64

func (m *Troubles) walk(c *coder) {
	c.u64(&m.Self)
	c.u64(&m.Instance)
	c.u64(&m.After)
}

func (m *TroublesReply) walk(c *coder) {
	c.u64(&m.Instance)
	c.u64(&m.Version)
	c.boolean(&m.Whole)
	trouble := func(c *coder, t *Trouble) {
		c.text(&t.Reason, reasonMax)
		c.journal(&t.Journal)
		c.text(&t.Of, stateMax)
		c.boolean(&t.Over)
		c.duration(&t.Age)
	}
	list(c, &m.Changes, 2+16+2+1+8, trouble)
	list(c, &m.Remembered, 2+16+2+1+8, trouble)
}
