package initiator_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/initiator"
)

// TestOwnTargetRecovery loses and damages PDUs in both directions at recovery level 1: nothing ends but what the
// RFC ends (RFC 7143 7.8, 7.9, 11.16), nobody logs in again, and the data are right.
func TestOwnTargetRecovery(t *testing.T) {
	portal := serveMemory(t, func(_ *iscsitest.Provider, c *iscsi.Config) { c.PingEvery = 50 * time.Millisecond })
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for name, tc := range map[string]struct {
		out      bool
		op       initiator.Opcode
		n        int
		act      initiator.Action
		unasked  bool
		parallel int
	}{
		"Data-In lost":                   {op: initiator.OpDataIn, n: 6, act: initiator.Action{Drop: true}},
		"Data-In damaged":                {op: initiator.OpDataIn, n: 6, act: initiator.Action{BreakDataDigest: true}},
		"last Data-In lost":              {op: initiator.OpDataIn, n: 8, act: initiator.Action{Drop: true}},
		"response lost":                  {op: initiator.OpSCSIResponse, n: 7, act: initiator.Action{Drop: true}},
		"R2T lost":                       {op: initiator.OpR2T, n: 2, act: initiator.Action{Drop: true}},
		"Data-Out lost":                  {out: true, op: initiator.OpDataOut, n: 2, act: initiator.Action{Drop: true}},
		"Data-Out damaged":               {out: true, op: initiator.OpDataOut, n: 3, act: initiator.Action{BreakDataDigest: true}},
		"last Data-Out of a burst lost":  {out: true, op: initiator.OpDataOut, n: 4, act: initiator.Action{Drop: true}},
		"unsolicited Data-Out lost":      {out: true, unasked: true, op: initiator.OpDataOut, n: 1, act: initiator.Action{Drop: true}},
		"unsolicited Data-Out damaged":   {out: true, unasked: true, op: initiator.OpDataOut, n: 2, act: initiator.Action{BreakDataDigest: true}},
		"command lost":                   {out: true, op: initiator.OpSCSICommand, n: 6, act: initiator.Action{Drop: true}},
		"command lost among others":      {out: true, op: initiator.OpSCSICommand, n: 9, act: initiator.Action{Drop: true}, parallel: 8},
		"immediate data damaged":         {out: true, unasked: true, op: initiator.OpSCSICommand, n: 1, act: initiator.Action{BreakDataDigest: true}},
		"Data-Out damaged, many at once": {out: true, op: initiator.OpDataOut, n: 9, act: initiator.Action{BreakDataDigest: true}, parallel: 8},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			seen := 0
			hook := func(_ uint16, p *initiator.PDU) initiator.Action {
				mu.Lock()
				defer mu.Unlock()
				if p.BHS.Op() != tc.op || tc.act.BreakDataDigest && len(p.Data) == 0 {
					return initiator.Action{}
				}
				if seen++; seen != tc.n {
					return initiator.Action{}
				}
				return tc.act
			}
			o := initiator.DefaultOffer()
			o.DataDigest, o.ErrorRecoveryLevel = "CRC32C", 1
			o.InitialR2T, o.ImmediateData = !tc.unasked, tc.unasked
			o.MaxBurstLength, o.FirstBurstLength, o.MaxRecvDataSegmentLength = 64<<10, 64<<10, 16<<10
			cfg := initiator.Config{Portal: portal.Address, Target: memName, Offer: &o, RetransmitAfter: 100 * time.Millisecond,
				NopInterval: 200 * time.Millisecond}
			if tc.out {
				cfg.Hooks.Out = hook
			} else {
				cfg.Hooks.In = hook
			}
			s, err := initiator.Dial(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(ctx)
			if n := s.Params().ErrorRecoveryLevel; n != 1 {
				t.Fatalf("level %d", n)
			}
			d, err := initiator.OpenDisk(ctx, s, 0)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for w := range max(1, tc.parallel) {
				wg.Go(func() {
					want, got := make([]byte, 200<<10), make([]byte, 200<<10)
					rand.Read(want)
					if err := d.WriteAt(ctx, want, int64(w)<<20, false); err != nil {
						t.Errorf("write: %v", err)
						return
					}
					if err := d.ReadAt(ctx, got, int64(w)<<20); err != nil || !bytes.Equal(got, want) {
						t.Errorf("read: equal %v, %v", bytes.Equal(got, want), err)
					}
				})
			}
			wg.Wait()
			mu.Lock()
			defer mu.Unlock()
			if seen < tc.n {
				t.Errorf("the fault never happened: %d PDUs", seen)
			}
			if st := s.Stats(); st.Reconnects != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}
