// Package web is what of a daemon is seen from outside: metrics for Prometheus, health, and its
// status.
package web

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/slipway-run/slipway/internal/queue"
)

// Metrics are a daemon's. Its labels are bounded: names of launchers, reasons, causes, outcomes,
// statuses, phases. Its methods may be called from many goroutines at once; those of a nil Metrics
// do nothing.
type Metrics struct {
	registry *prometheus.Registry

	waiting                    *prometheus.GaugeVec
	inFlight, oldest           prometheus.Gauge
	launches                   *prometheus.HistogramVec
	queued                     prometheus.Histogram
	phases                     *prometheus.HistogramVec
	ended, deaths, rateLimited *prometheus.CounterVec
	cost, seconds, held        *prometheus.CounterVec
	orphans                    *prometheus.GaugeVec
	lease                      *prometheus.HistogramVec
	leads, epoch, pauses       prometheus.Gauge
	sick                       *prometheus.GaugeVec
}

// NewMetrics makes the metrics of one daemon.
func NewMetrics(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "slipway_" + name, Help: help})
		m.registry.MustRegister(g)
		return g
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "slipway_" + name, Help: help}, labels)
		m.registry.MustRegister(g)
		return g
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "slipway_" + name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	times := func(name, help string, first float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "slipway_" + name, Help: help,
			Buckets: prometheus.ExponentialBuckets(first, 2, 16)}, labels)
		m.registry.MustRegister(h)
		return h
	}
	m.waiting = gauges("queued_runs", "Queued runs that wait, by reason.", "reason")
	m.inFlight = gauge("in_flight_runs", "Runs that are STARTING, STARTED or CANCELING, whoever launched them.")
	m.oldest = gauge("oldest_queued_run_timestamp_seconds", "When the oldest queued run was made; 0 if there is none.")
	m.queued = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "slipway_queue_seconds",
		Help: "Time of runs from their creation to their claim.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 20)})
	m.registry.MustRegister(m.queued)
	m.launches = times("launch_seconds",
		"Time from a claim to the outcome of its launch, by launcher and outcome (launched, failed, requeued).", 0.005,
		"launcher", "outcome")
	m.phases = times("phase_seconds", "Time that workers spent in a phase, by launcher and phase.", 0.01, "launcher",
		"phase")
	m.ended = counters("ended_runs_total", "Runs of Slipway's that ended, by launcher and status.", "launcher",
		"status")
	m.deaths = counters("worker_deaths_total",
		"Workers that were proved dead before their run was finished, by launcher and cause.", "launcher", "cause")
	m.rateLimited = counters("rate_limited_total", "Calls to a target that it refused for their rate, by launcher.",
		"launcher")
	m.held = counters("held_answers_total",
		"Answers of targets that prove nothing of a worker, by which its run was left as it is, by launcher and "+
			"answer (unknown, not_found, error).", "launcher", "answer")
	m.cost = counters("cost_total", "What workers have cost on targets that bill them, by launcher and currency.",
		"launcher", "currency")
	m.seconds = counters("billed_seconds_total", "Seconds that targets bill, by launcher and what (cpu, gb).",
		"launcher", "what")
	m.orphans = gauges("orphans", "Workers that no run needs, at the last sweep, by launcher.", "launcher")
	m.lease = times("storage_seconds",
		"Time of a small write to the storage, the renewal of the lease, by outcome (ok, error).", 0.0005, "outcome")
	m.leads = gauge("leader", "1 while this daemon leads the instance.")
	m.epoch = gauge("epoch",
		"Epoch of this daemon's lead: how many leaders the instance has had; 0 while it stands by.")
	m.pauses = gauge("pauses", "Pauses that hold now.")
	m.sick = gauges("launcher_sick",
		"1 while the calls of a launcher, or of one of the places behind it such as a code server, fail and it gets "+
			"but single ones; the place is empty for the launcher itself.", "launcher", "place")
	info := gauges("info", "1; its label is the version.", "version")
	info.WithLabelValues(version).Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// reasons are all that a queued run can wait for.
