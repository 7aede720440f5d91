package access

import (
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A checkpoint's last segment is sealed after its root has been written, so no checkpoint says that it has ended before the next one. An
// owner that took over knows it by the replicas that are sealed, and lets it go like any other.
func TestSegmentsOfAFormerOwnersCheckpointGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	var former []ident.SegmentID
	for range 3 {
		o := c.own(v)
		for range 3 {
			if err := writeAt(o, 0, make([]byte, 64<<10), false); err != nil {
				t.Fatal(err)
			}
			if err := simple(o, wire.OpFlush, 0, 0); err != nil {
				t.Fatal(err)
			}
			if err := o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "what former owners' checkpoints took is retired and gone", func() bool {
			left := 0
			o.ask(func() {
				o.dropSome()
				for _, id := range former {
					if o.segs[id] != nil {
						left++
					}
				}
			})
			return left == 0
		})
		o.ask(func() {
			former = former[:0]
			for id := range o.segs {
				if id.IsCheckpoint() {
					former = append(former, id)
				}
			}
		})
		if len(former) == 0 {
			t.Fatal("no checkpoint is there")
		}
		o.Close()
	}
}
