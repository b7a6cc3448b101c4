package queue

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
)

var (
	indexSeed  = flag.Uint64("index.seed", 0, "replay one world of TestIndexDecidesAsPick")
	indexSteps = flag.Int("index.steps", 150, "changes in each world")
)

// plain is everything that an [index] knows, without an index: runs, and what holds them back.
type plain struct {
	rng    *rand.Rand
	now    time.Time
	limits Limits
	runs   map[string]storage.Run
	holds  map[string]map[string]time.Time
	pauses []Pause
	pools  map[string]Pool
	room   map[string]int
	used   map[string]int // of the room, by the last decision
	sick   map[string]bool
	rows   int64
}

// route sends runs of the tag "on" to both launchers, and others to the first alone. The target of
// a run on the first launcher is its location.
func (w *plain) route(r storage.Run) []stop {
	first := stop{launcher: "first", target: "first at " + r.Tags["at"]}
	if r.Tags["on"] == "" {
		return []stop{first}
	}
	return []stop{first, {launcher: "second", target: "second"}}
}

// entries are the runs that are queued, and those in flight.
func (w *plain) entries() (queued, active []Entry) {
	for _, id := range slices.Sorted(maps.Keys(w.runs)) {
		r := w.runs[id]
		e := Entry{Run: r.Run, Row: r.Row, Start: r.Start}
		if r.Status == dagster.Queued {
			queued = append(queued, e)
		} else {
			active = append(active, e)
		}
	}
	return queued, active
}

// pick decides by [Pick], at most so many runs.
func (w *plain) pick(most int) (picked []string) {
	room, chosen := maps.Clone(w.room), map[string]string{}
	queued, active := w.entries()
	d := Pick(queued, active, w.limits, w.pools, w.now, func(r dagster.Run) Reason {
		if chosen[r.ID] != "" {
			return ""
		}
		if w.holds[r.ID][""].After(w.now) {
			return Backoff
		}
		if slices.ContainsFunc(w.pauses, func(p Pause) bool { return p.HoldsRun(r) }) {
			return Paused
		}
		why := Sick
		for _, at := range w.route(w.runs[r.ID]) {
			switch {
			case slices.ContainsFunc(w.pauses, func(p Pause) bool { return p.HoldsLauncher(at.launcher) }):
				why = Paused
			case w.holds[r.ID][at.launcher].After(w.now):
				why = Backoff
			case room[at.target] > 0:
				room[at.target]--
				chosen[r.ID] = at.launcher
				return ""
			case !w.sick[at.target]:
				return Busy
			}
		}
		return why
	})
	for _, r := range d.Picked[:min(most, len(d.Picked))] {
		picked = append(picked, r.ID+" on "+chosen[r.ID])
	}
	return picked
}

// holdsBack reports whether a reason by itself holds a queued run back.
func (w *plain) holdsBack(why Reason, r storage.Run) bool {
	_, active := w.entries()
	switch why {
	case TagFull:
		return newCounter(w.limits.Tags, active).full(r.Run)
	case PoolFull:
		return newPoolCounter(w.limits.Pools, w.pools, active, w.now).full(r.Run)
	case Paused:
		return slices.ContainsFunc(w.pauses, func(p Pause) bool { return p.HoldsRun(r.Run) || p.Scope == OfLauncher })
	case Backoff:
		return slices.ContainsFunc(slices.Collect(maps.Values(w.holds[r.ID])), w.now.Before)
	case Busy, Sick:
		return slices.ContainsFunc(w.route(r), func(at stop) bool {
			return w.room[at.target]-w.used[at.target] < 1 && w.sick[at.target] == (why == Sick)
		})
	}
	return false
}

