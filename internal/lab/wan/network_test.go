package wan

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

type arrival struct {
	run Run
	at  Time
}

// recorder is a Sink that keeps everything.
type recorder struct {
	arrived []arrival
	dropped map[Cause]int // segments
	bytes   int
}

func (r *recorder) Deliver(run Run, due Time) {
	r.arrived = append(r.arrived, arrival{run, due})
	r.bytes += run.Bytes()
}
func (r *recorder) Drop(run Run, why Cause) { r.dropped[why] += int(run.Count) }

func (r *recorder) segments() int {
	n := 0
	for _, a := range r.arrived {
		n += int(a.run.Count)
	}
	return n
}

func newNet(t testing.TB, p Path) (*Network, *recorder) {
	t.Helper()
	r := &recorder{dropped: map[Cause]int{}}
	n, err := New(2, 1, r)
	if err != nil {
		t.Fatal(err)
	}
	n.SetPath(0, 0, 1, p)
	return n, r
}

func to1(r Run) Run { r.To = 1; return r }

const ms = time.Millisecond

func TestWithoutSettingsPacketsArriveAtOnce(t *testing.T) {
	n, r := newNet(t, Path{})
	n.Send(5, to1(Single(7, 100)))
	if len(r.arrived) != 1 || r.arrived[0].at != 5 || r.arrived[0].run.Packet != 7 || n.Next() != Never {
		t.Fatalf("%+v, next %d", r.arrived, n.Next())
	}
}

func TestDelayIsExactAndLatenessDoesNotAddUp(t *testing.T) {
	n, r := newNet(t, Path{Delay: 9 * ms, Line: Line{Rate: 1e9}})
	for i := range 10 {
		n.Send(Time(i)*Time(ms), to1(Single(uint32(i), 1250)))
	}
	// Nobody looks for a second: the times are what they would have been.
	n.Advance(Time(time.Second))
	for i, a := range r.arrived {
		// 1250 bytes take 10 microseconds at 1 Gbit/s.
		if want := Time(i)*Time(ms) + Time(9*ms+10*time.Microsecond); a.at != want {
			t.Errorf("packet %d at %d, want %d", i, a.at, want)
		}
	}
	if len(r.arrived) != 10 {
		t.Fatalf("%d arrived", len(r.arrived))
	}
}

func TestRateAndBufferOfSuperPackets(t *testing.T) {
	// 64 KiB super-packets into 100 Mbit/s: segments of 1500 bytes leave every 120 microseconds, one by one.
	n, r := newNet(t, Path{Line: Line{Rate: 100e6, Buffer: 30_000}})
	n.Send(0, to1(Super(1, 52, 1448, 40*1448+100)))
	n.Advance(Time(time.Second))
	// 20 segments of 1500 bytes fit into the buffer; the small one at the end is dropped with the others.
	if r.segments() != 20 || r.dropped[DropQueue] != 21 {
		t.Fatalf("%d arrived, %v dropped", r.segments(), r.dropped)
	}
	for i, a := range r.arrived {
		if want := Time(i+1) * Time(120*time.Microsecond); a.at != want || a.run.Count != 1 || int(a.run.First) != i {
			t.Fatalf("run %d: %+v, want at %d", i, a, want)
		}
	}
}

func TestRateOverTime(t *testing.T) {
	for _, rate := range []Rate{1e6, 50e6, 999_999_937, 10e9} {
		n, r := newNet(t, Path{Line: Line{Rate: rate}})
		// Offer twice the rate for a while; what arrives in it must be the rate.
		var now Time
		size := 1500
		step := rate.duration(size) / 2
		for i := 0; i < 4000; i++ {
			n.Send(now, to1(Single(uint32(i), size)))
			now = now.Add(step)
		}
		n.Advance(now)
		got := float64(r.bytes) * 8 / now.Sub(0).Seconds()
		if math.Abs(got/float64(rate)-1) > 0.002 {
			t.Errorf("rate %d: got %.0f", rate, got)
		}
	}
}

