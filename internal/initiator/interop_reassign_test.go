package initiator_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/initiator"
)

// TestOwnTargetReassign loses connections at recovery level 2 in the middle of everything: the session lives on, its
// tasks go on by the connection that takes the lost one's place (RFC 7143 6.3.4, 7.1.4.3, 7.2.2), no command is sent
// twice as a new one, and the data are right.
func TestOwnTargetReassign(t *testing.T) {
	portal := serveMemory(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	reset := initiator.Action{Reset: true}
	for _, tc := range []struct {
		name        string
		out         bool
		op          initiator.Opcode
		n           int
		act         initiator.Action
		unasked     bool
		connections int
	}{
		{name: "command lost with its connection", out: true, op: initiator.OpSCSICommand, n: 7, act: initiator.Action{Drop: true, Reset: true}},
		{name: "after a command", out: true, op: initiator.OpSCSICommand, n: 7, act: reset},
		{name: "in the middle of a Data-Out", out: true, op: initiator.OpDataOut, n: 5, act: initiator.Action{Truncate: 5000, Reset: true}},
		{name: "in the middle of immediate data", out: true, unasked: true, op: initiator.OpSCSICommand, n: 7, act: initiator.Action{Truncate: 3000, Reset: true}},
		{name: "in the middle of unsolicited data", out: true, unasked: true, op: initiator.OpDataOut, n: 2, act: initiator.Action{Truncate: 3000, Reset: true}},
		{name: "R2T lost", op: initiator.OpR2T, n: 3, act: initiator.Action{Drop: true, Reset: true}},
		{name: "Data-In lost", op: initiator.OpDataIn, n: 6, act: initiator.Action{Drop: true, Reset: true}},
		{name: "response lost", op: initiator.OpSCSIResponse, n: 7, act: initiator.Action{Drop: true, Reset: true}},
		{name: "one of several", op: initiator.OpDataIn, n: 9, act: initiator.Action{Drop: true, Reset: true}, connections: 3},
		{name: "one of several that writes", out: true, op: initiator.OpDataOut, n: 9, act: initiator.Action{Truncate: 777, Reset: true}, connections: 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mu sync.Mutex
			seen := 0
			hook := func(_ uint16, p *initiator.PDU) initiator.Action {
				mu.Lock()
				defer mu.Unlock()
				if p.BHS.Op() != tc.op {
					return initiator.Action{}
				}
				if seen++; seen != tc.n {
					return initiator.Action{}
				}
				return tc.act
			}
			o := initiator.DefaultOffer()
			o.ErrorRecoveryLevel, o.DataDigest = 2, "CRC32C"
			o.InitialR2T, o.ImmediateData = !tc.unasked, tc.unasked
			o.MaxBurstLength, o.FirstBurstLength, o.MaxRecvDataSegmentLength = 64<<10, 64<<10, 16<<10
			cfg := initiator.Config{Portal: portal.Address, Target: memName, Offer: &o, Connections: max(1, tc.connections),
				ReconnectTimeout: 20 * time.Second}
			if tc.out {
				cfg.Hooks.Out = hook
			} else {
				cfg.Hooks.In = hook
			}
			o.MaxConnections = max(1, tc.connections)
			s, err := initiator.Dial(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(ctx)
			if n := s.Params().ErrorRecoveryLevel; n != 2 {
				t.Fatalf("level %d", n)
			}
			d, err := initiator.OpenDisk(ctx, s, 0)
			if err != nil {
				t.Fatal(err)
			}
			before := sessionID(onlySession(t, portal.Server))
			var wg sync.WaitGroup
			for w := range 4 {
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
			if st := s.Stats(); st.Reconnects != 1 {
				t.Errorf("%+v", st)
			}
			if after := sessionID(onlySession(t, portal.Server)); after != before {
				t.Errorf("sessions %s, before %s: it logged in anew", after, before)
			}
		})
	}
}

// onlySession is the one session that there is, once others that were logged out have gone: that may take a moment.
func onlySession(t *testing.T, srv *iscsi.Server) *iscsi.Session {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		list := srv.Sessions()
		if len(list) == 1 {
			return list[0]
		}
		if time.Now().After(end) {
			t.Fatalf("%d sessions", len(list))
		}
	}
}

// sessionID tells a session from one that took its place.
func sessionID(s *iscsi.Session) string {
	i := s.Info()
	return fmt.Sprintf("%d of %s", i.TSIH, i.Opened)
}
