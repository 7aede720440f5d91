package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"dozo/internal/ident"
)

// While a cluster is upgraded, nodes of two versions share one control store. A value with a field that a node does not
// know is refused by it, since writing it back would drop the field. So each node says which level of the stored form it
// knows, under a key of its own that older nodes pass over, and nobody writes what the oldest node can not read: fields
// that came later and have their default are left out, and a change that needs another value is refused until all nodes
// are upgraded.

// Level counts the stored form's additions since FormatVersion was last raised.
//
//	1  first release
//	2  volumes have an ownership policy; nodes and stores can be leaving; journals of a control store that was restored, and
//	   takeovers by force. Its core servers take records that say when they were made, and its owners records about pins:
//	   see LevelRecords
//	3  volumes say how paths by way of other sites are, where initiators are sent, and to which hosts they are mapped
//	4  credentials for discovery
//	5  journals say whether their owners stop when they are cut off; nodes that are to become voters
//	6  records of copies by reference: see LevelCopies
//	7  volumes say how many other sites hold what is acknowledged, and journals since when
//	8  a hand-over to another site changes the key before the owner stops: see LevelHandEarly
//	9  journals that were taken over by force say from where: see LevelBegun
//	10  records that a port is refused, and ports that were let go on: see LevelPortBars
//	11  an operator has agreed to the loss of what was stable: see LevelLoss
//	12  volumes say that they are clones of which only a part is there: an older node would let initiators use them
//	13 tokens of third-party copies that are told by their bytes: see LevelTokens
const Level = 13

// LevelRecords is the level from which on nodes take records with a time of day in the header, which the first release had
// as reserved bytes, and records of pins, of which its owners knew nothing (docs/format.md).
const LevelRecords = 2

// LevelStops is the level from which on nodes can read that an owner stops when it is cut off.
const LevelStops = 5

// LevelCopies is the level from which on nodes take records of copies by reference, and know the command for them.
const LevelCopies = 6

// LevelAck is the level from which on owners wait for other sites before they acknowledge, where a volume asks for it.
const LevelAck = 7

// LevelHandEarly is the level from which on takers wait for the last records themselves, and pass a journal on to the site at
// which it ends: so its key can be changed while the old owner still serves (R10).
const LevelHandEarly = 8

// LevelBegun is the level from which on takers by force say in the journal's key after which record they begin. While there are
// older nodes they do not, and who comes after a taker that died may go on from less, as it was before.
const LevelBegun = 9

// LevelPortBars is the level from which on owners take records that refuse a port which sends commands without a login, and read in a
// checkpoint that an operator has let a port go on. While there are older nodes such a port is refused, and nothing is written of it.
const LevelPortBars = 10

// LevelLoss is the level from which on takers go on below what was stable where an operator has agreed to that though all stores answer.
const LevelLoss = 11

// LevelTokens is the level from which on owners know what bytes a token of a third-party copy has, and why one has ended. While there
// are older nodes tokens are made as those know them.
const LevelTokens = 13

// levelLost is the level from which on nodes know of stores that were declared lost.
const levelLost = 2

// LevelVoting is the level from which on nodes become voters when they are told to (SetVoting).
const LevelVoting = 5

// ErrOlderNodes: the change needs all nodes to be upgraded first.
var ErrOlderNodes = errors.New("there are nodes of an older version, which can not read it: upgrade them first")

// nodeLevel is the value of levels/<node>. It counts only for the very version of the program that wrote it: a node that
// was downgraded leaves it behind.
type nodeLevel struct {
	Level   int    `json:"level"`
	Version string `json:"version"`
}