func TestBufferDrainsWhileARunIsBeingSent(t *testing.T) {
	n, r := newNet(t, Path{Line: Line{Rate: 12_000_000, Buffer: 3000}}) // a 1500-byte packet takes 1 ms
	n.Send(0, to1(Single(1, 1500)))
	n.Send(0, to1(Single(2, 1500)))
	n.Send(Time(ms/2), to1(Single(3, 700))) // 750 bytes have been sent: there is room
	n.Send(Time(ms/2), to1(Single(4, 700)))
	n.Advance(Time(time.Second))
	if len(r.arrived) != 3 || r.dropped[DropQueue] != 1 {
		t.Fatalf("%+v %v", r.arrived, r.dropped)
	}
	_, q := n.Stats(0, 1)
	if q.BytesMax != 3000 || q.Bytes != 0 || q.Dropped != 1 || q.PassedBytes != 3700 {
		t.Fatalf("%+v", q)
	}
}

func TestRateChangesForWhatWaits(t *testing.T) {
	n, r := newNet(t, Path{Line: Line{Rate: 12_000_000, Buffer: 1 << 20}})
	for i := range 10 {
		n.Send(0, to1(Single(uint32(i), 1500)))
	}
	n.SetPath(Time(2500*time.Microsecond), 0, 1, Path{Line: Line{Rate: 120_000_000, Buffer: 1 << 20}})
	n.Advance(Time(time.Second))
	// Two at the old rate, the third was begun, seven at the new one.
	if got, want := r.arrived[9].at, Time(3*ms+7*ms/10); got != want {
		t.Fatalf("last at %v, want %v", got, want)
	}
	n.Send(Time(2*time.Second), to1(Single(11, 1500)))
	n.Send(Time(2*time.Second), to1(Single(12, 1500)))
	n.SetPath(Time(2*time.Second), 0, 1, Path{})
	n.Advance(Time(3 * time.Second))
	if len(r.arrived) != 12 || r.arrived[11].at != r.arrived[10].at {
		t.Fatalf("without a rate what waits leaves at once: %+v", r.arrived[10:])
	}
}

func TestAccessLinksAreShared(t *testing.T) {
	r := &recorder{dropped: map[Cause]int{}}
	n, _ := New(3, 1, r)
	n.SetAccess(0, 2, Line{}, Line{Rate: 12_000_000, Buffer: 4500})
	for i := range 4 {
		n.Send(0, Run{Packet: uint32(i), Count: 1, Total: 1, Head: 1500, From: uint8(i % 2), To: 2})
	}
	n.Advance(Time(time.Second))
	if len(r.arrived) != 3 || r.arrived[2].at != Time(3*ms) || r.dropped[DropQueue] != 1 {
		t.Fatalf("%+v %v", r.arrived, r.dropped)
	}
}

func TestPartitionTakesWhatIsUnderWay(t *testing.T) {
	n, r := newNet(t, Path{Delay: 10 * ms})
	n.Send(0, to1(Single(1, 100)))
	n.SetPath(Time(5*ms), 0, 1, Path{Delay: 10 * ms, Cut: true})
	n.Send(Time(6*ms), to1(Single(2, 100)))
	n.Advance(Time(time.Second))
	if len(r.arrived) != 0 || r.dropped[DropCut] != 2 {
		t.Fatalf("%+v %v", r.arrived, r.dropped)
	}
	n.SetPath(Time(time.Second), 0, 1, Path{Delay: 10 * ms})
	n.Send(Time(time.Second), to1(Single(3, 100)))
	n.Advance(Time(2 * time.Second))
	if len(r.arrived) != 1 {
		t.Fatalf("%+v", r.arrived)
	}
}

