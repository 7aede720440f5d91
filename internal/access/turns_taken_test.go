package access

import (
	"fmt"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// Volumes whose records are at one site only can not be served while one of its two stores is away. As many of them as a node recovers at a
// time do not keep it from serving one that has a copy elsewhere.
func TestVolumesThatWaitForAStoreKeepNoOtherFromBeingServed(t *testing.T) {
	t.Parallel()
	n := newNodes(t, 2, 2, 300*time.Millisecond)
	x := n.list[0]
	x.serve()
	volume := func(name string, sites ...ident.SiteID) control.VolumeSpec {
		t.Helper()
		v, err := n.ctl.CreateVolume(t.Context(), control.VolumeSpec{Name: name, SizeBytes: 1 << 20, BlockSize: 512, Sites: len(sites), AtSite: 1}, sites)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	var home []control.VolumeSpec
	for i := range takeoversMax {
		home = append(home, volume(fmt.Sprint("v", i), 1))
	}
	owned := func(id ident.JournalID, serving bool) bool {
		v, ok := x.srv.Load().Volume(id)
		if !ok {
			return false
		}
		o := v.owner.Load()
		return o != nil && isClosed(o.Serving()) == serving
	}
	for _, v := range home {
		eventually(t, "it is served", func() bool { return owned(v.ID, true) })
	}
	x.stop()
	n.kill(n.seats[1])
	x.serve()
	for _, v := range home {
		eventually(t, "it is taken over, and waits for the other store", func() bool { return owned(v.ID, false) })
	}
	both := volume("both", 1, 2)
	eventually(t, "a volume that needs no store which is away is served", func() bool { return owned(both.ID, true) })
	n.start(n.seats[1])
	for _, v := range home {
		eventually(t, "with the store it is served", func() bool { return owned(v.ID, true) })
	}
}
