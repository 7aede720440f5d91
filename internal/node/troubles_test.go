package node

import (
	"slices"
	"testing"
	"time"

	"dozo/internal/api/dozov1"
	"dozo/internal/ident"
	"dozo/internal/trouble"
	"dozo/internal/wire"
)

// What the status says of a volume is what its owner's node watches, or it would have no time.
func TestWhatIsReportedIsWatched(t *testing.T) {
	journal := ident.JournalID{1}
	for state, recovering := range map[string]time.Duration{
		"serving": 0, "degraded: one core server of the site": 0, "waiting for a second core server": 0, "failed": 0, "stopped: fenced": 0,
		"recovering": time.Second, "recovering: a store is missing": time.Hour,
	} {
		for bits := range 1 << 5 {
			on := func(i int) uint64 { return uint64(bits >> i & 1) }
			st := &wire.JournalStatus{Journal: journal, State: state, Recovering: uint64(recovering), Degraded: uint32(on(0)), Lost: on(1), Barred: uint32(on(2)), Forks: uint32(on(3)),
				Commit: ident.Position{Seq: 10}, Sites: []wire.SiteStatus{{Site: 2, Watermark: ident.Position{Seq: 10}}, {Site: 3, Watermark: ident.Position{Seq: 5}, LagNanos: on(4) * uint64(time.Hour)}, {Site: 4}}}
			away := func(id ident.SiteID) bool { return id == 4 }
			s := &dozov1.VolumeStatus{State: stateWord(state), Protection: protection(st)}
			if recovering == 0 { // as volumeStatus does
				s.SegmentsDegraded, s.LostRecords, s.PortsRefused, s.ForkSegments = uint64(st.Degraded), st.Lost, st.Barred, uint64(st.Forks)
				for _, x := range st.Sites {
					c := &dozov1.SiteCopy{Site: string('a' + rune(x.Site)), State: "current", LagSeconds: time.Duration(x.LagNanos).Seconds()}
					if x.Watermark.Seq < st.Commit.Seq {
						c.State = "behind"
						if away(x.Site) {
							c.State = "away"
						}
					}
					s.Copies = append(s.Copies, c)
				}
			}
			var said, watched []trouble.Key
			critical := true
			for _, p := range volumeProblems(s, st) {
				said = append(said, p.key)
				if p.Reason == problemVolumeWaiting && !critical {
					t.Errorf("%q: %v comes after what hinders nothing", state, p)
				}
				critical = critical && p.Severity == severityCritical
			}
			volumeTroubles(st, func(id ident.SiteID) (string, bool) { return string('a' + rune(id)), away(id) }, func(reason, of string) {
				watched = append(watched, trouble.Key{Reason: reason, Journal: journal, Of: of})
			})
			slices.SortFunc(said, trouble.Key.Compare)
			slices.SortFunc(watched, trouble.Key.Compare)
			if !slices.Equal(said, watched) {
				t.Errorf("%q, %05b: reported %v, watched %v", state, bits, said, watched)
			}
		}
	}
}

// Every problem of a status has a time; what hinders I/O stands first; what the thing itself says may be longer ago than what is
// remembered, and the other way round.
func TestProblemsAreDated(t *testing.T) {
	n := &Node{book: trouble.NewBook()}
	now := Clock()
	old := trouble.Key{Reason: problemStoreFull, Of: "s"}
	n.book.Observe(now-int64(time.Hour), func(saw func(trouble.Key, bool)) { saw(old, false) })
	n.book.Observe(now, func(saw func(trouble.Key, bool)) { saw(old, false) })
	wall := time.Now()
	list := n.dated([]problem{
		{&dozov1.Problem{Reason: problemStoreFull, Severity: severityWarning}, old, wall.Add(-time.Minute)},
		{&dozov1.Problem{Reason: problemNodeDown, Severity: severityWarning}, trouble.Key{Reason: problemNodeDown, Of: "n"}, wall.Add(-2 * time.Hour)},
		{&dozov1.Problem{Reason: problemVolumeWaiting, Severity: severityCritical}, trouble.Key{Reason: problemVolumeWaiting}, time.Time{}},
	})
	ages := map[string]time.Duration{problemVolumeWaiting: 0, problemStoreFull: time.Hour, problemNodeDown: 2 * time.Hour}
	var reasons []string
	for _, p := range list {
		reasons = append(reasons, p.Reason)
		if p.Since == nil {
			t.Errorf("%s has no time", p.Reason)
			continue
		}
		least := wall.Add(-ages[p.Reason] - time.Second)
		if at := p.Since.AsTime(); at.Before(least) || at.After(time.Now().Add(-ages[p.Reason])) {
			t.Errorf("%s since %s, wanted %s ago", p.Reason, at, ages[p.Reason])
		}
	}
	if want := []string{problemVolumeWaiting, problemStoreFull, problemNodeDown}; !slices.Equal(reasons, want) {
		t.Errorf("%v, want %v", reasons, want)
	}
}

// A node that began anew learns from the others what it knew before, over the messages that nodes send.
func TestATroubleOutlivesTheProcess(t *testing.T) {
	node := func(instance uint64) *Node { return &Node{book: trouble.NewBook(), instance: instance} }
	ask := func(of, by *Node, name, self string) {
		m := &wire.Troubles{Self: by.instance}
		m.Instance, m.After = by.book.Told(name)
		r := of.troublesFor(ident.NodeName(self), m)
		by.learn(name, m, &r)
	}
	k := trouble.Key{Reason: problemVolumeBehind, Journal: ident.JournalID{7}, Of: "site-2"}
	a, b := node(1), node(2)
	now := Clock()
	for at := now - int64(time.Hour); at <= now; at += int64(time.Minute) {
		a.book.Observe(at, func(saw func(trouble.Key, bool)) { saw(k, true) })
	}
	ask(a, b, "a", "b")
	a = node(3)
	ask(b, a, "b", "a") // before b has noticed
	a.book.Observe(Clock(), func(saw func(trouble.Key, bool)) { saw(k, true) })
	if first, _ := a.book.Since(Clock(), k); time.Duration(Clock()-first) < time.Hour {
		t.Errorf("after a restart it holds since %s ago", time.Duration(Clock()-first))
	}
	ask(a, b, "a", "b")
	if first, _ := b.book.Since(Clock(), k); time.Duration(Clock()-first) < time.Hour {
		t.Errorf("another node says since %s ago", time.Duration(Clock()-first))
	}
}
