//go:build e2e

package initiator

import (
	"bytes"
	"context"
	"crypto/rand"
	"testing"
	"time"

	"dozo/internal/initiator/tgttest"
)

func TestTgt(t *testing.T) {
	tgt := tgttest.Start(t, 64<<20)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()

	found, err := Discover(ctx, Config{Portal: tgt.Portal})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Name != tgt.Target {
		t.Fatalf("discovered %+v", found)
	}
	for _, kv := range []KeyValue{{"HeaderDigest", "CRC32C"}, {"DataDigest", "CRC32C"}, {"InitialR2T", "No"},
		{"MaxRecvDataSegmentLength", "262144"}, {"MaxOutstandingR2T", "8"}, {"MaxBurstLength", "1048576"}} {
		tgt.Admin(t, "--op", "update", "--mode", "target", "--tid", "1", "-n", kv.Key, "-v", kv.Value)
	}
	base := DefaultOffer()
	offers := map[string]func(*Offer){
		"default":     func(*Offer) {},
		"digests":     func(o *Offer) { o.HeaderDigest, o.DataDigest = "CRC32C", "CRC32C" },
		"r2t only":    func(o *Offer) { o.InitialR2T, o.ImmediateData = true, false },
		"small":       func(o *Offer) { o.FirstBurstLength, o.MaxBurstLength, o.MaxRecvDataSegmentLength = 4096, 16384, 4096 },
		"unsolicited": func(o *Offer) { o.InitialR2T, o.ImmediateData = false, false },
	}
	for name, change := range offers {
		t.Run(name, func(t *testing.T) {
			o := base
			change(&o)
			s, err := Dial(ctx, Config{Portal: tgt.Portal, Target: tgt.Target, Offer: &o, LoginTimeout: time.Minute, NopInterval: -1})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(ctx)
			t.Logf("%+v", s.Params())
			d, err := OpenDisk(ctx, s, FlatLUN(1))
			if err != nil {
				t.Fatal(err)
			}
			if d.Size() != 64<<20 {
				t.Fatalf("size %d", d.Size())
			}
			for _, n := range []int{512, 4096, 65536, 1 << 20, 4 << 20} {
				want := make([]byte, n)
				rand.Read(want)
				if err := d.WriteAt(ctx, want, int64(n), false); err != nil {
					t.Fatalf("write of %d: %v", n, err)
				}
				got := make([]byte, n)
				if err := d.ReadAt(ctx, got, int64(n)); err != nil {
					t.Fatalf("read of %d: %v", n, err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("%d bytes differ", n)
				}
			}
			if err := d.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Ping(ctx, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			if r, err := s.TaskManagement(ctx, TMFLogicalUnitRst, d.LUN, nil); err != nil || r != 0 {
				t.Fatalf("LUN reset: %d %v", r, err)
			}
		})
	}
}
