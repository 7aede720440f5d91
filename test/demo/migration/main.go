// Command migration makes a report and a plot of what test/demo/migration.sh has measured: it reads DIR/RTT-LOAD-ROUND.json, the
// reports of dozo lab guest migrate, and the .events beside them, and writes DIR/report.md and DIR/rate.svg. The exit
// code is 1 if a record was lost, reordered or damaged, or a volume did not follow its guest.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"dozo/internal/guest/migrate"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: migration DIR")
		os.Exit(2)
	}
	ok, err := run(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "migration:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(dir string) (bool, error) {
	groups, err := read(dir)
	if err != nil {
		return false, err
	}
	machine, err := os.ReadFile(filepath.Join(dir, "machine.txt"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	text, ok := report(groups, strings.Join(strings.Split(strings.TrimSpace(string(machine)), "\n"), ", "))
	if err := os.WriteFile(filepath.Join(dir, "report.md"), []byte(text), 0o644); err != nil {
		return false, err
	}
	return ok, os.WriteFile(filepath.Join(dir, "rate.svg"), []byte(plot(groups)), 0o644)
}

// group is all rounds of one kind.
type group struct {
	rtt    time.Duration
	load   string
	rounds []round
}

// round is one migration with a local file, and one with the disk behind dozo.
type round struct {
	local, disk migrate.Measured
	moved       time.Time     // when the volume had followed; zero: it has not
	pause       time.Duration // of that
}

var fileName = regexp.MustCompile(`^([0-9a-z.]+)-([a-z]+)-([0-9]+)\.json$`)

func read(dir string) (list []*group, err error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		m := fileName.FindStringSubmatch(f.Name())
		if m == nil {
			continue
		}
		rtt, err := time.ParseDuration(m[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		var rep migrate.Report
		if err := json.Unmarshal(text, &rep); err != nil || len(rep.Runs) != 2 {
			return nil, fmt.Errorf("%s: no report of two runs: %w", f.Name(), err)
		}
		r := round{local: rep.Runs[0], disk: rep.Runs[1]}
		events, err := os.ReadFile(filepath.Join(dir, strings.TrimSuffix(f.Name(), ".json")+".events"))
		if err != nil {
			return nil, err
		}
		r.followed(string(events), rep.To)
		i := slices.IndexFunc(list, func(g *group) bool { return g.rtt == rtt && g.load == m[2] })
		if i < 0 {
			i, list = len(list), append(list, &group{rtt: rtt, load: m[2]})
		}
		list[i].rounds = append(list[i].rounds, r)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: no reports", dir)
	}
	slices.SortFunc(list, func(a, b *group) int { return cmp.Or(cmp.Compare(a.rtt, b.rtt), -cmp.Compare(a.load, b.load)) })
	return list, nil
}

var pauseText = regexp.MustCompile(`pause ([0-9.]+[a-zµ]+)`)

// followed takes the events of a volume, one JSON object a line, and what dozo volume show says of its owner.
func (r *round) followed(text, to string) {
	if !strings.Contains(text, `"owner_site": "`+to+`"`) && !strings.Contains(text, `"owner_site":"`+to+`"`) {
		return
	}
	for _, line := range strings.Split(text, "\n") {
		var e struct {
			Time time.Time `json:"time"`
			Note string    `json:"note"`
		}
		if json.Unmarshal([]byte(line), &e) != nil {
			continue
		}
		if m := pauseText.FindStringSubmatch(e.Note); m != nil && e.Time.After(r.disk.Began) {
			r.moved = e.Time
			r.pause, _ = time.ParseDuration(m[1])
		}
	}
}

// gap is the longest time without an acknowledgement that the migration, and what followed it, has caused.
func gap(m migrate.Measured) float64 { return max(m.GapMs, m.GapSettlingMs) }

func (g *group) median(f func(round) float64) float64 {
	var list []float64
	for _, r := range g.rounds {
		list = append(list, f(r))
	}
	return median(list)
}

func median(list []float64) float64 {
	slices.Sort(list)
	n := len(list)
	if n == 0 {
		return 0
	}
	return (list[(n-1)/2] + list[n/2]) / 2
}

func (g *group) goal() float64 { return 100 + 2*float64(g.rtt.Milliseconds()) }

func (g *group) share() float64 {
	return g.median(func(r round) float64 { return gap(r.disk) }) - g.median(func(r round) float64 { return gap(r.local) })
}

// bad counts records of all rounds that were lost, reordered or damaged, or acknowledged out of order.
func (g *group) bad() (n int) {
	for _, r := range g.rounds {
		for _, m := range []migrate.Measured{r.local, r.disk} {
			n += m.OutOfOrder
			for _, f := range m.Found {
				n += f.Lost + f.Reordered + f.Damaged
			}
		}
	}
	return n
}

func (g *group) stayed() (n int) {
	for _, r := range g.rounds {
		if r.moved.IsZero() {
			n++
		}
	}
	return n
}

func report(groups []*group, machine string) (text string, ok bool) {
	var b strings.Builder
	ok = true
	fmt.Fprintf(&b, "Machine: %s. Medians; in brackets the shortest and the longest.\n\n", cmp.Or(machine, "not said"))
	b.WriteString("| |")
	for _, g := range groups {
		fmt.Fprintf(&b, " %s, %s |", strings.TrimSuffix(g.rtt.String(), "0s"), g.load)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(groups)) + "\n")
	row := func(name string, cell func(*group) string) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, g := range groups {
			b.WriteString(" " + cell(g) + " |")
		}
		b.WriteString("\n")
	}
	spread := func(unit string, f func(round) float64) func(*group) string {
		return func(g *group) string {
			least, most := math.Inf(1), math.Inf(-1)
			for _, r := range g.rounds {
				least, most = min(least, f(r)), max(most, f(r))
			}
			return fmt.Sprintf("%.0f%s (%.0f-%.0f)", g.median(f), unit, least, most)
		}
	}
	row("rounds", func(g *group) string { return strconv.Itoa(len(g.rounds)) })
	row("downtime, local file (qemu)", spread(" ms", func(r round) float64 { return r.local.DowntimeMs }))
	row("downtime, dozo (qemu)", spread(" ms", func(r round) float64 { return r.disk.DowntimeMs }))
	row("longest gap, local file", spread(" ms", func(r round) float64 { return gap(r.local) }))
	row("longest gap, dozo", spread(" ms", func(r round) float64 { return gap(r.disk) }))
	row("**the storage's share of it**", func(g *group) string { return fmt.Sprintf("**%.0f ms**", g.share()) })
	row("goal: 100 ms and two round trips", func(g *group) string { return fmt.Sprintf("%.0f ms", g.goal()) })
	followed := func(f func(round) float64) func(*group) string {
		return func(g *group) string {
			moved := &group{rounds: slices.DeleteFunc(slices.Clone(g.rounds), func(r round) bool { return r.moved.IsZero() })}
			if len(moved.rounds) == 0 {
				return "-"
			}
			return spread(" ms", f)(moved)
		}
	}
	row("the volume followed after", followed(func(r round) float64 {
		return float64(r.moved.Sub(r.disk.Began).Milliseconds()) - r.disk.ResumedMs
	}))
	row("its pause", followed(func(r round) float64 { return float64(r.pause.Milliseconds()) }))
	row("records/s before, dozo", spread("", func(r round) float64 { return r.disk.RateBefore }))
	row("records/s until it followed", spread("", func(r round) float64 { return r.disk.RateSettling }))
	row("records/s after", spread("", func(r round) float64 { return r.disk.RateAfter }))
	row("**after / before** (goal 0.95)", func(g *group) string {
		return fmt.Sprintf("**%.2f**", g.median(func(r round) float64 { return r.disk.RateAfter / max(r.disk.RateBefore, 1) }))
	})
	row("the same, local file", func(g *group) string {
		return fmt.Sprintf("%.2f", g.median(func(r round) float64 { return r.local.RateAfter / max(r.local.RateBefore, 1) }))
	})
	row("records lost, reordered or damaged", func(g *group) string {
		ok = ok && g.bad() == 0
		return strconv.Itoa(g.bad())
	})
	row("rounds in which it did not follow", func(g *group) string {
		ok = ok && g.stayed() == 0
		return strconv.Itoa(g.stayed())
	})
	return b.String(), ok
}

// typical is the round whose longest gap is nearest to the median.
func (g *group) typical() round {
	want := g.median(func(r round) float64 { return gap(r.disk) })
	return slices.MinFunc(g.rounds, func(a, b round) int {
		return cmp.Compare(math.Abs(gap(a.disk)-want), math.Abs(gap(b.disk)-want))
	})
}

// The plot: a panel for each group, time from left to right.
const (
	plotWidth, panelHeight = 900, 200
	left, right, top, foot = 60, 20, 42, 30
)

func plot(groups []*group) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, panelHeight*len(groups)+10)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", plotWidth, panelHeight*len(groups)+10)
	for i, g := range groups {
		g.panel(&b, float64(i*panelHeight))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (g *group) panel(b *strings.Builder, y0 float64) {
	r := g.typical()
	const bucket = 100.0 // ms: migrate.DefaultBucket
	from, to, most := min(r.disk.SeriesFromMs, r.local.SeriesFromMs), 0.0, 1
	for _, m := range []migrate.Measured{r.disk, r.local} {
		to = max(to, m.SeriesFromMs+bucket*float64(len(m.Series)))
		most = max(most, slices.Max(append(slices.Clone(m.Series), 1)))
	}
	x := func(ms float64) float64 { return left + (ms-from)/(to-from)*(plotWidth-left-right) }
	y := func(n float64) float64 {
		return y0 + top + (panelHeight-top-foot)*(1-n/float64(most))
	}
	bottom := y(0)
	fmt.Fprintf(b, `<text x="%d" y="%.0f" font-weight="bold">%v between the sites, %s guest: records acknowledged a second</text>`+"\n", left, y0+14, g.rtt, g.load)
	fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#eeeeee"/>`+"\n", x(0), y0+top, x(r.disk.EndedMs)-x(0), bottom-y0-top)
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="#666666">migration</text>`+"\n", x(0)+3, y0+top+12)
	for _, n := range []float64{0, float64(most) / 2, float64(most)} {
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n", left, plotWidth-right, y(n), y(n), left-6, y(n)+4, n*1000/bucket)
	}
	for s := math.Ceil(from / 5000); s*5000 <= to; s++ {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">%.0f s</text>`+"\n", x(s*5000), bottom+16, s*5)
	}
	line := func(m migrate.Measured, colour, width string) {
		var p []string
		for i, n := range m.Series {
			at := m.SeriesFromMs + bucket*float64(i)
			p = append(p, fmt.Sprintf("%.1f,%.1f %.1f,%.1f", x(at), y(float64(n)), x(at+bucket), y(float64(n))))
		}
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="%s" points="%s"/>`+"\n", colour, width, strings.Join(p, " "))
	}
	line(r.local, "#bbbbbb", "1")
	line(r.disk, "#1f5fa8", "1.4")
	mark := func(ms float64, text, anchor string) {
		fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#c03020" stroke-dasharray="3 3"/><text x="%.1f" y="%.1f" fill="#c03020" text-anchor="%s">%s</text>`+"\n",
			x(ms), x(ms), y0+top-4, bottom, x(ms)+3, y0+top-6, anchor, text)
	}
	mark(r.disk.ResumedMs, "guest at the other site", "end")
	if !r.moved.IsZero() {
		mark(float64(r.moved.Sub(r.disk.Began).Milliseconds()), fmt.Sprintf("volume follows, pause %d ms", r.pause.Milliseconds()), "start")
	}
	fmt.Fprintf(b, `<text x="%d" y="%.0f" text-anchor="end"><tspan fill="#1f5fa8">dozo</tspan> <tspan fill="#999999">local file</tspan></text>`+"\n", plotWidth-right, y0+14)
}
