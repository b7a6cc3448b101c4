package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/launcher"
)

func TestMaintenanceWindows(t *testing.T) {
	in := &instance.Instance{Settings: instance.Settings{Maintenance: []instance.Window{
		{Cron: "CRON_TZ=UTC 0 2 * * 0", For: 2 * time.Hour, Why: "backup"},
		{Cron: "CRON_TZ=UTC 30 3 * * *", For: time.Hour, Job: "daily"},
	}}}
	sunday := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	for at, want := range map[time.Duration]string{
		time.Hour: "", 2 * time.Hour: "the instance", 3*time.Hour + 59*time.Minute: "the instance, job daily",
		4 * time.Hour: "job daily", 5 * time.Hour: "",
		26 * time.Hour: "", 27*time.Hour + 31*time.Minute: "job daily",
	} {
		got := ""
		for _, p := range windows(in, nil, sunday.Add(at)) {
			if got != "" {
				got += ", "
			}
			got += p.String()
			if p.Over(sunday.Add(at)) || p.Since.After(sunday.Add(at)) {
				t.Errorf("after %s: %+v does not hold", at, p)
			}
		}
		if got != want {
			t.Errorf("%s after Sunday began: %q is paused, want %q", at, got, want)
		}
	}
}

// A window that was ended by hand is over until it begins again, and no other one is.
func TestWindowsEndEarly(t *testing.T) {
	in := &instance.Instance{Settings: instance.Settings{Maintenance: []instance.Window{
		{Cron: "CRON_TZ=UTC 0 2 * * *", For: 2 * time.Hour, Job: "a"},
		{Cron: "CRON_TZ=UTC 0 3 * * *", For: 2 * time.Hour, Job: "a"},
		{Cron: "CRON_TZ=UTC 0 2 * * *", For: 4 * time.Hour, Job: "b"},
	}}}
	day := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	entries := map[string]string{}
	held := func(at time.Duration) string {
		t.Helper()
		pauses, bad := holding(in, entries, day.Add(at))
		if len(bad) > 0 {
			t.Fatal(bad)
		}
		var names []string
		for _, p := range pauses {
			names = append(names, p.String())
		}
		return strings.Join(names, ", ")
	}
	if got := held(150 * time.Minute); got != "job a, job b" {
		t.Fatalf("before: %q is paused", got)
	}
	for _, w := range Windows(in, entries, day.Add(150*time.Minute)) {
		if w.Value == "a" {
			end := w.End("ann", day.Add(150*time.Minute))
			entries[end.Key()] = end.Text()
		}
	}
	for at, want := range map[time.Duration]string{
		150 * time.Minute: "job b", 179 * time.Minute: "job b", 181 * time.Minute: "job a, job b",
		299 * time.Minute: "job a, job b", 301 * time.Minute: "job b", 26*time.Hour + time.Minute: "job a, job b",
	} {
		if got := held(at); got != want {
			t.Errorf("%s after the day began: %q is paused, want %q", at, got, want)
		}
	}
}

// Deaths of one job of one cause in a short time pause that job, once; others do not add up.
func TestCrashLoopBrake(t *testing.T) {
	now := time.Unix(1795337531, 0)
	var paused []queue.Pause
	b := &brake{set: instance.Brake{Deaths: 3, Within: time.Minute, Pause: time.Hour}, pause: func(p queue.Pause) {
		paused = append(paused, p)
	}}
	die := func(job string, cause launcher.Cause, after time.Duration) { b.died(job, cause, now.Add(after)) }
	die("a", launcher.CauseExit, 0)
	die("a", launcher.CauseExit, 59*time.Second)
	die("a", launcher.CauseOOM, 59*time.Second)
	die("b", launcher.CauseExit, 59*time.Second)
	die("a", launcher.CauseExit, 61*time.Second) // the first one is too long ago
	if len(paused) > 0 {
		t.Fatalf("paused %v too early", paused)
	}
	die("a", launcher.CauseExit, 62*time.Second)
	if len(paused) != 1 || paused[0].Scope != queue.OfJob || paused[0].Value != "a" ||
		paused[0].Why != "3 of its workers died of exit within 3s" ||
		paused[0].Until != now.Add(62*time.Second+time.Hour) {
		t.Fatalf("paused %+v", paused)
	}
	die("a", launcher.CauseExit, 63*time.Second)
	if len(paused) != 1 {
		t.Errorf("paused again at once: %+v", paused)
	}
	off := &brake{pause: func(queue.Pause) { t.Error("a brake that is off brakes") }}
	for range 100 {
		off.died("a", launcher.CauseExit, now)
	}
}
