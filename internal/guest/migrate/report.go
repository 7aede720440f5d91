package migrate

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"dozo/internal/guest"
	"dozo/internal/guest/records"
)

// Names of runs.
const (
	LocalDisk  = "local file"
	TargetDisk = "target"
)

// Report is what Run found; docs/guide/experiments.md explains its fields.
type Report struct {
	From        string  `json:"from"`
	To          string  `json:"to"`
	Accelerator string  `json:"accelerator"`
	MemoryBytes int64   `json:"memory_bytes"`
	IntervalMs  float64 `json:"interval_ms"`
	BucketMs    float64 `json:"bucket_ms"`
	// Runs has the local file first.
	Runs []Measured `json:"runs"`
}

// Measured is one migration.
type Measured struct {
	Disk string `json:"disk"`
	// Began is when the migration did, by the host's clock.
	Began time.Time `json:"began"`
	// What QEMU says.
	DowntimeMs       float64 `json:"downtime_ms"`
	TotalMs          float64 `json:"total_ms"`
	SetupMs          float64 `json:"setup_ms"`
	TransferredBytes int64   `json:"transferred_bytes"`
	// PausedMs is from the source's stop to the destination's going on, by their events.
	PausedMs float64 `json:"paused_ms"`
	// Records is how many were acknowledged, OutOfOrder how many of them did not follow the one before.
	Records    uint64 `json:"records"`
	OutOfOrder int    `json:"out_of_order"`
	// The longest time between two acknowledgements, by the host's clock.
	GapBeforeMs   float64 `json:"gap_before_ms"`
	GapMs         float64 `json:"gap_ms"`
	GapSettlingMs float64 `json:"gap_settling_ms"`
	GapAfterMs    float64 `json:"gap_after_ms"`
	// Records a second.
	RateBefore   float64 `json:"rate_before"`
	RateDuring   float64 `json:"rate_during"`
	RateSettling float64 `json:"rate_settling"`
	RateAfter    float64 `json:"rate_after"`
	// How long records took by the guest's clock, which does not count its stops.
	RecordP50Ms float64 `json:"record_p50_ms"`
	RecordP99Ms float64 `json:"record_p99_ms"`
	RecordMaxMs float64 `json:"record_max_ms"`
	// Found is what lay on the disk afterwards, as each of the two QEMUs reached it.
	Found []Found `json:"found"`
	// Moments after the beginning of the migration.
	StoppedMs float64 `json:"stopped_ms"`
	ResumedMs float64 `json:"resumed_ms"`
	EndedMs   float64 `json:"ended_ms"`
	// Series counts the records acknowledged in each bucket; the first begins at SeriesFromMs.
	SeriesFromMs float64 `json:"series_from_ms"`
	Series       []int   `json:"series"`
}

// Found is what was read back by one way.
type Found struct {
	Way string `json:"way"`
	records.Findings
}

// OK says that no record was lost, reordered or damaged in any run.
func (r *Report) OK() bool {
	for _, m := range r.Runs {
		if m.OutOfOrder > 0 || slices.ContainsFunc(m.Found, func(f Found) bool { return !f.OK() }) {
			return false
		}
	}
	return true
}

