package access

import (
	"bytes"
	"testing"
	"time"

	"dozo/internal/control"
)

// TestChoresFindTheirNumber: more at a time while stores are quick, half as many once one is slow, and what is not urgent
// leaves half of the turns to what is.
func TestChoresFindTheirNumber(t *testing.T) {
	var now int64 = int64(time.Hour)
	c := NewChores(func() int64 { return now })
	take := func(urgent bool) (n int) {
		for c.begin(urgent) {
			n++
		}
		return n
	}
	give := func(n int) {
		for range n {
			c.end()
		}
	}
	if n := take(false); n != choresFirst/2 {
		t.Errorf("%d turns for what is not urgent, want %d", n, choresFirst/2)
	}
	if n := take(true); n != choresFirst-choresFirst/2 {
		t.Errorf("%d more turns for what is urgent, want %d", n, choresFirst-choresFirst/2)
	}
	give(choresFirst)
	for range 2 * choresMax {
		c.felt(time.Millisecond)
	}
	n := take(true)
	if give(n); n != choresMax {
		t.Errorf("%d turns with quick stores, want %d", n, choresMax)
	}
	for range 5 { // all that are under way feel the same crowd
		c.felt(time.Second)
	}
	n = take(true)
	if give(n); n != choresMax/2 {
		t.Errorf("%d turns after a slow store, want %d", n, choresMax/2)
	}
	for range 10 {
		now += int64(choresPause) + 1
		c.felt(time.Second)
	}
	n = take(true)
	if give(n); n != choresMin {
		t.Errorf("%d turns with slow stores, want %d", n, choresMin)
	}
	var none *Chores
	if !none.begin(false) {
		t.Error("no limit, and no turn")
	}
	none.felt(time.Second)
	none.end()
}

// TestAnIdleVolumeComesToRest: a checkpoint is announced by a record, and others have segments retired; that must not
// bring about the next one, each minute for ever and for each volume. What was written is covered all the same, as a whole
// segment.
func TestAnIdleVolumeComesToRest(t *testing.T) {
	c := newCluster(t, 1, 3)
	c.limit.CheckpointInterval = time.Nanosecond
	env := c.env()
	env.Chores = NewChores(env.Clock)
	v := c.volume(1<<20, 1, control.Replicated)
	o, err := TakeOver(t.Context(), env, v)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	<-o.Serving()
	data := bytes.Repeat([]byte("datum..."), 512)
	if err := writeAt(o, 0, data, true); err != nil {
		t.Fatal(err)
	}
	made := func() (n uint32) { o.ask(func() { n = o.cp.number }); return n }
	look := func() {
		o.ask(func() {
			o.cp.lastingAt -= 2 * idleSealAfter
			o.maybeCheckpoint(time.Duration(o.env.Clock()))
		})
		eventually(t, "a round of housekeeping ends", func() (done bool) {
			o.ask(func() {
				o.dropSome()
				o.w.Tick(time.Duration(o.env.Clock()))
				o.keepChore(time.Duration(o.env.Clock()))
				done = !o.cp.running && o.w.Settled() && !o.chore.held
			})
			return done
		})
	}
	look()
	first := made()
	if first == 0 {
		t.Fatal("no checkpoint was made")
	}
	o.ask(func() {
		for _, s := range o.order {
			if s.lasting && !o.covered(s) {
				t.Errorf("segment %s ends at %d and is not covered by the checkpoint at %d", s.id, s.last.Seq, o.cp.lastSeq)
			}
		}
	})
	look() // what the first brought with it: segments go
	rest := made()
	for range 5 {
		look()
	}
	if n := made(); n != rest {
		t.Errorf("%d checkpoints after %d, and nothing was written", n, rest)
	}
	if err := writeAt(o, 4096, data, true); err != nil {
		t.Fatal(err)
	}
	look()
	if n := made(); n == rest {
		t.Error("no checkpoint after another write")
	}
	if got, err := readAt(o, 0, 8192); err != nil || !bytes.Equal(got[:4096], data) || !bytes.Equal(got[4096:], data) {
		t.Errorf("it does not read as written: %v", err)
	}
}
