package bench

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Histogram counts durations in buckets of at most 1.6 % width. Any number of goroutines may record at once.
type Histogram struct {
	count [histBuckets]atomic.Uint64
	n     atomic.Uint64
	sum   atomic.Uint64
	max   atomic.Uint64
}

const (
	histSubBits = 6 // 64 buckets for each power of two
	histSub     = 1 << histSubBits
	// 2^40 ns are 18 minutes; what is longer counts as that long.
	histMaxBits = 40
	histBuckets = (histMaxBits - histSubBits + 1) * histSub
)

func bucketOf(ns uint64) int {
	if ns < histSub {
		return int(ns)
	}
	exp := bits.Len64(ns) - 1 - histSubBits
	i := exp*histSub + int(ns>>exp)
	return min(i, histBuckets-1)
}

// bucketTop is the largest value of bucket i.
func bucketTop(i int) uint64 {
	if i < 2*histSub {
		return uint64(i)
	}
	exp := i/histSub - 1
	return (uint64(i-exp*histSub)+1)<<exp - 1
}

// Record adds d.
func (h *Histogram) Record(d time.Duration) {
	ns := uint64(max(d, 0))
	h.count[bucketOf(ns)].Add(1)
	h.n.Add(1)
	h.sum.Add(ns)
	for {
		old := h.max.Load()
		if ns <= old || h.max.CompareAndSwap(old, ns) {
			return
		}
	}
}

// N is how many durations were recorded.
func (h *Histogram) N() uint64 { return h.n.Load() }

// Max is the longest one.
func (h *Histogram) Max() time.Duration { return time.Duration(h.max.Load()) }

// Mean is the average.
func (h *Histogram) Mean() time.Duration {
	if n := h.n.Load(); n > 0 {
		return time.Duration(h.sum.Load() / n)
	}
	return 0
}

// Quantile is a duration that the share q of all do not exceed.
func (h *Histogram) Quantile(q float64) time.Duration {
	n := h.n.Load()
	if n == 0 {
		return 0
	}
	rank := uint64(q * float64(n))
	if float64(rank) < q*float64(n) || rank == 0 {
		rank++
	}
	seen := uint64(0)
	for i := range h.count {
		seen += h.count[i].Load()
		if seen >= rank {
			return min(time.Duration(bucketTop(i)), h.Max())
		}
	}
	return h.Max()
}

// Latency is a histogram's summary in microseconds.
type Latency struct {
	N     uint64  `json:"n"`
	Mean  float64 `json:"mean_us"`
	P50   float64 `json:"p50_us"`
	P90   float64 `json:"p90_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p99_9_us"`
	P9999 float64 `json:"p99_99_us"`
	Max   float64 `json:"max_us"`
}

func us(d time.Duration) float64 { return float64(d) / 1e3 }

// Summary is what reports show; nil if nothing was recorded.
func (h *Histogram) Summary() *Latency {
	if h.N() == 0 {
		return nil
	}
	return &Latency{h.N(), us(h.Mean()), us(h.Quantile(.5)), us(h.Quantile(.9)), us(h.Quantile(.99)),
		us(h.Quantile(.999)), us(h.Quantile(.9999)), us(h.Max())}
}