func TestLossOfSegments(t *testing.T) {
	n, r := newNet(t, Path{Loss: 0.02})
	const packets, segs = 3000, 40
	for i := range packets {
		n.Send(Time(i), to1(Super(uint32(i), 52, 1448, segs*1448)))
	}
	lost := float64(r.dropped[DropLoss]) / (packets * segs)
	if math.Abs(lost-0.02) > 0.002 || r.segments()+r.dropped[DropLoss] != packets*segs {
		t.Fatalf("lost %.4f", lost)
	}
}

func TestReorderingLetsOthersPass(t *testing.T) {
	n, r := newNet(t, Path{Delay: 5 * ms, Reorder: 0.1, ReorderBy: 2 * ms})
	for i := range 1000 {
		n.Send(Time(i)*Time(ms), to1(Single(uint32(i), 100)))
	}
	n.Advance(Time(10 * time.Second))
	late := 0
	for _, a := range r.arrived {
		switch d := a.at.Sub(Time(a.run.Packet) * Time(ms)); d {
		case 5 * ms:
		case 7 * ms:
			late++
		default:
			t.Fatalf("packet %d took %v", a.run.Packet, d)
		}
	}
	s, _ := n.Stats(0, 1)
	if late < 70 || late > 130 || s.Reordered != uint64(late) || len(r.arrived) != 1000 {
		t.Fatalf("%d of %d held back; %+v", late, len(r.arrived), s)
	}
}

func TestJitterKeepsOrderAndBounds(t *testing.T) {
	n, r := newNet(t, Path{Delay: 5 * ms, Jitter: 2 * ms})
	for i := range 1000 {
		n.Send(Time(i)*Time(ms), to1(Single(uint32(i), 100)))
	}
	n.Advance(Time(10 * time.Second))
	var low, high bool
	for i, a := range r.arrived {
		d := a.at.Sub(Time(i) * Time(ms))
		if int(a.run.Packet) != i || d < 3*ms || d > 7*ms {
			t.Fatalf("packet %d took %v", a.run.Packet, d)
		}
		low, high = low || d < 4*ms, high || d > 6*ms
	}
	if !low || !high {
		t.Fatal("no spread")
	}
}

