package access

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the counters of all owners of a node. docs/reference/metrics.md says what each means.
type Metrics struct {
	Stale        prometheus.Counter
	NoLease      prometheus.Counter
	Corrupt      prometheus.Counter
	Evicted      prometheus.Counter
	Checkpoints  prometheus.Counter
	Dropped      prometheus.Counter
	Retired      prometheus.Counter
	Repaired     prometheus.Counter
	Emptied      prometheus.Counter
	Moved        prometheus.Counter
	CopiedBytes  prometheus.Counter
	Referred     prometheus.Counter
	ShippedBytes prometheus.Counter
	ShipMismatch prometheus.Counter
	Forwarded    prometheus.Counter
	HandedOver   prometheus.Counter
	HandFailed   prometheus.Counter
	HandSeconds  prometheus.Histogram
	FarHits      prometheus.Counter
	FarMisses    prometheus.Counter
	FarFetched   prometheus.Counter
	FarAhead     prometheus.Counter
	Follows      prometheus.Counter
	FollowHeld   prometheus.Counter
	FollowFailed prometheus.Counter
	SyncSeconds  prometheus.Histogram
	Forks        prometheus.Counter
	SlowFlushes  prometheus.Counter
	Strays       prometheus.Gauge

	SiteTakeovers prometheus.Counter
}

// NewMetrics registers the metrics with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "dozo", Subsystem: "access", Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	m := &Metrics{
		Stale:         counter("stale_commands_total", "Commands refused because they might have been retried elsewhere (R9)."),
		NoLease:       counter("no_lease_total", "Reads refused because for seconds fewer than two stores had granted a lease (R6)."),
		Corrupt:       counter("corrupt_reads_total", "Reads that met a bad checksum and went to another replica."),
		Evicted:       counter("map_evicted_bytes_total", "Bytes of the map that were paged out."),
		Checkpoints:   counter("checkpoints_total", "Checkpoints announced."),
		Dropped:       counter("replicas_dropped_total", "Local replicas dropped because other sites hold the segment."),
		Retired:       counter("segments_retired_total", "Segments that nothing needed any more."),
		Repaired:      counter("replicas_repaired_total", "Replicas made again."),
		Emptied:       counter("replicas_emptied_total", "Replicas made elsewhere because their store is being emptied."),
		Moved:         counter("replicas_moved_total", "Replicas made elsewhere because their store has less room than others."),
		CopiedBytes:   counter("copied_bytes_total", "Bytes of replicas that were made again, for whatever reason."),
		Referred:      counter("copied_by_reference_bytes_total", "Bytes of ranges that were copied within their volume by reference."),
		ShippedBytes:  counter("shipped_bytes_total", "Bytes of segments that other sites have taken."),
		SlowFlushes:   counter("slow_flushes_total", "Times that a flush had waited for many seconds and the log said for what."),
		ShipMismatch:  counter("ship_mismatch_total", "Times a site's copy did not continue the owner's history."),
		Forwarded:     counter("forwarded_commands_total", "Commands passed on to the owner at another node."),
		HandedOver:    counter("hand_overs_total", "Journals that this node has handed over to another."),
		FarHits:       counter("far_cached_reads_total", "Reads of blocks that the owner's site lacks, answered from what is kept of other sites."),
		FarMisses:     counter("far_reads_total", "Reads that waited for blocks of another site."),
		FarFetched:    counter("far_bytes_total", "Bytes of blocks that were read at other sites."),
		FarAhead:      counter("far_ahead_bytes_total", "Of these, bytes that nobody had asked for yet."),
		Follows:       counter("follows_total", "Journals that this node has handed over because all writes came from elsewhere."),
		FollowHeld:    counter("follows_held_total", "Times that a journal stayed though all writes came from elsewhere: by its policy, or because it had moved lately."),
		FollowFailed:  counter("follows_failed_total", "Hand-overs to where all writes came from that were called off."),
		HandFailed:    counter("hand_overs_failed_total", "Hand-overs that were called off: the owner went on."),
		Forks:         counter("forks_total", "Times records that are not of the history which is served were set aside."),
		SiteTakeovers: counter("site_takeovers_total", "Volumes with the partition policy stop that this node has taken over from a site that was lost."),
		HandSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "dozo", Subsystem: "access", Name: "hand_over_pause_seconds",
			Help: "How long commands waited for a hand-over, as the old owner saw it.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 12)}),
		Strays: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "dozo", Subsystem: "access", Name: "stray_replicas",
			Help: "Replicas of no segment that stores have reported and that are not yet permitted to go."}),
		SyncSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "dozo", Subsystem: "access", Name: "sync_seconds",
			Help: "How long stores took for an fdatasync.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18)}),
	}
	reg.MustRegister(m.SyncSeconds, m.HandSeconds, m.Strays)
	return m
}
