package access

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// TestNewVolumesWaitForTheirUse: beyond a few, volumes that were made and not used have no owner; whoever uses one gets it one,
// at the volume's own site by way of whichever node, and at another if nobody is there.
func TestNewVolumesWaitForTheirUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(t, 2, 2, time.Second)
		c.limit.Warm = 2
		var list []control.VolumeSpec
		for i := range 12 {
			v, err := c.ctl.CreateVolume(t.Context(), control.VolumeSpec{Name: fmt.Sprintf("v%d", i), SizeBytes: 1 << 20, Sites: 2, AtSite: 1}, []ident.SiteID{1, 2})
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, v)
		}
		for _, x := range c.list {
			x.serve()
		}
		owner := func(v control.VolumeSpec) ident.NodeName {
			st, _, _ := c.ctl.Journal(v.ID)
			return st.Owner
		}
		fresh := func() (none []control.VolumeSpec) {
			for _, v := range list {
				if owner(v) == "" {
					none = append(none, v)
				}
			}
			return none
		}
		time.Sleep(20 * time.Second)
		// Which node's turn a volume is follows from its random ID: one may have fewer than it would take.
		left := fresh()
		if n := len(list) - len(left); n < 2 || n > 4 {
			t.Fatalf("two nodes that take two each have taken %d", n)
		}
		// Where some are deleted the others do not take their turns.
		for i, v := range list {
			if owner(v) == "" {
				continue
			}
			if _, err := c.ctl.DeleteVolume(t.Context(), v.ID); err != nil {
				t.Fatal(err)
			}
			if _, ok := c.ctl.VolumeByName("", list[i].Name); ok {
				t.Fatal("it is still there")
			}
		}
		time.Sleep(20 * time.Second)
		list = left
		if n := len(fresh()); n != len(left) {
			t.Errorf("%d of %d have no owner after others were deleted", n, len(left))
		}
		use := func(x *node, v control.VolumeSpec) {
			t.Helper()
			began := time.Now()
			if _, err := through(x, v, wire.OpWrite, 0, make([]byte, 4096), 0); err != nil {
				t.Errorf("a write by way of %s: %v", x.name, err)
			}
			if owner(v) == "" {
				t.Errorf("%s is written, and has no owner", v.Name)
			}
			t.Logf("by way of %s: owned by %s after %v", x.name, owner(v), time.Since(began))
		}
		use(c.list[0], left[0])
		if owner(left[0]) != c.list[0].name {
			t.Errorf("used at %s, owned by %s", c.list[0].name, owner(left[0]))
		}
		use(c.list[2], left[1])
		if o := owner(left[1]); o != c.list[0].name && o != c.list[1].name {
			t.Errorf("used from another site, owned by %s", o)
		}
		// Who asks for a hand-over, say, needs no session.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.list[3].srv.Load().Want(ctx, left[2].ID); err != nil || owner(left[2]) == "" {
			t.Errorf("wanted: %v, owned by %q", err, owner(left[2]))
		}
		if n := len(fresh()); n != len(left)-3 {
			t.Errorf("%d have no owner, want %d", n, len(left)-3)
		}
		// Nobody is at their site any more. Its stores are: data can go there.
		c.list[0].stop()
		c.list[1].stop()
		use(c.list[2], left[3])
		if o := owner(left[3]); o != c.list[2].name {
			t.Errorf("used where nobody else is, owned by %q", o)
		}
		c.stopAll()
	})
}