// laterFields are the fields of values below a directory that came after level 1, with the level and the value that means
// the same as leaving it out.
var laterFields = map[string]map[string]laterField{
	dirVolumes: {"ownership": {2, `"follow"`}, "alua_remote": {3, `"nonoptimized"`}, "redirect": {3, `"off"`}, "maps": {3, `[]`}, "ack": {7, `0`}, "cloning": {12, `null`}},
	dirNodes:   {"leaving": {2, `false`}, "voting": {5, `false`}},
	dirJournals: {"unheard": {2, `false`}, "wide": {2, `false`}, "unproven": {2, `false`}, "forced": {2, `null`}, "stops": {5, `false`},
		"ack": {7, `0`}, "ack_since": {7, `0`}, "hear": {7, `0`}, "from": {7, `0`}, "silent": {7, `false`}, "handed": {8, `false`},
		"begun": {9, `null`}, "last": {9, `0`}, "loss": {11, `false`}},
}

type laterField struct {
	level   int
	neutral string
}

// Level implements Store.
func (c *Client) Level() int { return c.level() }

// level is what every registered node knows.
func (c *Client) level() int {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	least := Level
	for name, n := range c.cache.mu.nodes {
		if n.rev == 0 {
			// It is only remembered of a former control store, and may be gone for good: nothing could be written before the
			// control store is settled, nor could that be. A node that is there registers before its stores say what they hold.
			continue
		}
		l := c.cache.mu.levels[name]
		if l.Version != n.v.Version || l.Level < 1 {
			l.Level = 1
		}
		least = min(least, l.Level)
	}
	return least
}

// OldestLevel says what every registered node knows of the stored form, and the nodes that know less than this program.
func (c *Client) OldestLevel() (least int, older []ident.NodeName) {
	least = c.level()
	if least == Level {
		return least, nil
	}
	for _, n := range c.Nodes() {
		c.cache.mu.RLock()
		l, registered := c.cache.mu.levels[n.Name], c.cache.mu.nodes[n.Name].rev != 0
		c.cache.mu.RUnlock()
		if !registered {
			continue
		}
		if l.Version != n.Version || l.Level < Level {
			older = append(older, n.Name)
		}
	}
	return least, older
}

// levelled is the seam with what older nodes can't read left out.
type levelled struct {
	kv
	c *Client
}

func (k levelled) commit(ctx context.Context, t txn) (txnResult, error) {
	level := k.c.level()
	if level >= Level {
		return k.kv.commit(ctx, t)
	}
	ops := make([]op, len(t.ops))
	copy(ops, t.ops)
	for i, o := range ops {
		if o.delete {
			continue
		}
		value, err := lower(o.key, o.value, level)
		if err != nil {
			return txnResult{}, permanentError{err}
		}
		ops[i].value = value
	}
	t.ops = ops
	return k.kv.commit(ctx, t)
}

// lower gives a value as nodes of a level can read it.
func lower(key string, value []byte, level int) ([]byte, error) {
	dir, _ := splitDir(key)
	later := laterFields[dir]
	touched := false
	for name, f := range later {
		touched = touched || f.level > level && bytes.Contains(value, []byte(`"`+name+`"`))
	}
	if !touched {
		return value, nil
	}
	var e envelope
	if err := json.Unmarshal(value, &e); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(e.Spec))
	d.UseNumber() // sizes are beyond what a float has
	var spec any
	if err := d.Decode(&spec); err != nil {
		return nil, err
	}
	if err := dropLater(spec, later, level); err != nil {
		return nil, fmt.Errorf("control store: %s: %w", strings.TrimSuffix(key, "/"), err)
	}
	body, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	e.Spec = body
	return json.Marshal(e)
}

// dropLater takes fields away, at any depth but among names that users choose.
func dropLater(v any, later map[string]laterField, level int) error {
	switch v := v.(type) {
	case map[string]any:
		for name, x := range v {
			if f, ok := later[name]; ok && f.level > level {
				text, err := json.Marshal(x)
				if err != nil {
					return err
				}
				if string(text) != f.neutral {
					return fmt.Errorf("%s %s: %w", name, text, ErrOlderNodes)
				}
				delete(v, name)
				continue
			}
			if name != "labels" {
				if err := dropLater(x, later, level); err != nil {
					return err
				}
			}
		}
	case []any:
		for _, x := range v {
			if err := dropLater(x, later, level); err != nil {
				return err
			}
		}
	}
	return nil
}
