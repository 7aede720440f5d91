package access

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// TestACopyByReferenceUsesItsToken: SBC-3 4.24. A token ends when it was not used for its inactivity timeout; each part of a copy by
// reference is a use.
func TestACopyByReferenceUsesItsToken(t *testing.T) {
	var all tokens
	at := func(now uint64, call TokenCall) (TokenCall, error) {
		return all.serve(call, now, ident.Epoch{Number: 1})
	}
	made, err := at(0, TokenCall{What: TokenCreate, Seconds: 1, Ranges: []TokenRange{{Off: 4096, N: 8192}}})
	if err != nil {
		t.Fatal(err)
	}
	if !all.covers(made.ID, 4096, 4096, 900) {
		t.Error("the token doesn't stand for its range")
	}
	if all.covers(made.ID, 8192, 8192, 1500) {
		t.Error("the token stands for what is behind its range") // and that is no use
	}
	if _, err := at(1800, TokenCall{What: TokenCreate, Seconds: 1}); err != nil || !all.covers(made.ID, 8192, 4096, 1800) {
		t.Errorf("900 ms after its last use: %v, or the token has ended", err)
	}
	if _, err := at(2900, TokenCall{What: TokenUse, ID: made.ID}); err == nil {
		t.Error("1.1 s after its last use it is good")
	}
}

// TestTokenCallBytes pins the bytes of docs/wire.md, "Token": of nodes below control.LevelTokens, and of the others.
func TestTokenCallBytes(t *testing.T) {
	call := TokenCall{What: TokenCreate, Seconds: 60, Ranges: []TokenRange{{Off: 4096, N: 512}}}
	for i := range call.ID {
		call.ID[i] = byte(i + 1)
	}
	const id, rest = "0102030405060708090a0b0c0d0e0f10", "00100000000000000002000000000000"
	whole := call
	whole.Whole, whole.State, whole.Life, whole.Made = true, TokenCancelled, 86400, ident.Epoch{Number: 5, Lineage: 6}
	for i := range whole.Digest {
		whole.Digest[i] = 0xd0 | byte(i&15)
	}
	for _, x := range []struct {
		call TokenCall
		want string
	}{
		{call, "0101" + id + "3c0000000100" + rest},
		{whole, "0201" + id + "3c0000000100" + "04" + "80510100" + "0500000000000000" + "06000000" +
			"d0d1d2d3d4d5d6d7d8d9dadbdcdddedfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf" + rest},
	} {
		b := x.call.Append(nil)
		if got := hex.EncodeToString(b); got != x.want {
			t.Errorf("%+v:\n%s, want\n%s", x.call, got, x.want)
		}
		if got, err := DecodeTokenCall(b); err != nil || !bytes.Equal(got.Append(nil), b) {
			t.Errorf("%+v came back as %+v, %v", x.call, got, err)
		}
		for n := range b {
			if _, err := DecodeTokenCall(b[:n]); err == nil {
				t.Errorf("%d of %d bytes are taken", n, len(b))
			}
		}
	}
	for at, value := range map[int]byte{0: 3, 1: 4, 24: byte(TokenNoRoom) + 1} {
		b := whole.Append(nil)
		b[at] = value
		if _, err := DecodeTokenCall(b); err == nil {
			t.Errorf("%d in byte %d is taken", value, at)
		}
	}
}

