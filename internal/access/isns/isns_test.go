package isns

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestGolden pins the bytes: RFC 4171 5.1 (header), 5.3 (attributes), 6 (formats).
func TestGolden(t *testing.T) {
	c := New(Config{Entity: "dozo-1"})
	p := Portal{Addr: netip.MustParseAddrPort("10.0.0.1:3260"), Group: 7, esi: 4000}
	list := c.registration([]Portal{p}, []Target{{"iqn.a:1", "vol"}})
	if len(list) != 1 {
		t.Fatalf("%d messages", len(list))
	}
	list[0].transaction = 0x102
	want := "0001 0001 00e8 8c00 0102 0000" +
		"00000020 00000008 69716e2e613a3100" + // source
		"00000001 00000008 646f7a6f2d310000" + // message key
		"00000000 00000000" +
		"00000001 00000008 646f7a6f2d310000 00000002 00000004 00000002" +
		"00000010 00000010 00000000000000000000ffff0a000001 00000011 00000004 00000cbc" +
		"00000013 00000004 00000014 00000014 00000004 00000fa0" +
		"00000020 00000008 69716e2e613a3100 00000021 00000004 00000001 00000022 00000004 766f6c00" +
		"00000030 00000008 69716e2e613a3100 00000031 00000010 00000000000000000000ffff0a000001" +
		"00000032 00000004 00000cbc 00000033 00000004 00000007"
	if got := hex.EncodeToString(list[0].append(nil)); got != strings.ReplaceAll(want, " ", "") {
		t.Errorf("registration\n%s\nwant\n%s", got, strings.ReplaceAll(want, " ", ""))
	}
	m := c.deregistration("iqn.a:1", nil, []Portal{p})
	want = "0001 0004 003c 8c00 0000 0000 00000020 00000008 69716e2e613a3100 00000000 00000000" +
		"00000010 00000010 00000000000000000000ffff0a000001 00000011 00000004 00000cbc"
	if got := hex.EncodeToString(m.append(nil)); got != strings.ReplaceAll(want, " ", "") {
		t.Errorf("deregistration\n%s\nwant\n%s", got, strings.ReplaceAll(want, " ", ""))
	}
	r := answerESI(&message{function: fnESI, transaction: 9, attrs: []attr{number(4, 5)}})
	if got := hex.EncodeToString(r.append(nil)); got != "0001800d00108c0000090000"+"00000000"+"000000040000000400000005" {
		t.Errorf("answer to an inquiry %s", got)
	}
}

// TestManyTargets: however many there are, each is told once, and no message is longer than a length field can say.
func TestManyTargets(t *testing.T) {
	c := New(Config{Entity: "e"})
	var all []Target
	for i := range 3000 {
		all = append(all, Target{Name: "iqn.2026-11.dev.dozo:" + strings.Repeat("x", 30) + string(rune('a'+i%26)), Alias: strings.Repeat("y", i%200)})
	}
	portals := []Portal{{Addr: netip.MustParseAddrPort("10.0.0.1:3260")}, {Addr: netip.MustParseAddrPort("[fd00::1]:3260")}}
	n := 0
	for _, m := range c.registration(portals, all) {
		b := m.append(nil)
		if len(b)-headerLen > messageMax {
			t.Fatalf("a message of %d bytes", len(b))
		}
		for _, a := range m.attrs {
			if a.tag == tagNodeType {
				n++
			}
		}
	}
	if n != len(all) {
		t.Errorf("%d targets", n)
	}
}

// server takes one client at a time and remembers what it asked.
type server struct {
	l    net.Listener
	mu   sync.Mutex
	seen []message
	fail uint32
}

func (s *server) run() {
	for {
		nc, err := s.l.Accept()
		if err != nil {
			return
		}
		for {
			m, err := receive(nc)
			if err != nil {
				break
			}
			s.mu.Lock()
			s.seen = append(s.seen, *m)
			r := message{function: m.function | responseBit, transaction: m.transaction, status: s.fail, flags: flagServer}
			s.fail = 0
			s.mu.Unlock()
			_, _ = nc.Write(r.append(nil))
		}
		_ = nc.Close()
	}
}

func (s *server) wait(t *testing.T, what string, ok func([]message) bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		done := ok(s.seen)
		s.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not seen: %s", what)
		}
	}
}

