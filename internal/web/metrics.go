// Package web shows a daemon to the outside over HTTP: metrics for Prometheus, health and status.
package web

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/slipway-run/slipway/internal/queue"
)

// Metrics are the metrics of a daemon. The values of their labels are bounded: names of launchers,
// reasons, causes, outcomes, statuses, phases. The methods may be called from many goroutines at
// once. On a nil Metrics they do nothing.
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

// NewMetrics returns the metrics of one daemon.
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
	m.inFlight = gauge("in_flight_runs",
		"Runs that are STARTING, STARTED or CANCELING, including runs that Slipway did not launch.")
	m.oldest = gauge("oldest_queued_run_timestamp_seconds",
		"When the oldest queued run was created; 0 if there is none.")
	m.queued = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "slipway_queue_seconds",
		Help: "Time of runs from their creation to their claim.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 20)})
	m.registry.MustRegister(m.queued)
	m.launches = times("launch_seconds",
		"Time from a claim to the outcome of its launch, by launcher and outcome (launched, failed, requeued).", 0.005,
		"launcher", "outcome")
	m.phases = times("phase_seconds", "Time that workers spent in a phase, by launcher and phase.", 0.01, "launcher",
		"phase")
	m.ended = counters("ended_runs_total", "Runs launched by Slipway that ended, by launcher and status.", "launcher",
		"status")
	m.deaths = counters("worker_deaths_total",
		"Workers that were proved dead before their run was finished, by launcher and cause.", "launcher", "cause")
	m.rateLimited = counters("rate_limited_total",
		"Calls that a target refused because of their rate, by launcher.", "launcher")
	m.held = counters("held_answers_total",
		"Answers of targets that proved nothing about a worker, so that its run was left alone, by launcher and "+
			"answer (unknown, not_found, error).", "launcher", "answer")
	m.cost = counters("cost_total", "Cost of workers on targets that bill them, by launcher and currency.",
		"launcher", "currency")
	m.seconds = counters("billed_seconds_total", "Seconds that targets bill, by launcher and what (cpu, gb).",
		"launcher", "what")
	m.orphans = gauges("orphans", "Workers that no run needs, at the last sweep, by launcher.", "launcher")
	m.lease = times("storage_seconds",
		"Time of a small write to the storage, the renewal of the lease, by outcome (ok, error).", 0.0005, "outcome")
	m.leads = gauge("leader", "1 while this daemon leads the instance.")
	m.epoch = gauge("epoch",
		"Epoch of this daemon's lead: how many leaders the instance has had; 0 while it stands by.")
	m.pauses = gauge("pauses", "Pauses in force now.")
	m.sick = gauges("launcher_sick",
		"1 while the calls of a launcher, or of a place behind it such as a code server, fail and it gets one call at "+
			"a time; the place is empty for the launcher itself.", "launcher", "place")
	info := gauges("info", "1; its label is the version.", "version")
	info.WithLabelValues(version).Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// reasons are all that a queued run can wait for.
var reasons = []queue.Reason{queue.Limit, queue.TagFull, queue.PoolFull, queue.Paused, queue.Backoff, queue.Busy,
	queue.Sick, queue.Rival}

// Waiting records what a pass left in the queue.
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

// Claimed records the claim of a run, and how long the run waited for it.
func (m *Metrics) Claimed(waited time.Duration) {
	if m != nil {
		m.queued.Observe(waited.Seconds())
	}
}

// Launched records the outcome of a launch, and the time since its claim.
func (m *Metrics) Launched(launcher, outcome string, took time.Duration) {
	if m != nil {
		m.launches.WithLabelValues(launcher, outcome).Observe(took.Seconds())
	}
}

// Phase records how long a worker was in a phase.
func (m *Metrics) Phase(launcher, phase string, took time.Duration) {
	if m != nil {
		m.phases.WithLabelValues(launcher, phase).Observe(took.Seconds())
	}
}

// Ended records the end of a run.
func (m *Metrics) Ended(launcher, status string) {
	if m != nil {
		m.ended.WithLabelValues(launcher, status).Inc()
	}
}

// Died records the death of a worker.
func (m *Metrics) Died(launcher, cause string) {
	if m != nil {
		m.deaths.WithLabelValues(launcher, cause).Inc()
	}
}

// Held records an answer that proves nothing.
func (m *Metrics) Held(launcher, answer string) {
	if m != nil {
		m.held.WithLabelValues(launcher, answer).Inc()
	}
}

// Cost records the cost of a worker. The amounts cpu and gb are in seconds; a currency of "" means
// that there is no amount.
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

// RateLimited records that a target refused a call because of the rate of calls.
func (m *Metrics) RateLimited(launcher string) {
	if m != nil {
		m.rateLimited.WithLabelValues(launcher).Inc()
	}
}

// Orphans records how many workers that no run needs a sweep found.
func (m *Metrics) Orphans(launcher string, n int) {
	if m != nil {
		m.orphans.WithLabelValues(launcher).Set(float64(n))
	}
}

// Lease records one renewal of the lease.
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

// Leads records whether this daemon leads, and in which epoch.
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

// Pauses records how many pauses are in force.
func (m *Metrics) Pauses(n int) {
	if m != nil {
		m.pauses.Set(float64(n))
	}
}

// Sick records which of all launchers and places behind them are sick. Keys are launcher and place.
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