// TestWhyTokensEnded: SPC-4 5.17.6.5.2.3, 5.17.6.7.
func TestWhyTokensEnded(t *testing.T) {
	var all tokens
	epoch := ident.Epoch{Number: 7, Lineage: 1}
	const life = 100 // s
	next := byte(0)
	made := func(now uint64) TokenCall {
		t.Helper()
		next++
		call := TokenCall{What: TokenCreate, Whole: true, ID: [16]byte{next}, Digest: [32]byte{next, 1}, Seconds: 10, Life: life, Made: epoch,
			Ranges: []TokenRange{{Off: 4096, N: 4096}}}
		if got, err := all.serve(call, now, epoch); err != nil || got.State != TokenGood {
			t.Fatalf("create: %+v, %v", got, err)
		}
		if got, err := all.serve(call, now, epoch); err != nil || got.State != TokenGood || len(all.byID) != 1 {
			t.Fatalf("create, sent again: %+v, %v, %d tokens", got, err, len(all.byID))
		}
		return call
	}
	ask := func(call TokenCall, what TokenWhat, now uint64) TokenState {
		t.Helper()
		call.What, call.Ranges = what, nil
		got, err := all.serve(call, now, epoch)
		if err != nil || (len(got.Ranges) != 0) != (what == TokenUse && got.State == TokenGood) {
			t.Fatalf("call %d: %+v, %v", what, got, err)
		}
		return got.State
	}
	check := func(what string, got, want TokenState) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	x := made(0)
	check("as it was made", ask(x, TokenUse, 0), TokenGood)
	bad := x
	bad.Digest[31]++
	check("other bytes", ask(bad, TokenUse, 0), TokenCorrupt)
	check("other bytes, to be ended", ask(bad, TokenDrop, 0), TokenCorrupt)
	bare := TokenCall{What: TokenUse, ID: x.ID}
	if _, err := all.serve(bare, 0, epoch); !errors.Is(err, wire.ErrMismatch) {
		t.Errorf("by its ID alone: %v", err)
	}
	bare.What = TokenDrop
	if _, err := all.serve(bare, 0, epoch); err != nil || len(all.byID) != 1 {
		t.Errorf("ended by its ID alone: %v, %d tokens", err, len(all.byID))
	}
	check("to be ended", ask(x, TokenDrop, 0), TokenGood)
	check("ended by its user", ask(x, TokenUse, 0), TokenDeleted)

	x = made(0)
	all.touched(1, 1, 1000)
	check("written to", ask(x, TokenUse, 1000), TokenCancelled)
	x = made(1000)
	all.touched(1, 1, 12000) // nobody has looked at it since its time was over
	check("written to afterwards", ask(x, TokenUse, 12000), TokenExpired)
	x = made(12000)
	check("unused", ask(x, TokenUse, 22001), TokenExpired)
	x = made(30000)
	for now := uint64(30000); now < 130000; now += 5000 {
		check("used again and again", ask(x, TokenUse, now), TokenGood)
	}
	if all.covers(x.ID, 4096, 4096, 130001) {
		t.Error("a token whose life is over is good for a copy")
	}
	check("a lifetime later", ask(x, TokenUse, 130001), TokenExpired)
	check("two lifetimes after that", ask(x, TokenUse, 330000), TokenExpired)
	made(330002)
	all.touched(1, 1, 330002)
	check("later still", ask(x, TokenUse, 330003), TokenUnknown)

	never := x
	never.ID[15] = 9
	check("never made", ask(never, TokenUse, 330003), TokenUnknown)
	never.Made.Number--
	check("made by an owner before", ask(never, TokenUse, 330003), TokenCancelled)
	never.Made = ident.Epoch{Number: 7, Lineage: 2}
	check("made by the owner of another lineage", ask(never, TokenUse, 330003), TokenCancelled)

	for i := range 2 * tokensDeadMax {
		call := TokenCall{What: TokenCreate, Whole: true, ID: [16]byte{15: 1, 14: byte(i), 13: byte(i >> 8)}, Seconds: 10, Life: life}
		if _, err := all.serve(call, 330003, epoch); err != nil {
			t.Fatal(err)
		}
		call.What = TokenDrop
		if _, err := all.serve(call, 330003, epoch); err != nil {
			t.Fatal(err)
		}
	}
	if len(all.dead) > tokensDeadMax || len(all.order) != len(all.dead) {
		t.Errorf("%d dead tokens are kept, %d in order", len(all.dead), len(all.order))
	}
	for i := range tokensMax + 1 {
		call := TokenCall{What: TokenCreate, Whole: true, ID: [16]byte{15: 2, 14: byte(i), 13: byte(i >> 8)}, Seconds: 10, Life: life}
		want := TokenGood
		if i == tokensMax {
			want = TokenNoRoom
		}
		if got, err := all.serve(call, 330003, epoch); err != nil || got.State != want {
			t.Fatalf("token %d: %s, %v; want %s", i, got.State, err, want)
		}
	}
}

// TestTokensOfAnOwnerBefore: a token ends with its owner, and the next one says so.
func TestTokensOfAnOwnerBefore(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	call := func(x TokenCall) TokenCall {
		t.Helper()
		op := NewOp()
		op.Kind, op.Unit = wire.OpToken, x.Append(nil)
		if err := do(o, op); err != nil {
			t.Fatal(err)
		}
		x, err := DecodeTokenCall(op.Data[0])
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	x := TokenCall{What: TokenCreate, Whole: true, ID: [16]byte{1}, Digest: [32]byte{2}, Seconds: 60, Life: 60, Made: o.epoch, Ranges: []TokenRange{{0, 4096}}}
	if got := call(x); got.State != TokenGood {
		t.Fatal(got.State)
	}
	x.What = TokenUse
	if got := call(x); got.State != TokenGood || len(got.Ranges) != 1 {
		t.Fatalf("%+v", got)
	}
	old := o
	o = c.own(v)
	old.Close()
	if got := call(x); got.State != TokenCancelled {
		t.Errorf("use at the next owner: %s", got.State)
	}
	x.Made = o.epoch
	if got := call(x); got.State != TokenUnknown {
		t.Errorf("one that it has not made: %s", got.State)
	}
}

// TestTokensWithOlderNodes: whether tokens may be told by their bytes goes by the oldest node.
func TestTokensWithOlderNodes(t *testing.T) {
	c := newCluster(t, 1, 2)
	node := control.Node{Name: "old", Site: 1, HostID: "h", Roles: []control.Role{control.RoleAccess}, Version: "1"}
	node.Addrs.Portals = []control.Portal{{Addr: netip.MustParseAddrPort("127.0.0.9:3260")}}
	if _, err := c.ctl.RegisterNode(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	v := &Volume{srv: &Server{env: Env{Control: c.ctl}}}
	c.mem.Downgrade("old")
	eventually(t, "the node is known to be older", func() bool { return c.ctl.Level() == 1 })
	if v.WholeTokens() {
		t.Error("older nodes are asked for what they don't know")
	}
	if _, err := c.ctl.RegisterNode(t.Context(), node); err != nil { // it was upgraded
		t.Fatal(err)
	}
	eventually(t, "the node is known to be upgraded", func() bool { return v.WholeTokens() })
}