// change makes one change to the world and to an index.
func (w *plain) change(x *index) {
	some := func(status func(dagster.Status) bool) (storage.Run, bool) {
		var ids []string
		for _, id := range slices.Sorted(maps.Keys(w.runs)) {
			if status(w.runs[id].Status) {
				ids = append(ids, id)
			}
		}
		if len(ids) == 0 {
			return storage.Run{}, false
		}
		return w.runs[ids[w.rng.IntN(len(ids))]], true
	}
	put := func(r storage.Run) {
		if r.Status.Finished() || r.Status == "" {
			delete(w.runs, r.ID)
			delete(w.holds, r.ID)
		} else {
			w.runs[r.ID] = r
		}
		x.Put(r, w.now)
	}
	hold := func(run, launcher string, until time.Time) {
		if w.holds[run] == nil {
			w.holds[run] = map[string]time.Time{}
		}
		w.holds[run][launcher] = until
		x.Hold(run, launcher, until, w.now)
	}
	queued := func(s dagster.Status) bool { return s == dagster.Queued }
	active := func(s dagster.Status) bool { return s.Active() }
	switch w.rng.IntN(14) {
	case 0, 1, 2, 3, 4:
		w.rows++
		r := storage.Run{Run: dagster.Run{ID: fmt.Sprint("r", w.rows), Job: w.word("a", "b"), Status: dagster.Queued,
			Tags: map[string]string{"at": w.word("x", "y")}}, Row: w.rows, Created: w.now}
		for _, tag := range [][]string{{"team", "", "red", "blue"}, {"on", "", "second"},
			{dagster.PriorityTag, "", "1", "-1"}} {
			if v := w.word(tag[1:]...); v != "" || tag[0] == "team" && w.rng.IntN(2) == 0 {
				r.Tags[tag[0]] = v
			}
		}
		if w.rng.IntN(2) == 0 {
			pool := w.word("db", "gpu")
			r.Pools = &dagster.Pools{All: []string{pool}, Root: map[string]int{pool: 1 + w.rng.IntN(2)},
				Unconstrained: w.rng.IntN(4) == 0}
			if w.rng.IntN(3) == 0 {
				r.Pools.All, r.Pools.Root["gpu"] = []string{"db", "gpu"}, 1
			}
		}
		put(r)
	case 5:
		if r, ok := some(queued); ok { // its tags change, or it is canceled
			r.Tags = maps.Clone(r.Tags)
			r.Tags[dagster.PriorityTag] = fmt.Sprint(w.rng.IntN(5))
			r.Status = []dagster.Status{dagster.Queued, dagster.Queued, dagster.Canceled, ""}[w.rng.IntN(4)]
			put(r)
		}
	case 6, 7:
		if r, ok := some(active); ok {
			r.Status = []dagster.Status{dagster.Started, dagster.Canceling, dagster.Success}[w.rng.IntN(3)]
			if r.Status == dagster.Started && r.Start.IsZero() {
				r.Start = w.now.Add(-time.Duration(w.rng.IntN(3)) * time.Second)
			}
			put(r)
		}
	case 8:
		if r, ok := some(active); ok { // back to the queue
			hold(r.ID, w.word("first", "second"), w.now.Add(time.Duration(w.rng.IntN(5)-1)*time.Second))
			r.Status, r.Start = dagster.Queued, time.Time{}
			put(r)
		}
	case 9:
		if r, ok := some(queued); ok {
			hold(r.ID, w.word("", "first"), w.now.Add(time.Duration(w.rng.IntN(5)-1)*time.Second))
		}
	case 10:
		w.now = w.now.Add(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
	case 11:
		at := w.word("first at x", "first at y", "second")
		w.room[at], w.sick[at] = w.rng.IntN(3), false
		if w.room[at] == 0 {
			w.sick[at] = w.rng.IntN(2) == 0
		}
	case 12:
		w.pools = map[string]Pool{}
		for _, name := range []string{"db", "gpu"} {
			if w.rng.IntN(4) > 0 {
				w.pools[name] = Pool{Slots: w.rng.IntN(4), Pending: w.rng.IntN(2)}
			}
		}
	case 13:
		all := []Pause{{Scope: OfInstance}, {Scope: OfJob, Value: "a"}, {Scope: OfLauncher, Value: "first"},
			{Scope: OfTag, Value: "team=red"}}
		w.pauses = nil
		for range w.rng.IntN(2) {
			w.pauses = append(w.pauses, all[w.rng.IntN(len(all))])
		}
	}
}

func (w *plain) word(words ...string) string { return words[w.rng.IntN(len(words))] }

// In any world, after any changes, an index picks the same runs for the same launchers in the same
// order as Pick, and knows the same reasons to wait. A failure says how to replay it.
func TestIndexDecidesAsPick(t *testing.T) {
	seeds := []uint64{*indexSeed}
	if *indexSeed == 0 {
		from := rand.Uint64N(1 << 40)
		seeds = nil
		for i := range uint64(60) {
			seeds = append(seeds, from+i)
		}
	}
	picks := 0
	for _, seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test
		w := &plain{rng: rng, now: time.Unix(1_790_000_000, 0), runs: map[string]storage.Run{},
			holds: map[string]map[string]time.Time{}, sick: map[string]bool{},
			room: map[string]int{"first at x": 1, "first at y": 2, "second": 1},
			limits: Limits{MaxConcurrentRuns: rng.IntN(12) - 1,
				Pools: PoolLimits{Block: rng.IntN(3) > 0, PerRun: rng.IntN(2) == 0, Buffer: rng.IntN(2)}}}
		for _, l := range []TagLimit{{Key: "team", Value: "red", Limit: 1}, {Key: "team", PerValue: true, Limit: 2},
			{Key: "team", Empty: true, Limit: 1}, {Key: "team", Value: "red", Limit: 2}, {Key: "on", Limit: 2}} {
			if rng.IntN(2) == 0 {
				w.limits.Tags = append(w.limits.Tags, l)
			}
		}
		if rng.IntN(5) == 0 {
			w.limits.Charge, w.limits.Page = ChargeDagster, 1+rng.IntN(5)
		}
		x := newIndex(w.limits, w.route)
		peak := 0
		for step := range *indexSteps {
			for range 1 + rng.IntN(4) {
				w.change(x)
			}
			x.SetPauses(w.pauses, w.now)
			x.SetPools(w.pools)
			most := 1 + rng.IntN(4)
			want := w.pick(most)
			var got []string
			w.used = map[string]int{}
			for _, c := range x.Decide(w.now, most, func(at string) (int, bool) { return w.room[at], w.sick[at] }) {
				got = append(got, c.Run.ID+" on "+c.Launcher)
				r := w.runs[c.Run.ID]
				for _, at := range w.route(r) {
					if at.launcher == c.Launcher {
						w.used[at.target]++
					}
				}
				r.Status = dagster.Starting
				w.runs[c.Run.ID] = r
			}
			if !slices.Equal(got, want) {
				t.Fatalf("step %d: picks %v, want %v; -run IndexDecides -index.seed %d", step, got, want, seed)
			}
			picks += len(got)
			queued, active := w.entries()
			var oldest time.Time
			for _, e := range queued {
				if at := w.runs[e.Run.ID].Created; oldest.IsZero() || at.Before(oldest) {
					oldest = at
				}
			}
			if x.Queued() != len(queued) || x.InFlight() != len(active) || !x.Oldest().Equal(oldest) {
				t.Fatalf("step %d: %d queued since %v, %d in flight, want %d since %v, %d; -index.seed %d", step,
					x.Queued(), x.Oldest(), x.InFlight(), len(queued), oldest, len(active), seed)
			}
			peak = max(peak, len(w.runs)) // they are thinned out when a run is queued
			if len(x.created) > 2*peak+1 || len(x.lanes) > len(queued) {
				t.Fatalf("step %d: %d runs have %d lanes and %d times of creation; -index.seed %d", step, len(w.runs),
					len(x.lanes), len(x.created), seed)
			}
			for i, gates := range x.tags {
				for value, g := range gates {
					if g.taken == 0 && g.users == 0 {
						t.Fatalf("step %d: the value %q of limit %d is kept for no run; -index.seed %d", step, value, i,
							seed)
					}
				}
			}
			total := 0
			for _, n := range x.Reasons() {
				total += n
			}
			if len(got) < most && total != len(queued) {
				t.Fatalf("step %d: %d runs wait for %v; -index.seed %d", step, len(queued), x.Reasons(), seed)
			}
			for _, l := range x.lanes {
				if step%10 == 0 && l.at < 0 && !w.holdsBack(l.why, l.items[0].run) {
					t.Fatalf("step %d: %s waits for %s, which does not hold it back; -index.seed %d", step,
						l.items[0].run.ID, l.why, seed)
				}
			}
		}
	}
	if *indexSeed == 0 && picks < 1000 {
		t.Errorf("only %d runs were picked in all worlds: they show little", picks)
	}
}

