package export

import (
	"context"
	"fmt"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// TestLeastLoaded: initiators are sent to the access server with the fewest sessions, and count there at once; one that
// says nothing is passed over, unless none does.
func TestLeastLoaded(t *testing.T) {
	asked := 0
	sessions := map[ident.NodeName]int{"a": 3, "b": 1, "c": 1}
	e := &Exports{}
	list := []control.Node{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "mute"}}
	if got := e.leastLoaded(t.Context(), list); len(got) != 4 {
		t.Errorf("with nobody to ask: %v", got)
	}
	e.Loads = func(_ context.Context, of []control.Node) map[ident.NodeName]int {
		asked += len(of)
		return sessions
	}
	if got := e.leastLoaded(t.Context(), list[3:]); len(got) != 1 || asked != 0 {
		t.Errorf("a single one: %v, asked %d times", got, asked)
	}
	for i, want := range []string{"b c", "c", "b c", "c", "a b c"} {
		got := e.leastLoaded(t.Context(), list)
		names := ""
		for _, n := range got {
			names += string(n.Name) + " "
		}
		if names != want+" " {
			t.Fatalf("%d: %s, want %s", i, names, want)
		}
		e.wasSent(got[0].Name)
	}
	if asked != 4 {
		t.Errorf("asked %d times for the same", asked)
	}
	none := &Exports{Loads: func(context.Context, []control.Node) map[ident.NodeName]int { return nil }}
	if got := none.leastLoaded(t.Context(), list); fmt.Sprint(len(got)) != "4" {
		t.Errorf("nobody answers: %v", got)
	}
}
