package initiator_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/initiator"
)

// TestOwnTargetRedirects follows both kinds of redirection at login (RFC 7143 11.13.5, class 1): a permanent one is
// remembered, a temporary one is not.
func TestOwnTargetRedirects(t *testing.T) {
	there := serveMemory(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, permanent := range []bool{false, true} {
		here := serveMemory(t, func(p *iscsitest.Provider, _ *iscsi.Config) {
			p.LoginHook = func(iscsi.Peer, string) error {
				return &iscsi.RedirectError{Address: there.Address, Permanent: permanent}
			}
		})
		s, err := initiator.Dial(ctx, initiator.Config{Portal: here.Address, Target: memName, Connections: 2})
		if err != nil {
			t.Fatal(err)
		}
		st := s.Stats()
		if want := map[bool]string{false: here.Address, true: there.Address}[permanent]; st.CurrentPortal != want || st.Connections != 2 {
			t.Errorf("permanent %v: %+v, want portal %s", permanent, st, want)
		}
		if open, _ := there.Provider.Sessions(); open != 1 {
			t.Errorf("%d sessions at the portal that it was sent to", open)
		}
		if err := s.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if open, ever := here.Provider.Sessions(); open != 0 || ever != 0 {
			t.Errorf("%d sessions at the portal that redirects", ever)
		}
		deadline := time.Now().Add(time.Minute)
		for open := 1; open > 0 && time.Now().Before(deadline); open, _ = there.Provider.Sessions() {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestOwnTargetDiscoveryCHAP lists targets only for those who prove themselves, where that is wanted.
func TestOwnTargetDiscoveryCHAP(t *testing.T) {
	portal := serveMemory(t, func(p *iscsitest.Provider, _ *iscsi.Config) {
		p.Auth = func(_ iscsi.Peer, target string) iscsi.Credentials {
			return iscsi.Credentials{Required: target == "", In: iscsi.Secret{Name: "host", Secret: "secret-of-host"}, Out: iscsi.Secret{Name: "dozo", Secret: "secret-of-dozo"}}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := initiator.Discover(ctx, initiator.Config{Portal: portal.Address,
		CHAP: initiator.CHAP{User: "host", Secret: "secret-of-host", TargetUser: "dozo", TargetSecret: "secret-of-dozo"}})
	if err != nil || len(found) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	for _, chap := range []initiator.CHAP{{}, {User: "host", Secret: "wrong-secret!"}} {
		if found, err := initiator.Discover(ctx, initiator.Config{Portal: portal.Address, CHAP: chap}); !errors.Is(err, initiator.ErrAuthentication) {
			t.Errorf("%+v: %+v, %v", chap, found, err)
		}
	}
}
