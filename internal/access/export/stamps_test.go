package export

import (
	"testing"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/scsi"
	"dozo/internal/wire"
)

// TestStampBook: a page is never newer than what was told, and old ones are forgotten or known as older ones.
func TestStampBook(t *testing.T) {
	b := newStampBook()
	v := new(access.Volume)
	b.volumes = []*access.Volume{v}
	b.page, b.at = stampCoarse, time.Now()
	tick := func(page uint64) { // as now does, with stamps of our own
		b.page = page
		p := &b.pages[page%stampPages]
		*p = append((*p)[:0], wire.Stamp{Tick: page * 10})
		if page%stampCoarse == 0 {
			c := &b.coarse[page/stampCoarse%stampCoarsePages]
			*c = append((*c)[:0], *p...)
		}
	}
	const last = stampCoarse * (stampCoarsePages + 10)
	for page := uint64(stampCoarse); page <= last; page++ {
		tick(page)
	}
	for _, x := range []struct{ page, want uint64 }{
		{last, last * 10},
		{last - 7, (last - 7) * 10},
		{last - stampPages, (last - 2*stampCoarse) * 10}, // the coarse page before it
		{last - 3*stampCoarse + 1, (last - 3*stampCoarse) * 10},
		{last + 1, 0}, // was never told
		{5, 0},
		{0, 0},
		{stampCoarse, 0}, // too long ago
	} {
		if got := b.stamp(v, scsi.Stamp{Tick: x.page}); got.Tick != x.want {
			t.Errorf("page %d of %d: tick %d, want %d", x.page, last, got.Tick, x.want)
		}
	}
	if got := b.stamp(new(access.Volume), scsi.Stamp{Tick: last}); got != (wire.Stamp{}) {
		t.Errorf("a volume that is not in the book: %+v", got)
	}
	for i := range uint64(3 * sentKept) {
		b.went(scsi.RequestID{Conn: 1, Seq: i, Part: 0}, v)
	}
	if b.volumeOf(scsi.RequestID{Conn: 1, Seq: 3*sentKept - 1}) != v || b.volumeOf(scsi.RequestID{Conn: 1, Seq: 2*sentKept - 1}) != nil || b.volumeOf(scsi.RequestID{}) != nil {
		t.Error("which volume a command went to")
	}
}