var reasons = []queue.Reason{queue.Limit, queue.TagFull, queue.PoolFull, queue.Paused, queue.Backoff, queue.Busy,
	queue.Sick, queue.Rival}

// Waiting takes in what a pass left in the queue.
func (m *Metrics) Waiting(w queue.Waiting) {
	if m == nil {
		return
	}
	for _, r := range reasons {
		m.waiting.WithLabelValues(string(r)).Set(float64(w.Reasons[r]))
	}
	m.inFlight.Set(float64(w.InFlight))
	m.oldest.Set(0)
	if !w.Oldest.IsZero() {
		m.oldest.Set(float64(w.Oldest.UnixMilli()) / 1000)
	}
}

// Claimed takes in a claim of a run.
func (m *Metrics) Claimed(waited time.Duration) {
	if m != nil {
		m.queued.Observe(waited.Seconds())
	}
}

// Launched takes in the outcome of a launch.
func (m *Metrics) Launched(launcher, outcome string, took time.Duration) {
	if m != nil {
		m.launches.WithLabelValues(launcher, outcome).Observe(took.Seconds())
	}
}

// Phase takes in how long a worker was in a phase.
func (m *Metrics) Phase(launcher, phase string, took time.Duration) {
	if m != nil {
		m.phases.WithLabelValues(launcher, phase).Observe(took.Seconds())
	}
}

// Ended takes in the end of a run.
func (m *Metrics) Ended(launcher, status string) {
	if m != nil {
		m.ended.WithLabelValues(launcher, status).Inc()
	}
}

// Died takes in the death of a worker.
func (m *Metrics) Died(launcher, cause string) {
	if m != nil {
		m.deaths.WithLabelValues(launcher, cause).Inc()
	}
}

// Held takes in an answer that proves nothing.
func (m *Metrics) Held(launcher, answer string) {
	if m != nil {
		m.held.WithLabelValues(launcher, answer).Inc()
	}
}

// Cost takes in what a worker has cost.
func (m *Metrics) Cost(launcher, currency string, amount, cpu, gb float64) {
	if m == nil {
		return
	}
	m.seconds.WithLabelValues(launcher, "cpu").Add(cpu)
	m.seconds.WithLabelValues(launcher, "gb").Add(gb)
	if currency != "" {
		m.cost.WithLabelValues(launcher, currency).Add(amount)
	}
}

// RateLimited takes in that a target refused a call for its rate.
func (m *Metrics) RateLimited(launcher string) {
	if m != nil {
		m.rateLimited.WithLabelValues(launcher).Inc()
	}
}

// Orphans takes in how many workers a sweep found that no run needs.
func (m *Metrics) Orphans(launcher string, n int) {
	if m != nil {
		m.orphans.WithLabelValues(launcher).Set(float64(n))
	}
}

// Lease takes in one renewal of the lease.
func (m *Metrics) Lease(took time.Duration, err error) {
	if m == nil {
		return
	}
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.lease.WithLabelValues(outcome).Observe(took.Seconds())
}

// Leads takes in whether this daemon leads, and since which epoch.
func (m *Metrics) Leads(is bool, epoch int64) {
	if m == nil {
		return
	}
	m.leads.Set(0)
	m.epoch.Set(0)
	if is {
		m.leads.Set(1)
		m.epoch.Set(float64(epoch))
	}
}

// Pauses takes in how many pauses hold.
func (m *Metrics) Pauses(n int) {
	if m != nil {
		m.pauses.Set(float64(n))
	}
}

// Sick takes in which launchers and places behind them there are, and whether they are sick.
func (m *Metrics) Sick(sick map[[2]string]bool) {
	if m == nil {
		return
	}
	m.sick.Reset()
	for of, is := range sick {
		v := 0.0
		if is {
			v = 1
		}
		m.sick.WithLabelValues(of[0], of[1]).Set(v)
	}
}
