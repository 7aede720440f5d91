package initiator_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/initiator"
)

// TestCHAPDigests proves initiator and target to each other with every digest, in both directions, and that the
// target says afterwards what was used.
func TestCHAPDigests(t *testing.T) {
	const hostSecret, targetSecret = "host secret 123", "dozo secret 456"
	portal := serveMemory(t, func(p *iscsitest.Provider, _ *iscsi.Config) {
		p.Auth = func(iscsi.Peer, string) iscsi.Credentials {
			return iscsi.Credentials{Required: true, In: iscsi.Secret{Name: "host", Secret: hostSecret}, Out: iscsi.Secret{Name: "dozo", Secret: targetSecret}}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dial := func(c initiator.CHAP) (*initiator.Session, error) {
		return initiator.Dial(ctx, initiator.Config{Portal: portal.Address, Target: memName, CHAP: c})
	}
	for number, name := range map[int]string{5: "MD5", 6: "SHA-1", 7: "SHA-256", 8: "SHA3-256"} {
		good := initiator.CHAP{User: "host", Secret: hostSecret, Digests: []int{number}}
		mutual := good
		mutual.TargetUser, mutual.TargetSecret = "dozo", targetSecret
		for method, chap := range map[string]initiator.CHAP{"chap": good, "mutual": mutual} {
			t.Run(fmt.Sprint(name, " ", method), func(t *testing.T) {
				s, err := dial(chap)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close(ctx)
				if _, err := initiator.OpenDisk(ctx, s, 0); err != nil {
					t.Fatal(err)
				}
				if got := onlySession(t, portal.Server).Info().Auth; got != (iscsi.Auth{Method: method, Digest: name}) {
					t.Errorf("the target says %+v", got)
				}
			})
		}
		// A wrong secret of the host is the target's to find, one of the target the initiator's.
		wrong, forged := good, mutual
		wrong.Secret, forged.TargetSecret = "host secret 124", "dozo secret 457"
		for what, chap := range map[string]initiator.CHAP{"host": wrong, "target": forged} {
			if s, err := dial(chap); !errors.Is(err, initiator.ErrAuthentication) {
				if err == nil {
					s.Kill()
				}
				t.Errorf("%s, wrong secret of the %s: %v", name, what, err)
			}
		}
	}
	if _, err := dial(initiator.CHAP{User: "host", Secret: hostSecret, Digests: []int{9}}); err == nil || !strings.Contains(err.Error(), "digest 9") {
		t.Errorf("a digest that there is none of: %v", err)
	}
}

// TestNoCHAP: credentials that nobody asks for are no authentication.
func TestNoCHAP(t *testing.T) {
	portal := serveMemory(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := initiator.Dial(ctx, initiator.Config{Portal: portal.Address, Target: memName, CHAP: initiator.CHAP{User: "host", Secret: "host secret 123"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(ctx)
	if got := onlySession(t, portal.Server).Info().Auth; got != (iscsi.Auth{Method: "none"}) {
		t.Errorf("the target says %+v", got)
	}
}

// TestIPv6Portal discovers and uses a portal at an IPv6 address, by its URL.
func TestIPv6Portal(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	l.Close()
	p := &iscsitest.Provider{Disks: map[string][]*iscsitest.Disk{memName: {iscsitest.NewDisk("mem", 1<<20, 512)}}}
	portal, err := iscsitest.Start(p, "[::1]:0", slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer portal.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if !strings.HasPrefix(portal.Address, "[::1]:") {
		t.Fatalf("the portal is at %s", portal.Address)
	}
	found, err := initiator.Discover(ctx, initiator.Config{Portal: portal.Address})
	if err != nil || len(found) != 1 || len(found[0].Addresses) != 1 || found[0].Addresses[0].Addr != portal.Address {
		t.Fatalf("discovered %+v, %v", found, err)
	}
	u, err := initiator.ParseURL("iscsi://" + found[0].Addresses[0].Addr + "/" + memName + "/0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := initiator.Dial(ctx, u.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(ctx)
	d, err := initiator.OpenDisk(ctx, s, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt(ctx, make([]byte, 4096), 0, true); err != nil {
		t.Error(err)
	}
}