// What holds runs back is named, with the runs that hold the places, and the most runs come first.
func TestHoldsNameWhatHoldsRunsBack(t *testing.T) {
	now := time.Unix(1_790_000_000, 0)
	at := func(launcher string) []stop { return []stop{{launcher: launcher, target: launcher}} }
	full := func(target string) (int, bool) { return map[string]int{"well": 100}[target], target == "sick" }
	for name, c := range map[string]struct {
		limits Limits
		change func(*index)
		to     string // launcher
		want   string
	}{
		"nothing":     {Limits{MaxConcurrentRuns: -1}, nil, "well", ""},
		"all of them": {Limits{MaxConcurrentRuns: 1}, nil, "well", "3 max_concurrent_runs 1 of 1 in flight: f"},
		"a tag": {Limits{MaxConcurrentRuns: -1, Tags: []TagLimit{{Key: "team", Limit: 1}}}, nil, "well",
			"2 tag_limit team: 1 of 1 in flight: f"},
		"a value": {Limits{MaxConcurrentRuns: -1, Tags: []TagLimit{{Key: "team", PerValue: true, Limit: 1}}}, nil,
			"well",
			"1 tag_limit team=a: 1 of 1 in flight: f"},
		"a pool": {Limits{MaxConcurrentRuns: -1, Pools: PoolLimits{Block: true, PerRun: true}},
			func(x *index) { x.SetPools(map[string]Pool{"db": {Slots: 1}}) }, "well",
			"3 pool pool db: no free slot (limit 1): f"},
		"a pause": {Limits{MaxConcurrentRuns: -1},
			func(x *index) { x.SetPauses([]Pause{{Scope: OfTag, Value: "team=b"}}, now) },
			"well", "1 paused tag team=b"},
		"a launcher's pause": {Limits{MaxConcurrentRuns: -1},
			func(x *index) { x.SetPauses([]Pause{{Scope: OfLauncher, Value: "well"}}, now) }, "well",
			"3 paused launcher well"},
		"no room":       {Limits{MaxConcurrentRuns: -1}, nil, "busy", "3 launcher_busy launcher busy: f"},
		"a sick target": {Limits{MaxConcurrentRuns: -1}, nil, "sick", "3 launcher_sick launcher sick: f"},
		"back-off": {Limits{MaxConcurrentRuns: -1}, func(x *index) { x.Hold("2", "well", now.Add(time.Hour), now) },
			"well",
			"1 backoff had no room, or refused the run, a moment ago: well"},
	} {
		x := newIndex(c.limits, func(storage.Run) []stop { return at(c.to) })
		put := func(id string, status dagster.Status, team string, launch *storage.LaunchRow) {
			r := storage.Run{Run: dagster.Run{ID: id, Status: status, Tags: map[string]string{},
				Pools: &dagster.Pools{All: []string{"db"}}}, Facts: storage.Facts{Launch: launch}}
			if team != "" {
				r.Tags["team"] = team
			}
			x.Put(r, now)
		}
		put("f", dagster.Started, "a", &storage.LaunchRow{Launcher: c.to})
		put("1", dagster.Queued, "a", nil)
		put("2", dagster.Queued, "b", nil)
		put("3", dagster.Queued, "", nil)
		if c.change != nil {
			c.change(x)
		}
		x.Decide(now, 100, full)
		var got []string
		for _, h := range x.Holds() {
			text := fmt.Sprint(h.Runs, " ", h.Rule, " ", h.What)
			for _, holder := range h.Holders {
				if holder.RunID == "f" {
					text += ": f"
				}
			}
			got = append(got, text)
		}
		if got := strings.Join(got, "; "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// waitingRuns is an index of n queued runs of so many customers.
func waitingRuns(limits Limits, n, customers int) (*index, time.Time) {
	now := time.Unix(1_790_000_000, 0)
	x := newIndex(limits, func(storage.Run) []stop { return []stop{{launcher: "local", target: "local"}} })
	for i := range n {
		x.Put(storage.Run{Run: dagster.Run{ID: fmt.Sprint("r", i), Status: dagster.Queued,
			Pools: &dagster.Pools{All: []string{"db"}},
			Tags:  map[string]string{"customer": fmt.Sprint(i % customers)}}, Row: int64(i + 1), Created: now}, now)
	}
	return x, now
}

// wakeUps gives what the benchmarks and the test of the costs of a wake-up have in common: one run
// ends, another one is queued, and what may go goes.
func wakeUps(limits Limits, n int) func() {
	x, now := waitingRuns(limits, n, 100)
	room := func(string) (int, bool) { return 1 << 30, false }
	flying := x.Decide(now, 1000, room)
	return func() {
		r := flying[0].Run
		flying = flying[1:]
		r.Status = dagster.Success
		x.Put(r, now)
		r.Status, r.Row = dagster.Queued, r.Row+int64(n)
		x.Put(r, now)
		flying = append(flying, x.Decide(now, 50, room)...)
	}
}

var wakeUpLimits = map[string]Limits{
	"no limit but of all":  {MaxConcurrentRuns: 10},
	"a limit per value":    {MaxConcurrentRuns: -1, Tags: []TagLimit{{Key: "customer", PerValue: true, Limit: 1}}},
	"one tag, all blocked": {MaxConcurrentRuns: 100, Tags: []TagLimit{{Key: "customer", Limit: 1}}},
	"pools, all blocked": {MaxConcurrentRuns: -1, Tags: []TagLimit{{Key: "customer", Limit: 5}},
		Pools: PoolLimits{Block: true, PerRun: true}},
}

// A wake-up costs what has changed, whatever waits: it allocates as much behind 100,000 queued runs
// as behind 1,000. Allocations are counted because load does not disturb them; the benchmark has
// the times.
func TestWakeUpCostsWhatHasChanged(t *testing.T) {
	for name, limits := range wakeUpLimits {
		var few float64
		for _, n := range []int{1_000, 100_000} {
			wake := wakeUps(limits, n)
			var before, after runtime.MemStats
			const times = 200
			runtime.ReadMemStats(&before)
			for range times {
				wake()
			}
			runtime.ReadMemStats(&after)
			bytes := float64(after.TotalAlloc-before.TotalAlloc) / times
			if few == 0 {
				few = bytes
			}
			if bytes > 64<<10 || bytes > 2*few {
				t.Errorf("%s: with %d queued a wake-up allocates %.0f bytes, with 1,000 %.0f", name, n, bytes, few)
			}
		}
	}
}

func BenchmarkWakeUp(b *testing.B) {
	for name, limits := range wakeUpLimits {
		for _, n := range []int{1_000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				wake := wakeUps(limits, n)
				b.ReportAllocs()
				for b.Loop() {
					wake()
				}
			})
		}
	}
}
