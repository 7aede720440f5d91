package migrate

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"dozo/internal/guest"
	"dozo/internal/guest/records"
)

func TestMeasure(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	m := &guest.Migration{Downtime: 150 * time.Millisecond, Total: time.Second, Began: at(0), Ended: at(400), Stopped: at(200), Resumed: at(400), TransferredBytes: 5e6}
	var acks []heard
	n := uint64(0)
	add := func(ms int) {
		n++
		acks = append(acks, heard{records.Ack{Number: n, Took: time.Duration(n) * time.Millisecond}, at(ms)})
	}
	for ms := -250; ms < 0; ms += 10 {
		add(ms) // 25 records, every 10 ms
	}
	add(15)
	add(100)
	add(390) // 290 ms, of which the guest was stopped for 190
	for ms := 420; ms <= 500; ms += 20 {
		add(ms)
	}
	cfg := Config{Bucket: 100 * time.Millisecond}
	got := measure("x", cfg, acks, m)
	if got.Records != n || got.OutOfOrder != 0 || got.GapBeforeMs != 10 || got.GapMs != 290 || got.GapAfterMs != 20 {
		t.Errorf("%+v", got)
	}
	if got.PausedMs != 200 || got.StoppedMs != 200 || got.EndedMs != 400 || got.DowntimeMs != 150 {
		t.Errorf("%+v", got)
	}
	if got.RateBefore != 100 || got.RateDuring != 7.5 || got.RateAfter != 50 {
		t.Errorf("rates %v %v %v", got.RateBefore, got.RateDuring, got.RateAfter)
	}
	if got.SeriesFromMs != -300 || !slices.Equal(got.Series, []int{5, 10, 10, 1, 1, 0, 1, 4, 1}) {
		t.Errorf("%v %v", got.SeriesFromMs, got.Series)
	}
	if got.RecordMaxMs != float64(n) || got.RecordP50Ms != float64(n/2+1) {
		t.Errorf("%v %v", got.RecordP50Ms, got.RecordMaxMs)
	}
	acks = slices.Delete(acks, 3, 5)
	if got := measure("x", cfg, acks, m); got.OutOfOrder != 1 {
		t.Errorf("two missing: %+v", got)
	}
}

func TestReport(t *testing.T) {
	r := newReport(Config{From: "east", To: "west"}.withDefaults())
	r.Runs = []Measured{{Disk: LocalDisk, Found: []Found{{Way: "f"}}}, {Disk: TargetDisk, GapMs: 123, Found: []Found{{Way: "a"}, {Way: "b"}}}}
	if !r.OK() {
		t.Error("nothing is lost")
	}
	r.Runs[1].Found[1].Findings = records.Findings{Lost: 7, First: "record 5 is away"}
	if r.OK() {
		t.Error("7 are lost")
	}
	var b bytes.Buffer
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"local file", "123 ms", "target, b: record 5 is away"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	r.Runs[1].Found[1].Findings = records.Findings{}
	if r.Runs[0].OutOfOrder = 1; r.OK() {
		t.Error("out of order")
	}
}

func TestUsage(t *testing.T) {
	for name, c := range map[string]Config{
		"no URL":  {URLFrom: "disk.raw"},
		"bucket":  {Bucket: time.Microsecond},
		"slots":   {Slots: 1},
		"negativ": {Before: -1},
	} {
		if _, err := Run(t.Context(), c); !errors.Is(err, guest.ErrUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := redact("iscsi://user%secret@h:3260/iqn.x/0"); strings.Contains(got, "secret") || got != "iscsi://h:3260/iqn.x/0" {
		t.Error(got)
	}
}