func names(m message) (list []string) {
	for i, a := range m.attrs {
		if a.tag == tagName && i > 0 {
			list = append(list, string(bytes.TrimRight(a.value, "\x00")))
		}
	}
	return list
}

// TestClient: registration, a change, a refusal that is tried again, inquiries, and the end.
func TestClient(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{l: l, fail: 12}
	var wg sync.WaitGroup
	wg.Go(s.run)
	defer wg.Wait()
	defer l.Close()
	var mu sync.Mutex
	targets := []Target{{"iqn.a:1", "one"}, {"iqn.a:2", ""}}
	set := func(list ...Target) {
		mu.Lock()
		defer mu.Unlock()
		targets = list
	}
	events := make(chan struct{}, 1)
	c := New(Config{Server: l.Addr().String(), Entity: "e", Log: slog.New(slog.DiscardHandler),
		Portals: []Portal{{Addr: netip.MustParseAddrPort("127.0.0.1:3260"), Group: 3}},
		Targets: func() []Target { mu.Lock(); defer mu.Unlock(); return slices.Clone(targets) },
		Changed: func() (<-chan struct{}, func()) { return events, func() {} }})
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { c.Run(ctx) })
	s.wait(t, "the registration again after BUSY", func(m []message) bool { return len(m) == 2 })
	esi := uint16(0)
	for _, a := range s.seen[1].attrs {
		if a.tag == tagESIPort {
			esi = uint16(a.value[2])<<8 | uint16(a.value[3])
		}
	}
	if got := names(s.seen[1]); !slices.Equal(got, []string{"iqn.a:1", "iqn.a:2"}) || esi == 0 {
		t.Errorf("registered %v, ESI port %d", got, esi)
	}
	// The server asks.
	nc, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), esi).String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ask := message{function: fnESI, flags: flagServer, transaction: 77, attrs: []attr{text(tagEntityID, "e")}}
	_, _ = nc.Write(ask.append(nil))
	if r, err := receive(nc); err != nil || r.function != fnESI|responseBit || r.transaction != 77 || r.status != 0 || len(r.attrs) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	set(Target{"iqn.a:2", "renamed"}, Target{"iqn.a:3", ""})
	events <- struct{}{}
	s.wait(t, "the change", func(m []message) bool { return len(m) == 4 })
	if got := names(s.seen[2]); !slices.Equal(got, []string{"iqn.a:2", "iqn.a:3"}) {
		t.Errorf("registered %v", got)
	}
	if m := s.seen[3]; m.function != fnDevDereg || !slices.Equal(names(m), []string{"iqn.a:1"}) {
		t.Errorf("%#x %v", m.function, names(m))
	}
	cancel()
	run.Wait()
	if m := s.seen[len(s.seen)-1]; m.function != fnDevDereg || len(names(m)) != 0 || m.attrs[2].tag != tagPortalIP {
		t.Errorf("the end: %#x %+v", m.function, m.attrs)
	}
}

func TestStatusErrors(t *testing.T) {
	if s := StatusError(12).Error(); s != "iSNS server answers: busy" {
		t.Error(s)
	}
	if !errors.Is(StatusError(9), noSuchEntry) || !strings.Contains(StatusError(99).Error(), "99") {
		t.Error("status 9 or 99")
	}
}

// FuzzDecode: any bytes either are refused or come back as they were; nothing is taken for longer than it is.
func FuzzDecode(f *testing.F) {
	c := New(Config{Entity: "e"})
	for _, m := range c.registration([]Portal{{Addr: netip.MustParseAddrPort("10.0.0.1:3260")}}, []Target{{"iqn.a:1", "x"}}) {
		f.Add(m.append(nil))
	}
	f.Add((&message{function: fnESI | responseBit, status: 3}).append(nil))
	f.Add([]byte{0, 1, 0x80, 1, 0, 4, 0x0c, 0, 0, 1, 0, 0, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		m, err := receive(r)
		if err != nil {
			if !errors.Is(err, errFormat) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
			return
		}
		used := len(b) - r.Len()
		again := m.append(nil)
		if !bytes.Equal(again, b[:used]) {
			t.Fatalf("% x\nbecame\n% x", b[:used], again)
		}
		_ = answerESI(m).append(nil)
	})
}
