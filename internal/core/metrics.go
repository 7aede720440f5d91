package core

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one store; docs/reference/metrics.md says what they mean.
type metrics struct {
	appendSeconds prometheus.Histogram
	appendRecords prometheus.Counter
	readSeconds   prometheus.Histogram
	readBytes     prometheus.Counter
	syncSeconds   prometheus.Histogram
	slowSyncs     prometheus.Counter
	corrupt       prometheus.Counter
	scrubbed      prometheus.Counter
	scrubPassed   prometheus.Gauge
	damaged       prometheus.Counter
	healed        prometheus.Counter
	failed        prometheus.Gauge
	used          prometheus.GaugeFunc
	replicas      prometheus.GaugeFunc
	aside         prometheus.GaugeFunc
	spares        prometheus.GaugeFunc
	recycled      prometheus.Counter

	registered []prometheus.Collector
	reg        prometheus.Registerer
}

// ioBuckets go from a few microseconds (page cache) to seconds (a dying disk).
var ioBuckets = prometheus.ExponentialBuckets(2e-6, 4, 11)

func newMetrics(s *Store, reg prometheus.Registerer) *metrics {
	labels := prometheus.Labels{"store": s.id.String()}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: labels, Buckets: ioBuckets})
	}
	m := &metrics{
		appendSeconds: histogram("dozo_core_append_seconds", "Time for an append to reach the kernel."),
		appendRecords: counter("dozo_core_append_records_total", "Records appended."),
		readSeconds:   histogram("dozo_core_read_seconds", "Time for a read, verified."),
		readBytes:     counter("dozo_core_read_bytes_total", "Bytes of blocks read."),
		syncSeconds:   histogram("dozo_core_sync_seconds", "Time of an fdatasync of a segment."),
		slowSyncs:     counter("dozo_core_slow_syncs_total", "fdatasyncs that took longer than the limit of a flush."),
		corrupt:       counter("dozo_core_corrupt_total", "Checksum mismatches and unreadable places found."),
		scrubbed:      counter("dozo_core_scrub_bytes_total", "Bytes verified by the scrubber."),
		damaged:       counter("dozo_core_damaged_total", "Replicas in which a bad place was found, by whoever read it."),
		healed:        counter("dozo_core_healed_total", "Damaged replicas that were made again, here or elsewhere."),
		scrubPassed:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "dozo_core_scrub_passed_timestamp_seconds", Help: "When the last full pass of the scrubber ended; 0: none has.", ConstLabels: labels}),
		recycled:      counter("dozo_core_recycled_total", "Segments written over the file of a dropped replica."),
		failed:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "dozo_core_store_failed", Help: "1 if the store takes no appends any more.", ConstLabels: labels}),
	}
	m.used = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dozo_core_used_bytes", Help: "Bytes in replicas.", ConstLabels: labels},
		func() float64 { return float64(s.used.Load()) })
	m.replicas = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dozo_core_replicas", Help: "Replicas of segments.", ConstLabels: labels},
		func() float64 {
			s.mu.RLock()
			defer s.mu.RUnlock()
			return float64(len(s.mu.replicas))
		})
	m.aside = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dozo_core_set_aside_files", Help: "Files of damaged replicas that were set aside.", ConstLabels: labels},
		func() float64 { return float64(s.aside.Load()) })
	m.spares = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dozo_core_spare_bytes", Help: "Bytes in files of dropped replicas that are kept for new segments.", ConstLabels: labels},
		func() float64 { return float64(s.spares.bytes()) })
	if at := s.scrub.mu.Passed; !at.IsZero() {
		m.scrubPassed.Set(float64(at.Unix()))
	}
	if reg != nil {
		m.reg = reg
		for _, c := range []prometheus.Collector{m.appendSeconds, m.appendRecords, m.readSeconds, m.readBytes, m.syncSeconds,
			m.slowSyncs, m.corrupt, m.scrubbed, m.scrubPassed, m.damaged, m.healed, m.failed, m.used, m.replicas, m.aside, m.spares, m.recycled} {
			if err := reg.Register(c); err != nil {
				s.log.Error("metric not registered", "err", err)
				continue
			}
			m.registered = append(m.registered, c)
		}
	}
	return m
}

func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.reg.Unregister(c)
	}
}

func (m *metrics) appended(records int, took time.Duration) {
	m.appendSeconds.Observe(took.Seconds())
	m.appendRecords.Add(float64(records))
}

func (m *metrics) read(bytes int, took time.Duration) {
	m.readSeconds.Observe(took.Seconds())
	m.readBytes.Add(float64(bytes))
}

func (m *metrics) synced(took time.Duration) { m.syncSeconds.Observe(took.Seconds()) }
