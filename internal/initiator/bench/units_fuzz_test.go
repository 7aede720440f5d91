package bench

import "testing"

// FuzzParseWorkload: a load that is taken is written back as itself, and can be run.
func FuzzParseWorkload(f *testing.F) {
	for _, s := range []string{"randread:4K:1", "write:1M:4", "randrw70:8k:16", "rw101:4k:1", "read:0:1", "read:4k:-1", "randrw:4k:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		w, err := ParseWorkload(text)
		if err != nil {
			return
		}
		if again, err := ParseWorkload(w.String()); err != nil || again != w {
			t.Errorf("%q is %+v, written %s, which is %+v, %v", text, w, w, again, err)
		}
		if w.Depth < 1 || w.BlockSize < 512 || w.ReadPercent < 0 || w.ReadPercent > 100 {
			t.Errorf("%q is %+v", text, w)
		}
	})
}