func newReport(cfg Config) *Report {
	accel, memory := cfg.Guest.Accel, cfg.Guest.MemoryBytes
	if accel == "" {
		accel = guest.DefaultAccel
	}
	if memory == 0 {
		memory = guest.DefaultMemory
	}
	return &Report{From: cfg.From, To: cfg.To, Accelerator: accel, MemoryBytes: memory, IntervalMs: ms(cfg.Interval), BucketMs: ms(cfg.Bucket)}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// measure makes one run's figures; there is at least one acknowledgement.
func measure(disk string, cfg Config, acks []heard, m *guest.Migration) *Measured {
	out := &Measured{
		Disk: disk, Began: m.Began, DowntimeMs: ms(m.Downtime), TotalMs: ms(m.Total), SetupMs: ms(m.Setup), TransferredBytes: m.TransferredBytes,
		PausedMs: ms(m.Resumed.Sub(m.Stopped)), StoppedMs: ms(m.Stopped.Sub(m.Began)), ResumedMs: ms(m.Resumed.Sub(m.Began)), EndedMs: ms(m.Ended.Sub(m.Began)),
	}
	first, last := acks[0].at, acks[len(acks)-1].at
	buckets := func(at time.Time) int { // buckets are aligned to the beginning of the migration
		d := at.Sub(m.Began)
		n := int(d / cfg.Bucket)
		if d < 0 && d%cfg.Bucket != 0 {
			n--
		}
		return n
	}
	from := buckets(first)
	out.SeriesFromMs = ms(time.Duration(from) * cfg.Bucket)
	out.Series = make([]int, buckets(last)-from+1)
	took := make([]time.Duration, 0, len(acks))
	var before, during, settling, after int
	settled := m.Ended.Add(cfg.Settle)
	for i, a := range acks {
		out.Records = max(out.Records, a.Number)
		took = append(took, a.Took)
		out.Series[buckets(a.at)-from]++
		switch {
		case a.at.Before(m.Began):
			before++
		case a.at.After(settled):
			after++
		case a.at.After(m.Ended):
			settling++
		default:
			during++
		}
		if i == 0 {
			if a.Number != 1 {
				out.OutOfOrder++
			}
			continue
		}
		if a.Number != acks[i-1].Number+1 {
			out.OutOfOrder++
		}
		gap := &out.GapMs
		if !a.at.After(m.Began) {
			gap = &out.GapBeforeMs
		} else if acks[i-1].at.After(settled) {
			gap = &out.GapAfterMs
		} else if acks[i-1].at.After(m.Ended) {
			gap = &out.GapSettlingMs
		}
		*gap = max(*gap, ms(a.at.Sub(acks[i-1].at)))
	}
	rate := func(n int, d time.Duration) float64 {
		if d <= 0 {
			return 0
		}
		return float64(n) / d.Seconds()
	}
	out.RateBefore, out.RateDuring = rate(before, m.Began.Sub(first)), rate(during, m.Ended.Sub(m.Began))
	out.RateSettling, out.RateAfter = rate(settling, cfg.Settle), rate(after, last.Sub(settled))
	slices.Sort(took)
	out.RecordP50Ms, out.RecordP99Ms, out.RecordMaxMs = ms(took[len(took)/2]), ms(took[len(took)*99/100]), ms(took[len(took)-1])
	return out
}

// row is one line of the table.
type row struct {
	what string
	of   func(Measured) string
}

func millisCell(f func(Measured) float64) func(Measured) string {
	return func(m Measured) string { return fmt.Sprintf("%.0f ms", f(m)) }
}

func rateCell(f func(Measured) float64) func(Measured) string {
	return func(m Measured) string { return fmt.Sprintf("%.0f/s", f(m)) }
}

// foundCell gives the worst of all ways.
func foundCell(f func(records.Findings) int) func(Measured) string {
	return func(m Measured) string {
		worst := 0
		for _, x := range m.Found {
			worst = max(worst, f(x.Findings))
		}
		return fmt.Sprint(worst)
	}
}

var rows = []row{
	{"downtime (qemu)", millisCell(func(m Measured) float64 { return m.DowntimeMs })},
	{"paused (stop to resume)", millisCell(func(m Measured) float64 { return m.PausedMs })},
	{"longest gap between records", millisCell(func(m Measured) float64 { return m.GapMs })},
	{"  before the migration", millisCell(func(m Measured) float64 { return m.GapBeforeMs })},
	{"  while it settled", millisCell(func(m Measured) float64 { return m.GapSettlingMs })},
	{"  after it", millisCell(func(m Measured) float64 { return m.GapAfterMs })},
	{"records lost", foundCell(func(f records.Findings) int { return f.Lost })},
	{"records reordered", foundCell(func(f records.Findings) int { return f.Reordered })},
	{"records damaged", foundCell(func(f records.Findings) int { return f.Damaged })},
	{"acknowledged out of order", func(m Measured) string { return fmt.Sprint(m.OutOfOrder) }},
	{"records acknowledged", func(m Measured) string { return fmt.Sprint(m.Records) }},
	{"rate before", rateCell(func(m Measured) float64 { return m.RateBefore })},
	{"  during", rateCell(func(m Measured) float64 { return m.RateDuring })},
	{"  while it settled", rateCell(func(m Measured) float64 { return m.RateSettling })},
	{"  after", rateCell(func(m Measured) float64 { return m.RateAfter })},
	{"one record, median (guest's clock)", func(m Measured) string { return fmt.Sprintf("%.1f ms", m.RecordP50Ms) }},
	{"  99 %", func(m Measured) string { return fmt.Sprintf("%.1f ms", m.RecordP99Ms) }},
	{"whole migration", millisCell(func(m Measured) float64 { return m.TotalMs })},
	{"sent", func(m Measured) string { return fmt.Sprintf("%.0f MB", float64(m.TransferredBytes)/1e6) }},
}

// Print prints the runs beside each other.
func (r *Report) Print(w io.Writer) error {
	line := func(first string, cell func(Measured) string) error {
		text := fmt.Sprintf("%-36s", first)
		for _, m := range r.Runs {
			text += fmt.Sprintf("%14s", cell(m))
		}
		_, err := fmt.Fprintln(w, text)
		return err
	}
	err := line("", func(m Measured) string { return m.Disk })
	for _, x := range rows {
		err = errors.Join(err, line(x.what, x.of))
	}
	for _, m := range r.Runs {
		for _, f := range m.Found {
			if f.First != "" {
				_, e := fmt.Fprintf(w, "\n%s, %s: %s\n", m.Disk, f.Way, f.First)
				err = errors.Join(err, e)
			}
		}
	}
	return err
}
