package queue

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/test/storagetest"
)

// taker takes claimed runs and starts nothing.
type taker struct {
	taken, launchers []string
	busy, sick       string // names of launchers
	targets          func(storage.Run) string
	waits            []string
}

func (k *taker) Target(launcher string, r storage.Run) string {
	if k.targets != nil {
		return k.targets(r)
	}
	return launcher
}

func (k *taker) Waits(r storage.Run, target string) bool {
	k.waits = append(k.waits, r.ID+" for "+target)
	return true
}

func (k *taker) Room(name string) (int, bool) {
	switch name {
	case k.sick:
		return 0, true
	case k.busy:
		return 0, false
	}
	return 100, false
}

func (k *taker) Token(string) string { return uuid.NewString() }

func (k *taker) Launch(r storage.Run) {
	k.taken, k.launchers = append(k.taken, r.ID), append(k.launchers, r.Launch.Launcher)
}

func newLoop(t *testing.T, limit int) (*Loop, *storagetest.Dagster, *taker) {
	t.Helper()
	d := storagetest.NewSQLite(t)
	if err := d.Exec("UPDATE runs SET status = 'CANCELED' WHERE status = 'QUEUED'"); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), d.Location)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	fence, leads, err := s.Lead(t.Context(), "slipway-test", time.Minute)
	if err != nil || !leads {
		t.Fatal(leads, err)
	}
	k := &taker{}
	l := &Loop{
		Store: s, Fence: fence, Instance: "i", Limits: Limits{MaxConcurrentRuns: limit},
		Route:    func(storage.Run) []string { return []string{"local"} },
		Launcher: k, Inbox: storage.NewInbox(), Log: slog.New(slog.DiscardHandler),
	}
	l.index = newIndex(l.Limits, l.stops)
	return l, d, k
}

// read gives the loop what stands in storage, as the feed does.
func read(t *testing.T, l *Loop) []storage.Run {
	t.Helper()
	runs, err := l.Store.(storage.Reader).Runs(t.Context(), storage.Filter{Statuses: dagster.UnfinishedStatuses()})
	if err != nil {
		t.Fatal(err)
	}
	return runs
}

