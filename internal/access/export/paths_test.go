package export

import (
	"testing"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/ident"
)

// A volume that has just changed hands stays at its site, whoever asks: Linux asks by all paths of a group that it switches to.
func TestAVolumeStaysAfterAChange(t *testing.T) {
	now := time.Now()
	groups := []reserve.PortGroup{
		{ID: 1, State: reserve.ActiveNonOptimized, Place: 1},
		{ID: 2, State: reserve.ActiveOptimized, Place: 1},
		{ID: 3, State: reserve.ActiveNonOptimized, Place: 2},
	}
	for _, x := range []struct {
		what  string
		view  *pathView
		group uint16
		want  bool
	}{
		{"nothing is known", nil, 3, false},
		{"it was there all the time", &pathView{steady: groups}, 3, false},
		{"another site, right afterwards", &pathView{steady: groups, moved: now.Add(-time.Second)}, 3, true},
		{"the same site", &pathView{steady: groups, moved: now.Add(-time.Second)}, 1, false},
		{"where it is", &pathView{steady: groups, moved: now.Add(-time.Second)}, 2, false},
		{"another site, later", &pathView{steady: groups, moved: now.Add(-time.Minute)}, 3, false},
	} {
		if got := x.view.stays(x.group, now); got != x.want {
			t.Errorf("%s: %v", x.what, got)
		}
	}
}

// Nobody waits for a takeover to be told that a volume is not handed over.
func TestAVolumeWhoseOwnerIsGoneIsNotHandedOver(t *testing.T) {
	reaches := func(n ident.NodeName) bool { return n != "dead" }
	for _, x := range []struct {
		what string
		view *pathView
		to   ident.NodeName
		want bool
	}{
		{"nothing is known", nil, "n1", false},
		{"nobody has used it", &pathView{}, "n1", false},
		{"its owner lives", &pathView{owner: "n2"}, "n1", false},
		{"its owner is dead", &pathView{owner: "dead"}, "n1", true},
		{"it is to go to the one that owned it", &pathView{owner: "dead"}, "dead", false},
	} {
		if got := x.view.orphaned(x.to, reaches); got != x.want {
			t.Errorf("%s: %v", x.what, got)
		}
	}
}

// A path that is back does not bring its volume back, though Linux asks for it; one that asks later, or for another reason, gets it.
func TestAVolumeStaysWhenAPathIsBack(t *testing.T) {
	started := time.Now()
	before, soon, later := started.Add(-time.Hour), started.Add(5*time.Second), started.Add(time.Hour)
	for _, x := range []struct {
		what         string
		view         *pathView
		to           ident.NodeName
		created, now time.Time
		want         bool
	}{
		{"the path is back", &pathView{owner: "n2"}, "n1", before, soon, true},
		{"long after", &pathView{owner: "n2"}, "n1", before, later, false},
		{"it is another node that is asked for", &pathView{owner: "n2"}, "n3", before, soon, false},
		{"it is here", &pathView{owner: "n1"}, "n1", before, soon, false},
		{"nobody has it", &pathView{}, "n1", before, soon, false},
		{"nothing is known", nil, "n1", before, soon, false},
		{"it has changed hands since", &pathView{owner: "n2", moved: soon}, "n1", before, soon, false},
		{"it was made since", &pathView{owner: "n2"}, "n1", started.Add(time.Second), soon, false},
	} {
		if got := x.view.staysAtStart("n1", x.to, x.created, started, x.now); got != x.want {
			t.Errorf("%s: %v", x.what, got)
		}
	}
}

// Who gives is transitioning; who takes takes commands.
func TestOnlyTheGiverIsTransitioning(t *testing.T) {
	steady := []reserve.PortGroup{{ID: 1, State: reserve.ActiveOptimized}, {ID: 2, State: reserve.ActiveNonOptimized}}
	got := transition(steady, 1)
	if got[0].State != reserve.Transitioning || got[1].State != reserve.ActiveNonOptimized || steady[0].State != reserve.ActiveOptimized {
		t.Errorf("%+v of %+v", got, steady)
	}
}
