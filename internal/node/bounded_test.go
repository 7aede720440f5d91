package node

import (
	"log/slog"
	"testing"
	"time"

	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// What comes from other sites is answered though a disk hangs. Who is near has a clock of his own, and no other in between.
func TestOtherSitesWriteToABoundedStore(t *testing.T) {
	st, err := core.Open(core.Options{FS: vfs.NewMem(1 << 30), Dir: "store", Create: true, Boot: ident.BootID{1}, FailMarkDir: "marks"})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	far := core.NewBounded(st, time.Minute, slog.Default())
	defer far.Close()
	h := handler{&Node{stores: map[ident.StoreID]*core.Store{st.ID(): st}, bounded: map[ident.StoreID]*core.Bounded{st.ID(): far}}}
	for class := wire.ClassControl; class <= wire.ClassMax; class++ {
		if got := h.Store(st.ID(), class); (class == wire.ClassBulk) != (got == far) || class != wire.ClassBulk && got != st {
			t.Errorf("by a connection of class %s: %T", class, got)
		}
		if got := h.Store(ident.NewStoreID(), class); got != nil {
			t.Errorf("a store that is not here: %T", got)
		}
	}
}
