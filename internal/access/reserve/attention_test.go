package reserve

import "testing"

func TestAttentionsKeepOrderAndNoDuplicates(t *testing.T) {
	var q Attentions
	if a, ok := q.Take(); ok {
		t.Fatalf("empty queue gave %v", a)
	}
	q.Post(CapacityChanged)
	q.Post(LUNsChanged)
	q.Post(CapacityChanged)
	q.Discard(LUNsChanged)
	q.Post(AccessStateChanged)
	for _, want := range []Attention{CapacityChanged, AccessStateChanged} {
		if a, ok := q.Take(); !ok || a != want {
			t.Fatalf("Take = %v, %v; want %v", a, ok, want)
		}
	}
	if _, ok := q.Take(); ok {
		t.Fatal("a condition was reported twice")
	}
}

func TestAttentionsResetReplacesOlder(t *testing.T) {
	var q Attentions
	q.Post(CapacityChanged)
	q.Post(DeviceReset)
	if a, _ := q.Take(); a != DeviceReset {
		t.Fatalf("Take = %v, want the reset", a)
	}
	if a, ok := q.Take(); ok {
		t.Fatalf("%v survived the reset", a)
	}
}

// TestAttentionsOfSeveralResets: SAM-5 5.14.1: the one of higher precedence is reported, whichever came first.
func TestAttentionsOfSeveralResets(t *testing.T) {
	for _, order := range [][]Attention{{NexusLoss, DeviceReset}, {DeviceReset, NexusLoss}} {
		var q Attentions
		for _, a := range order {
			q.Post(a)
		}
		if a, _ := q.Take(); a != DeviceReset {
			t.Errorf("%v: Take = %v", order, a)
		}
		if a, ok := q.Take(); ok {
			t.Errorf("%v: %v, too", order, a)
		}
	}
}

func TestAttentionsBounded(t *testing.T) {
	var q Attentions
	for i := range 3 * AttentionsMax {
		q.Post(Attention{0x80, byte(i)})
	}
	n := 0
	for _, ok := q.Take(); ok; _, ok = q.Take() {
		n++
	}
	if n != AttentionsMax {
		t.Fatalf("%d conditions waited, want %d", n, AttentionsMax)
	}
}

func TestGroupOf(t *testing.T) {
	p := PathInfo{Groups: []PortGroup{{ID: 1, Ports: []uint16{1, 2}}, {ID: 3, State: Standby, Ports: []uint16{3}}}}
	if g, ok := p.GroupOf(3); !ok || g.ID != 3 || g.State != Standby {
		t.Errorf("GroupOf(3) = %v, %v", g, ok)
	}
	if _, ok := p.GroupOf(9); ok {
		t.Error("a port of no group was found")
	}
}
