package initiator_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/initiator"
)

const memName = "iqn.2026-01.example.dozo:mem"

// serveMemory runs our own target on a disk in memory.
func serveMemory(t *testing.T, change func(*iscsitest.Provider, *iscsi.Config)) *iscsitest.Portal {
	t.Helper()
	p := &iscsitest.Provider{Disks: map[string][]*iscsitest.Disk{memName: {iscsitest.NewDisk("mem", 64<<20, 512)}}}
	portal, err := iscsitest.Start(p, "127.0.0.1:0", slog.New(slog.DiscardHandler), func(c *iscsi.Config) {
		if change != nil {
			change(p, c)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(portal.Close)
	return portal
}

// TestOwnTarget lets the two readings of the standard that are in this repository meet.
func TestOwnTarget(t *testing.T) {
	portal := serveMemory(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := initiator.Discover(ctx, initiator.Config{Portal: portal.Address})
	if err != nil || len(found) != 1 || found[0].Name != memName || found[0].Addresses[0].Addr != portal.Address {
		t.Fatalf("discovered %+v, %v", found, err)
	}
	for name, change := range map[string]func(*initiator.Offer){
		"default":     func(*initiator.Offer) {},
		"digests":     func(o *initiator.Offer) { o.HeaderDigest, o.DataDigest = "CRC32C", "CRC32C" },
		"r2t only":    func(o *initiator.Offer) { o.InitialR2T, o.ImmediateData = true, false },
		"unsolicited": func(o *initiator.Offer) { o.InitialR2T, o.ImmediateData = false, false },
		"small": func(o *initiator.Offer) {
			o.FirstBurstLength, o.MaxBurstLength, o.MaxRecvDataSegmentLength = 1024, 4096, 512
		},
		"connections": func(o *initiator.Offer) { o.MaxConnections = 4 },
		"level 2":     func(o *initiator.Offer) { o.ErrorRecoveryLevel = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			o := initiator.DefaultOffer()
			change(&o)
			s, err := initiator.Dial(ctx, initiator.Config{Portal: portal.Address, Target: memName, Offer: &o, Connections: o.MaxConnections})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(ctx)
			t.Logf("%d connections, %+v", s.Stats().Connections, s.Params())
			d, err := initiator.OpenDisk(ctx, s, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{512, 4096, 100 << 10, 1 << 20} {
				want, got := make([]byte, n), make([]byte, n)
				rand.Read(want)
				if err := d.WriteAt(ctx, want, 4096, true); err != nil {
					t.Fatalf("write of %d: %v", n, err)
				}
				if err := d.ReadAt(ctx, got, 4096); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("read of %d: equal %v, %v", n, bytes.Equal(got, want), err)
				}
			}
			if err := d.Unmap(ctx, 4096, 8192); err != nil {
				t.Fatal(err)
			}
			if err := d.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if r, err := s.TaskManagement(ctx, initiator.TMFLogicalUnitRst, 0, nil); err != nil || r != 0 {
				t.Fatalf("LUN reset: %d, %v", r, err)
			}
		})
	}
}

func TestOwnTargetCHAP(t *testing.T) {
	portal := serveMemory(t, func(p *iscsitest.Provider, _ *iscsi.Config) {
		p.Auth = func(iscsi.Peer, string) iscsi.Credentials {
			return iscsi.Credentials{Required: true, In: iscsi.Secret{Name: "host", Secret: "secret-of-host"}, Out: iscsi.Secret{Name: "dozo", Secret: "secret-of-dozo"}}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, tc := range []struct {
		chap initiator.CHAP
		ok   bool
	}{
		{initiator.CHAP{User: "host", Secret: "secret-of-host", TargetUser: "dozo", TargetSecret: "secret-of-dozo"}, true},
		{initiator.CHAP{User: "host", Secret: "wrong-secret!"}, false},
		{initiator.CHAP{User: "host", Secret: "secret-of-host", TargetSecret: "wrong-secret!"}, false},
		{initiator.CHAP{}, false},
	} {
		s, err := initiator.Dial(ctx, initiator.Config{Portal: portal.Address, Target: memName, CHAP: tc.chap})
		if (err == nil) != tc.ok {
			t.Fatalf("%+v: %v", tc.chap, err)
		}
		if err == nil {
			s.Close(ctx)
		} else if !errors.Is(err, initiator.ErrAuthentication) {
			t.Logf("%+v: %v", tc.chap, err)
		}
	}
}

// TestOwnTargetManyTargets: SendTargets over many text responses (RFC 7143 appendix C, 11.10.2).
func TestOwnTargetManyTargets(t *testing.T) {
	portal := serveMemory(t, func(p *iscsitest.Provider, _ *iscsi.Config) {
		for i := range 700 {
			p.Disks[fmt.Sprintf("iqn.2026-01.example.dozo:more-%03d-with-a-name-that-is-longer", i)] = nil
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := initiator.Discover(ctx, initiator.Config{Portal: portal.Address})
	if err != nil || len(found) != 701 || len(found[500].Addresses) != 1 {
		t.Fatalf("%d targets, %v", len(found), err)
	}
}