func pass(t *testing.T, l *Loop) time.Duration {
	t.Helper()
	wait, err := l.pass(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return wait
}

// What the feed read before a claim must not free the place of the claimed run.
func TestStaleNewsFreesNoPlace(t *testing.T) {
	l, d, k := newLoop(t, 1)
	if err := d.Enqueue("run-a", nil); err != nil {
		t.Fatal(err)
	}
	stale := read(t, l)[0]
	l.changed(stale)
	pass(t, l)
	if err := d.Enqueue("run-b", map[string]string{dagster.PriorityTag: "9"}); err != nil {
		t.Fatal(err)
	}
	l.changed(stale)
	for _, r := range read(t, l) {
		if r.ID == "run-b" {
			l.changed(r)
		}
	}
	pass(t, l)
	if !slices.Equal(k.taken, []string{"run-a"}) {
		t.Errorf("launched %v with a limit of 1, want run-a alone", k.taken)
	}
}

func TestRequeuedRunWaitsItsTime(t *testing.T) {
	l, d, k := newLoop(t, 10)
	if err := d.Enqueue("run-a", nil); err != nil {
		t.Fatal(err)
	}
	l.requeued(Requeued{storage.Run{Run: dagster.Run{ID: "run-a"}}, "local", time.Now().Add(time.Hour)})
	l.apply(read(t, l)[0])
	if wait := pass(t, l); wait < 59*time.Minute || len(k.taken) != 0 {
		t.Errorf("wait %v, launched %v, want an hour and nothing", wait, k.taken)
	}
	l.requeued(Requeued{storage.Run{Run: dagster.Run{ID: "run-a"}}, "local", time.Now().Add(-time.Second)})
	if pass(t, l); !slices.Equal(k.taken, []string{"run-a"}) {
		t.Errorf("launched %v, want run-a", k.taken)
	}
}

// A run goes to its next launcher while the first is sick or had no room for it; not while the
// first is only busy.
func TestNextLauncher(t *testing.T) {
	for name, c := range map[string]struct {
		sick, busy, full string
		want             []string
	}{
		"the first":        {want: []string{"spot"}},
		"sick":             {sick: "spot", want: []string{"local"}},
		"had no room":      {full: "spot", want: []string{"local"}},
		"busy":             {busy: "spot"},
		"both do not take": {sick: "local", full: "spot"},
	} {
		t.Run(name, func(t *testing.T) {
			l, d, k := newLoop(t, 10)
			k.sick, k.busy = c.sick, c.busy
			l.Route = func(storage.Run) []string { return []string{"spot", "local"} }
			if err := d.Enqueue("run-a", nil); err != nil {
				t.Fatal(err)
			}
			if c.full != "" {
				l.requeued(Requeued{storage.Run{Run: dagster.Run{ID: "run-a"}}, c.full, time.Now().Add(time.Hour)})
			}
			l.apply(read(t, l)[0])
			wait := pass(t, l)
			if !slices.Equal(k.launchers, c.want) || c.want == nil && wait == 0 {
				t.Errorf("launched on %v, want %v; next look in %v", k.launchers, c.want, wait)
			}
		})
	}
}

// Of the targets behind one launcher each is sick by itself.
func TestTargetsOfOneLauncher(t *testing.T) {
	l, d, k := newLoop(t, 10)
	k.targets, k.sick = func(r storage.Run) string { return "local at " + r.Tags["at"] }, "local at a"
	for id, at := range map[string]string{"run-a": "a", "run-b": "b"} {
		if err := d.Enqueue(id, map[string]string{"at": at}); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range read(t, l) {
		l.changed(r)
	}
	if pass(t, l); !slices.Equal(k.taken, []string{"run-b"}) || k.launchers[0] != "local" ||
		!slices.Contains(k.waits, "run-a for local at a") {
		t.Errorf("launched %v on %v, and %v wait; want run-b on local, and run-a to wait for its target", k.taken,
			k.launchers, k.waits)
	}
}

func TestBrokenRunHoldsUpNobody(t *testing.T) {
	l, d, k := newLoop(t, 10)
	for _, id := range []string{"run-a", "run-b"} {
		if err := d.Enqueue(id, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Exec("UPDATE runs SET run_body = '{' WHERE run_id = 'run-a'"); err != nil {
		t.Fatal(err)
	}
	for _, r := range read(t, l) {
		l.changed(r)
	}
	pass(t, l)
	if !slices.Equal(k.taken, []string{"run-b"}) {
		t.Errorf("launched %v, want run-b", k.taken)
	}
}

// What is paused stays in the queue, what is not goes on, and a launcher that is paused leaves its
// runs to the next one of their route.
func TestPausedRunsStayQueued(t *testing.T) {
	l, d, k := newLoop(t, 10)
	l.Route = func(storage.Run) []string { return []string{"local", "other"} }
	pauses := []Pause{{Scope: OfTag, Value: "team=a"}, {Scope: OfLauncher, Value: "local"}}
	l.Pauses = func() []Pause { return pauses }
	var waiting Waiting
	l.Waiting = func(w Waiting) { waiting = w }
	for id, tags := range map[string]map[string]string{"a": {"team": "a"}, "b": {"team": "b"}} {
		if err := d.Enqueue("00000000-0000-4000-8000-00000000000"+id, tags); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := l.Store.(storage.Reader).Runs(t.Context(), storage.Filter{Statuses: []dagster.Status{dagster.Queued}})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		l.changed(r)
	}
	wait, err := l.pass(t.Context())
	if err != nil || len(k.taken) != 1 || !strings.HasSuffix(k.taken[0], "b") || k.launchers[0] != "other" ||
		wait == 0 || waiting.Reasons[Paused] != 1 || waiting.Queued != 1 {
		t.Fatalf("pass = %v, %v; launched %v on %v; %+v waits", wait, err, k.taken, k.launchers, waiting)
	}
	pauses = nil
	if _, err := l.pass(t.Context()); err != nil || len(k.taken) != 2 || k.launchers[1] != "local" {
		t.Errorf("after the pauses: %v; launched %v on %v", err, k.taken, k.launchers)
	}
}

// losing is a storage that loses the answer to a claim, or meets a locked row.
type losing struct {
	store
	lose   bool
	tokens []string // of the claims that it was asked for
}

func (s *losing) Claim(ctx context.Context, f storage.Fence, claims []storage.Claim) ([]storage.Outcome, error) {
	for _, c := range claims {
		s.tokens = append(s.tokens, c.Token)
	}
	out, err := s.store.Claim(ctx, f, claims)
	if s.lose {
		s.lose = false
		return nil, errors.New("the answer was lost")
	}
	return out, err
}

// A claim whose answer is lost is made again with the same token, and its run is launched once. The
// same is true of a claim that meets a locked row; it is made again later.
func TestClaimIsMadeAgainAsItWas(t *testing.T) {
	for name, busy := range map[string]bool{"a lost answer": false, "a locked row": true} {
		t.Run(name, func(t *testing.T) {
			l, d, k := newLoop(t, 10)
			s := &losing{store: l.Store, lose: !busy}
			if l.Store = s; busy {
				l.Store = &busyOnce{s}
			}
			if err := d.Enqueue(uuid.NewString(), nil); err != nil {
				t.Fatal(err)
			}
			runs, err := s.store.(storage.Reader).Runs(t.Context(),
				storage.Filter{Statuses: dagster.UnfinishedStatuses()})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range runs {
				l.changed(r)
			}
			pass(t, l)
			if busy {
				if len(k.taken) != 0 || len(l.locked) != 1 {
					t.Fatalf("launched %d runs, %d wait for their row", len(k.taken), len(l.locked))
				}
				l.lockedUntil = time.Now()
				pass(t, l)
			}
			if len(k.taken) != 1 || len(s.tokens) != 2 || s.tokens[0] != s.tokens[1] {
				t.Errorf("launched %d runs with the tokens %q, want one, asked for twice with one token", len(k.taken),
					s.tokens)
			}
		})
	}
}

// busyOnce is a storage in which another program has locked the rows of the first claim.
type busyOnce struct{ *losing }

func (s *busyOnce) Claim(ctx context.Context, f storage.Fence, claims []storage.Claim) ([]storage.Outcome, error) {
	if len(s.tokens) > 0 {
		return s.losing.Claim(ctx, f, claims)
	}
	out := make([]storage.Outcome, len(claims))
	for i, c := range claims {
		s.tokens = append(s.tokens, c.Token)
		out[i].Busy = true
	}
	return out, nil
}
