package instance_test

import (
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/instance"
)

func TestWindowBegins(t *testing.T) {
	for name, c := range map[string]struct{ cron, after, want string }{
		"a time zone": {"CRON_TZ=Europe/Berlin 0 2 * * 0", "2026-11-20T00:00:00Z",
			"2026-11-22T01:00:00Z"},
		"Sunday as 0":                 {"CRON_TZ=UTC 0 2 * * 0", "2026-11-20T00:00:00Z", "2026-11-22T02:00:00Z"},
		"Sunday as 7":                 {"CRON_TZ=UTC 0 2 * * 7", "2026-11-20T00:00:00Z", "2026-11-22T02:00:00Z"},
		"a range that ends on Sunday": {"CRON_TZ=UTC 0 2 * * 6-7", "2026-11-21T02:00:00Z", "2026-11-22T02:00:00Z"},
		"names":                       {"CRON_TZ=UTC 0 2 * DEC sun", "2026-11-20T00:00:00Z", "2026-12-06T02:00:00Z"},
		"a list with a step":          {"CRON_TZ=UTC 0,30 */6 * * *", "2026-11-20T00:30:00Z", "2026-11-20T06:00:00Z"},
		"a descriptor":                {"CRON_TZ=UTC @daily", "2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"},
		"day of the month or of the week: Monday": {"CRON_TZ=UTC 0 0 13 * 1", "2026-11-20T00:00:00Z",
			"2026-11-23T00:00:00Z"},
		"day of the month or of the week: 13th": {"CRON_TZ=UTC 0 0 13 * 1", "2026-12-08T00:00:00Z",
			"2026-12-13T00:00:00Z"},
		"a time that the clock skips": {"CRON_TZ=Europe/Berlin 30 2 * * *", "2026-03-28T12:00:00Z",
			"2026-03-29T01:30:00Z"},
		"the day after": {"CRON_TZ=Europe/Berlin 30 2 * * *", "2026-03-29T01:30:00Z",
			"2026-03-30T00:30:00Z"},
		"a time that comes twice, the first": {"CRON_TZ=Europe/Berlin 30 2 * * *", "2026-10-24T12:00:00Z",
			"2026-10-25T00:30:00Z"},
		"a time that comes twice, the second": {"CRON_TZ=Europe/Berlin 30 2 * * *", "2026-10-25T00:30:00Z",
			"2026-10-25T01:30:00Z"},
	} {
		begins, err := instance.Window{Cron: c.cron}.Begins()
		if err != nil {
			t.Errorf("%s: %q: %v", name, c.cron, err)
			continue
		}
		after, err := time.Parse(time.RFC3339, c.after)
		if err != nil {
			t.Fatal(err)
		}
		if got := begins.Next(after).UTC().Format(time.RFC3339); got != c.want {
			t.Errorf("%s: %q after %s begins at %s, want %s", name, c.cron, c.after, got, c.want)
		}
	}
}

func TestWindowRefuses(t *testing.T) {
	for _, cron := range []string{
		"", " ", "CRON_TZ=Europe/Berlin", "TZ=UTC", "CRON_TZ=", "CRON_TZ=Nowhere/City 0 2 * * 0",
		"0 2 * *", "0 0 2 * * 0", "0 2 * * 8", "60 * * * *", "*/0 * * * *", "0 2 L * *", "@reboot",
	} {
		if _, err := (instance.Window{Cron: cron}).Begins(); err == nil {
			t.Errorf("%q is accepted", cron)
		}
	}
}