// TestEverySegmentIsAccountedFor: whatever the settings and however they change, no segment is lost from sight or
// doubled, without reordering order holds, and the same seed gives the same history.
func TestEverySegmentIsAccountedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type op struct {
			at   Time
			kind int
			run  Run
			path Path
			line Line
		}
		var ops []op
		var now Time
		sent := 0
		line := func(label string) Line {
			return Line{Rate: rapid.SampledFrom([]Rate{0, 1e6, 100e6, 2e9}).Draw(t, label), Buffer: rapid.SampledFrom([]int{0, 1500, 20_000, 1 << 20}).Draw(t, label+" buffer")}
		}
		reorder := rapid.Bool().Draw(t, "reorder")
		for i := range rapid.IntRange(1, 60).Draw(t, "ops") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3_000_000).Draw(t, "wait")))
			o := op{at: now, kind: rapid.IntRange(0, 6).Draw(t, "kind")}
			switch o.kind {
			case 0:
				o.path = Path{Line: line("path"), Delay: time.Duration(rapid.IntRange(0, 20).Draw(t, "delay")) * ms, Jitter: time.Duration(rapid.IntRange(0, 5).Draw(t, "jitter")) * ms,
					Loss: rapid.SampledFrom([]float64{0, 0.3, 1}).Draw(t, "loss"), Cut: rapid.IntRange(0, 4).Draw(t, "cut") == 0}
				if reorder {
					o.path.Reorder, o.path.ReorderBy = 0.3, 3*ms
				}
			case 1:
				o.line = line("access")
			default:
				o.run = to1(Super(uint32(i), 52, rapid.IntRange(1, 1448).Draw(t, "seg"), rapid.IntRange(1, 5000).Draw(t, "payload")))
				sent += int(o.run.Count)
			}
			ops = append(ops, o)
		}
		play := func() *recorder {
			r := &recorder{dropped: map[Cause]int{}}
			n, _ := New(2, 7, r)
			for _, o := range ops {
				switch o.kind {
				case 0:
					n.SetPath(o.at, 0, 1, o.path)
				case 1:
					n.SetAccess(o.at, 0, o.line, o.line)
					n.SetAccess(o.at, 1, o.line, o.line)
				default:
					n.Send(o.at, o.run)
				}
			}
			n.Advance(now.Add(time.Hour))
			if n.Next() != Never {
				t.Fatal("something is left after an hour")
			}
			s, q := n.Stats(0, 1)
			if q.Bytes != 0 || int(s.Sent) != sent || s.Delivered+s.DroppedQueue+s.Lost+s.DroppedCut != s.Sent {
				t.Fatalf("%+v %+v, sent %d", s, q, sent)
			}
			return r
		}
		r := play()
		total := r.segments()
		seen := map[[2]int]bool{}
		last := [2]int{-1, -1}
		var at Time
		for _, a := range r.arrived {
			if a.at < at {
				t.Fatal("time went back")
			}
			at = a.at
			for s := a.run.First; s < a.run.First+a.run.Count; s++ {
				k := [2]int{int(a.run.Packet), int(s)}
				if seen[k] {
					t.Fatalf("twice: %v", k)
				}
				seen[k] = true
				if !reorder && (k[0] < last[0] || k[0] == last[0] && k[1] < last[1]) {
					t.Fatalf("%v after %v", k, last)
				}
				last = k
			}
		}
		for _, n := range r.dropped {
			total += n
		}
		if total != sent {
			t.Fatalf("sent %d, accounted for %d", sent, total)
		}
		again := play()
		if len(again.arrived) != len(r.arrived) {
			t.Fatal("another history from the same seed")
		}
		for i := range again.arrived {
			if again.arrived[i] != r.arrived[i] {
				t.Fatal("another history from the same seed")
			}
		}
	})
}

func TestRunBytes(t *testing.T) {
	r := Super(1, 52, 1448, 3*1448+10)
	if r.Count != 4 || r.Bytes() != 3*1500+62 {
		t.Fatalf("%+v %d", r, r.Bytes())
	}
	a, b := r.cut(1)
	if a.Bytes() != 1500 || b.Bytes() != 2*1500+62 || a.Whole() || !r.Whole() {
		t.Fatalf("%+v %+v", a, b)
	}
	if s := Super(1, 52, 1448, 1448); s.Bytes() != 1500 || s.Count != 1 {
		t.Fatalf("%+v", s)
	}
}

type nowhere struct{}

func (nowhere) Deliver(Run, Time) {}
func (nowhere) Drop(Run, Cause)   {}

// TestNothingIsAllocated: the router runs without a garbage collector.
func TestNothingIsAllocated(t *testing.T) {
	n, _ := New(2, 1, nowhere{})
	n.SetPath(0, 0, 1, Path{Line: Line{Rate: 1e9, Buffer: 1 << 20}, Delay: ms, Loss: 0.01, Reorder: 0.01, ReorderBy: ms})
	var now Time
	step := func() {
		for range 50 {
			n.Send(now, to1(Super(1, 52, 1448, 60_000)))
			now = now.Add(600 * time.Microsecond)
		}
	}
	step()
	if a := testing.AllocsPerRun(20, step); a > 0 {
		t.Errorf("%v allocations", a)
	}
}

func BenchmarkSend(b *testing.B) {
	n, _ := New(2, 1, nowhere{})
	n.SetPath(0, 0, 1, Path{Line: Line{Rate: 10e9}, Delay: 9 * ms})
	var now Time
	for b.Loop() {
		n.Send(now, to1(Super(1, 52, 1448, 43*1448)))
		now = now.Add(52 * time.Microsecond)
	}
	b.SetBytes(43 * 1500)
}
