package control

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"dozo/internal/ident"
)

// TestSharedVolumesFollow: the lists that are kept in order change with each volume, and are at any time what a look at
// all of them would give; those that were given out do not change.
func TestSharedVolumesFollow(t *testing.T) {
	c := newCache()
	cl := &Client{cache: c}
	rng := rand.New(rand.NewPCG(1, 2))
	var ids []ident.JournalID
	for range 20 {
		ids = append(ids, ident.NewJournalID())
	}
	now := time.Now().UTC()
	var given []*VolumeSpec
	var copied []VolumeSpec
	for rev := Rev(1); rev < 2000; rev++ {
		var list []change
		for range 1 + rng.IntN(6) { // at times one twice, as in what a watch has gathered
			id := ids[rng.IntN(len(ids))]
			ch := change{pair: pair{key: keyVolume(id), mod: rev}}
			switch rng.IntN(4) {
			case 0:
				ch.deleted = true
			case 1:
				ch.value = []byte("{") // what can not be read leaves what was known
			default:
				v := VolumeSpec{ID: id, Tenant: "default", Name: fmt.Sprint("v", rng.IntN(1000), "-", id), SizeBytes: int64(rev) << 20}
				if rng.IntN(3) == 0 {
					v.Deleted = &now
				}
				ch.value = encode(v, "")
			}
			list = append(list, ch)
		}
		c.apply(list, rev)
		live, dead := cl.SharedVolumes()
		want := newVolumeLists(c.mu.volumes)
		same := func(a, b *VolumeSpec) bool { return a.ID == b.ID && a.Name == b.Name && a.SizeBytes == b.SizeBytes }
		if !slices.EqualFunc(live, want.live, same) || !slices.EqualFunc(dead, want.dead, same) {
			t.Fatalf("after revision %d: %d volumes and %d tombstones, want %d and %d", rev, len(live), len(dead), len(want.live), len(want.dead))
		}
		if rev == 500 {
			given, copied = live, copies(live)
		}
	}
	for i := range given {
		if given[i].Name != copied[i].Name || given[i].SizeBytes != copied[i].SizeBytes {
			t.Fatalf("a list that was given out has changed at %d", i)
		}
	}
}
