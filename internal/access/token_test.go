package access

import "testing"

// TestACopyByReferenceUsesItsToken: SBC-3 4.24. A token ends when it was not used for its inactivity timeout; each part of a copy by
// reference is a use.
func TestACopyByReferenceUsesItsToken(t *testing.T) {
	var all tokens
	at := func(now uint64, call TokenCall) (TokenCall, error) { return all.serve(call, now) }
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
