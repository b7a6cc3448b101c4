package queue

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
)

// index holds the runs of a leader, so that a decision costs what has changed and not what waits.
// It decides as [Pick] does.
//
// Queued runs that meet the same rules form a lane: they count for the same limits and pools, the
// same pauses hold them, and they may go to the same launchers. In a lane, only the first run is
// looked at. A lane that a rule holds back is parked at that rule's gates, which are buckets of tag
// limits, pools and targets, and costs nothing until one of them changes.
//
// An index does no I/O and has no clock. It must be used by one goroutine at a time.
type index struct {
	limits Limits
	route  func(storage.Run) []stop

	runs  map[string]*item                // queued, and in flight
	holds map[string]map[string]time.Time // by run and launcher: not before then
	lanes map[string]*lane                // by signature
	awake laneHeap                        // the lanes that nothing is known to hold back
	flies int                             // runs in flight

	tags    []map[string]*gate // of each tag limit, by value
	pools   map[string]*gate   // by name
	targets map[string]*gate   // by name
	pauses  gate
	rests   gate // of runs that may go to no launcher before some time

	slots   map[string]Pool // the pools that have a limit
	inPool  map[string]int  // queued runs that name a pool
	pausing []Pause
	timers  timerHeap // when holds end, and when runs in flight are seen in their pools
	created timerHeap // the queued runs, and some that are no longer queued
	waits   map[Reason]int
}

// item is a run of an index.
type item struct {
	run      storage.Run // slim: many runs may wait, and bodies are large
	stops    []stop      // of a queued run
	priority *big.Int
	lane     *lane // of a queued run
	at       int   // its place in the lane's heap
	told     int   // the lane's state that was last reported; see [index.Tell]
	inPools  bool  // a run in flight that counts for its pools
}

// lane has queued runs that the same rules hold back.
type lane struct {
	signature string
	items     []*item // a heap, the first run to go first
	buckets   []bucket
	pools     *dagster.Pools
	paused    bool
	rests     bool // no launcher before some time
	stops     []stop
	at        int // its place among the lanes that are awake; -1: it is parked
	why       Reason
	gates     []*gate // where it is parked
	// told counts how often the lane was parked in another state than before. untold counts the
	// runs that were not reported since.
	told, untold int
	state        string
}

// bucket is where the runs of a lane count for a tag limit.
type bucket struct {
	gate  *gate
	limit int // index in the limits
	value string
}

// gate is a thing that can hold back lanes.
type gate struct {
	name  string
	taken int // by runs in flight
	users int // of a bucket: the lanes whose runs count there
	sick  bool
	lanes map[*lane]bool
}

// stop is a launcher of a run's route, with the target of the run there.
type stop struct {
	launcher, target string
	held             bool // not before some time
}

// space is what a target said about its room in one decision.
type space struct {
	room int
	sick bool
}

// choice is a queued run that may go, slim, and the launcher that it goes to.
type choice struct {
	Run      storage.Run
	Launcher string
}

// newIndex makes an empty index. Route gives the launchers of a run with the targets there, the
// first choice first.
func newIndex(limits Limits, route func(storage.Run) []stop) *index {
	limits.Tags = lastOfEach(limits.Tags)
	x := &index{limits: limits, route: route, runs: map[string]*item{}, holds: map[string]map[string]time.Time{},
		lanes: map[string]*lane{}, pools: map[string]*gate{}, targets: map[string]*gate{}, inPool: map[string]int{},
		waits: map[Reason]int{}}
	for range limits.Tags {
		x.tags = append(x.tags, map[string]*gate{})
	}
	return x
}

// Queued is the number of queued runs.
func (x *index) Queued() int { return len(x.runs) - x.flies }

// InFlight is the number of runs that take places.
func (x *index) InFlight() int { return x.flies }

// Run gives a queued run, or one in flight.
func (x *index) Run(id string) (r storage.Run, queued, known bool) {
	it := x.runs[id]
	if it == nil {
		return r, false, false
	}
	return it.run, it.lane != nil, true
}

// Put replaces what is known of a run. A queued run joins its lane, one in flight takes its places,
// and every other run is forgotten. A run that cannot be read counts in flight, and never goes.
func (x *index) Put(r storage.Run, now time.Time) {
	x.remove(r.ID)
	full := r
	r.Run = r.Slim()
	switch {
	case r.Status.Active():
		x.fly(&item{run: r}, now)
	case r.Status == dagster.Queued && r.Broken == nil:
		x.enqueue(&item{run: r, stops: x.route(full), priority: r.Priority()}, now)
	case r.Status != dagster.Queued:
		delete(x.holds, r.ID)
	}
}

// Back puts a run that was picked back into the queue.
func (x *index) Back(run string, now time.Time) {
	if it := x.runs[run]; it != nil && it.lane == nil {
		x.remove(run)
		it.run.Status = dagster.Queued
		x.enqueue(it, now)
	}
}

// Hold keeps a run from a launcher until a time; from all launchers if it is "". A zero time ends
// that.
func (x *index) Hold(run, launcher string, until, now time.Time) {
	if x.holds[run] == nil {
		x.holds[run] = map[string]time.Time{}
	}
	x.holds[run][launcher] = until
	if it := x.runs[run]; it != nil && it.lane != nil {
		x.leave(it)
		x.join(it, now)
	}
}

// SetPauses says which pauses hold now.
func (x *index) SetPauses(pauses []Pause, now time.Time) {
	if slices.EqualFunc(pauses, x.pausing, func(a, b Pause) bool { return a.Scope == b.Scope && a.Value == b.Value }) {
		return
	}
	x.pausing = slices.Clone(pauses)
	for _, l := range x.lanes { // a launcher that is paused leaves its runs to the next one
		if l.at < 0 {
			x.rouse(l)
		}
	}
	for _, it := range x.runs {
		if it.lane != nil {
			x.leave(it)
			x.join(it, now)
		}
	}
}

// PoolNames are the pools that queued runs name.
func (x *index) PoolNames() []string { return slices.Sorted(maps.Keys(x.inPool)) }

// SetPools says what the pools that have a limit have now.
func (x *index) SetPools(pools map[string]Pool) {
	for name, g := range x.pools {
		was, had := x.slots[name]
		if is, has := pools[name]; is != was || has != had {
			x.wake(g)
		}
	}
	x.slots = pools
}

// Decide picks the runs that may go now, at most so many, in the order in which they go. They count
// as in flight from now on, until Put says otherwise. Room asks a target for its room.
func (x *index) Decide(now time.Time, most int, room func(target string) (int, bool)) []choice {
	x.tick(now)
	spaces := map[string]*space{}
	ask := func(target string) *space {
		s := spaces[target]
		if s == nil {
			s = &space{}
			s.room, s.sick = room(target)
			spaces[target] = s
		}
		return s
	}
	for name, g := range x.targets {
		if len(g.lanes) == 0 {
			continue
		}
		if s := ask(name); s.room > 0 || s.sick != g.sick {
			x.wake(g)
		}
	}
	if x.limits.Charge == ChargeDagster {
		return x.asDagster(now, most, ask)
	}
	var picked []choice
	for len(picked) < most && x.free() > 0 && len(x.awake) > 0 {
		l := x.awake[0]
		why, gates := x.full(l)
		launcher := ""
		if why == "" {
			launcher, why, gates = x.choose(l, ask)
		}
		if why != "" {
			x.park(l, why, gates)
			continue
		}
		picked = append(picked, x.pick(l.items[0], launcher, now))
	}
	if x.waits[Limit] = 0; x.free() <= 0 {
		more := x.Queued()
		for _, n := range x.waits {
			more -= n
		}
		x.waits[Limit] = more
	}
	return picked
}

// asDagster decides with Dagster's pages, for which all runs are looked at.
func (x *index) asDagster(now time.Time, most int, ask func(string) *space) []choice {
	var queued, active []Entry
	for _, it := range x.runs {
		if it.lane != nil {
			queued = append(queued, it.entry())
		} else {
			active = append(active, it.entry())
		}
	}
	chosen := map[string]string{}
	d := Pick(queued, active, x.limits, x.slots, now, func(r dagster.Run) (why Reason) {
		if chosen[r.ID] == "" { // a run can be looked at on several pages
			chosen[r.ID], why, _ = x.choose(x.runs[r.ID].lane, ask)
		}
		return why
	})
	x.waits = d.Waits
	var picked []choice
	for _, r := range d.Picked[:min(most, len(d.Picked))] {
		picked = append(picked, x.pick(x.runs[r.ID], chosen[r.ID], now))
	}
	return picked
}

// Reasons says how many queued runs wait for which reason, as the last decision found.
func (x *index) Reasons() map[Reason]int {
	reasons := map[Reason]int{}
	for why, n := range x.waits {
		if n > 0 {
			reasons[why] = n
		}
	}
	return reasons
}

// Oldest is when the oldest queued run was created; zero if there is none.
func (x *index) Oldest() time.Time {
	for len(x.created) > 0 {
		t := x.created[0]
		if r, queued, _ := x.Run(t.run); queued && r.Created.Equal(t.at) {
			return t.at
		}
		heap.Pop(&x.created)
	}
	return time.Time{}
}

// Next is when the next hold ends by itself, or a run in flight is seen in its pools; zero: never.
func (x *index) Next() time.Time {
	if len(x.timers) == 0 {
		return time.Time{}
	}
	return x.timers[0].at
}

// Full are the targets that are well and have no room for a further run.
func (x *index) Full() []string {
	var names []string
	for name, g := range x.targets {
		if len(g.lanes) > 0 && !g.sick {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// mostHolds is how many rules [index.Holds] names.
const mostHolds = 100

// Holds groups the queued runs by what holds them back, the most runs first, and names the rules
// that hold back most.
func (x *index) Holds() []Hold {
	type group struct {
		Hold
		holds func(Entry) bool
	}
	groups := map[string]*group{}
	add := func(why Reason, what string, holds func(Entry) bool, runs int) {
		key := string(why) + " " + what
		if groups[key] == nil {
			groups[key] = &group{Hold{Rule: why, What: what}, holds}
		}
		groups[key].Runs += runs
	}
	for _, l := range x.lanes {
		if l.at < 0 {
			what, holds := x.about(l)
			add(l.why, what, holds, len(l.items))
		} else if x.free() <= 0 {
			what := fmt.Sprintf("%d of %d in flight", x.flies, x.limits.MaxConcurrentRuns)
			add(Limit, what, func(Entry) bool { return true }, len(l.items))
		}
	}
	worst := slices.SortedFunc(maps.Values(groups), func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.Runs, a.Runs), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.What, b.What))
	})
	var active []Entry
	for _, it := range x.runs {
		if it.lane == nil {
			active = append(active, it.entry())
		}
	}
	var all []Hold
	for _, g := range worst[:min(len(worst), mostHolds)] {
		g.Holders = Holders(active, g.holds)
		all = append(all, g.Hold)
	}
	return all
}

// about names what holds a lane back, and tells the runs in flight that hold its places.
func (x *index) about(l *lane) (what string, holds func(Entry) bool) {
	none := func(Entry) bool { return false }
	switch l.why {
	case TagFull:
		for _, b := range l.buckets {
			if limit := x.limits.Tags[b.limit]; slices.Contains(l.gates, b.gate) {
				what := fmt.Sprintf("%s: %d of %d in flight", limit.about(l.items[0].run.Run), b.gate.taken,
					limit.Limit)
				return what, func(e Entry) bool { v, ok := limit.bucket(e.Run); return ok && v == b.value }
			}
		}
	case PoolFull:
		pool := l.gates[0].name
		return fmt.Sprintf("pool %s: no free slot (limit %d)", pool, x.slots[pool].Slots),
			func(e Entry) bool { return e.Run.Pools != nil && slices.Contains(e.Run.Pools.All, pool) }
	case Paused:
		for _, p := range x.pausing {
			if p.HoldsRun(l.items[0].run.Run) || p.Scope == OfLauncher && slices.ContainsFunc(l.stops,
				func(at stop) bool { return p.HoldsLauncher(at.launcher) }) {
				return p.String(), none
			}
		}
	case Backoff:
		return "had no room, or refused the run, a moment ago: " + launchersOf(l.stops), none
	}
	target := launchersOf(l.stops)
	for _, g := range l.gates {
		if g != &x.pauses && g != &x.rests {
			target = g.name
		}
	}
	return "launcher " + target, func(e Entry) bool {
		return slices.ContainsFunc(l.stops, func(at stop) bool {
			return at.target == target && at.launcher == e.Launcher
		})
	}
}

// launchersOf names the launchers of a route.
func launchersOf(stops []stop) string {
	var names []string
	for _, at := range stops {
		names = append(names, at.launcher)
	}
	return strings.Join(names, ", ")
}

// entry is what decisions and explanations need of a run.
func (it *item) entry() Entry {
	e := Entry{Run: it.run.Run, Row: it.run.Row, Start: it.run.Start}
	if it.run.Launch != nil {
		e.Launcher = it.run.Launch.Launcher
	}
	return e
}

// Tell calls tell for queued runs that wait for a target, until it has returned true for each of
// them. If tell returns false, it is too early, and the other runs are left alone until the next
// call.
func (x *index) Tell(tell func(r storage.Run, target string) bool) {
	for _, name := range slices.Sorted(maps.Keys(x.targets)) {
		for l := range x.targets[name].lanes {
			for i := 0; i < len(l.items) && l.untold > 0; i++ {
				it := l.items[i]
				if it.told == l.told {
					continue
				}
				if !tell(it.run, name) {
					return
				}
				it.told = l.told
				l.untold--
			}
		}
	}
}

// free is how many more runs the limit of all runs lets go.
func (x *index) free() int {
	if x.limits.MaxConcurrentRuns < 0 {
		return len(x.runs)
	}
	return x.limits.MaxConcurrentRuns - x.flies
}

// full says by which limit or pools a lane is held back, if any.
func (x *index) full(l *lane) (Reason, []*gate) {
	for _, b := range l.buckets {
		if b.gate.taken >= x.limits.Tags[b.limit].Limit {
			return TagFull, []*gate{b.gate}
		}
	}
	if !x.limits.Pools.Block || l.pools == nil {
		return "", nil
	}
	var gates []*gate
	names := x.limits.Pools.names(dagster.Run{Pools: l.pools})
	for _, name := range names {
		g := x.pool(name)
		p, limited := x.slots[name]
		free := p.Slots - g.taken + x.limits.Pools.Buffer
		if !x.limits.Pools.PerRun {
			free -= p.Pending
		}
		switch full := limited && free <= 0; {
		case full && x.limits.Pools.PerRun:
			return PoolFull, []*gate{g}
		case full:
			gates = append(gates, g)
		}
	}
	if len(gates) == len(names) && !l.pools.Unconstrained && !x.limits.Pools.PerRun {
		return PoolFull, gates
	}
	return "", nil
}

// choose finds the launcher that takes the next run of a lane, and counts the run there. If there
// is none, it says why, and at which gates that may change.
func (x *index) choose(l *lane, ask func(string) *space) (launcher string, why Reason, gates []*gate) {
	if l.rests {
		return "", Backoff, []*gate{&x.rests}
	}
	if l.paused {
		return "", Paused, []*gate{&x.pauses}
	}
	why = Sick
	for _, at := range l.stops {
		if slices.ContainsFunc(x.pausing, func(p Pause) bool { return p.HoldsLauncher(at.launcher) }) {
			why, gates = Paused, append(gates, &x.pauses)
			continue
		}
		if at.held {
			why, gates = Backoff, append(gates, &x.rests)
			continue
		}
		s := ask(at.target)
		if s.room > 0 {
			s.room--
			return at.launcher, "", nil
		}
		g := x.target(at.target)
		g.sick = s.sick
		gates = append(gates, g)
		if !s.sick {
			return "", Busy, gates
		}
	}
	return "", why, gates
}

// pick takes a queued run out of its lane: it takes its places from now on.
func (x *index) pick(it *item, launcher string, now time.Time) choice {
	r := it.run
	x.remove(r.ID)
	it.run.Status = dagster.Starting
	x.fly(it, now)
	return choice{r, launcher}
}

// enqueue adds a queued run.
func (x *index) enqueue(it *item, now time.Time) {
	x.runs[it.run.ID] = it
	if len(x.created) > 2*len(x.runs) { // most have left the queue
		x.created = x.created[:0]
		for id, other := range x.runs {
			if other.lane != nil {
				x.created = append(x.created, timer{other.run.Created, id})
			}
		}
		heap.Init(&x.created)
	}
	heap.Push(&x.created, timer{it.run.Created, it.run.ID})
	for _, pool := range x.limits.Pools.names(it.run.Run) {
		x.inPool[pool]++
	}
	x.join(it, now)
}

// remove takes a run out of the index.
func (x *index) remove(run string) {
	it := x.runs[run]
	if it == nil {
		return
	}
	delete(x.runs, run)
	if it.lane != nil {
		x.leave(it)
		for _, pool := range x.limits.Pools.names(it.run.Run) {
			if x.inPool[pool]--; x.inPool[pool] == 0 {
				delete(x.inPool, pool)
			}
		}
		return
	}
	x.flies--
	x.count(it, -1)
}

// fly counts a run in flight.
func (x *index) fly(it *item, now time.Time) {
	x.runs[it.run.ID] = it
	x.flies++
	seen := it.run.Start.Add(newlyStarted)
	starts := it.run.Status == dagster.Started && now.Before(seen)
	it.inPools = x.limits.Pools.PerRun || it.run.Status == dagster.Starting || starts
	if it.inPools && it.run.Pools != nil && starts && !x.limits.Pools.PerRun {
		heap.Push(&x.timers, timer{seen, it.run.ID})
	}
	x.count(it, 1)
}

// count counts a run in flight at its gates, or no longer.
func (x *index) count(it *item, n int) {
	for i, l := range x.limits.Tags {
		if value, ok := l.bucket(it.run.Run); ok {
			x.change(x.bucket(i, value), n)
			x.disuse(i, value)
		}
	}
	if it.inPools {
		x.countPools(it, n)
	}
}

func (x *index) countPools(it *item, n int) {
	c := poolCounter{limits: x.limits.Pools, taken: map[string]int{}}
	c.add(it.run.Run)
	for pool, places := range c.taken {
		x.change(x.pool(pool), n*places)
	}
}

// change counts what is taken at a gate. If that becomes less, lanes that are parked there may go.
func (x *index) change(g *gate, n int) {
	if g.taken += n; n < 0 {
		x.wake(g)
	}
}

// tick ends what is over.
func (x *index) tick(now time.Time) {
	for len(x.timers) > 0 && !x.timers[0].at.After(now) {
		it := x.runs[heap.Pop(&x.timers).(timer).run] //nolint:errcheck // it holds nothing else
		switch {
		case it == nil:
		case it.lane != nil:
			x.leave(it)
			x.join(it, now)
		case it.inPools && !x.limits.Pools.PerRun && it.run.Status == dagster.Started &&
			!now.Before(it.run.Start.Add(newlyStarted)):
			it.inPools = false
			x.countPools(it, -1)
		}
	}
}

// join puts a queued run into the lane of its signature.
func (x *index) join(it *item, now time.Time) {
	made := lane{pools: it.run.Pools, at: -1}
	var text strings.Builder
	part := func(kind byte, words ...string) {
		text.WriteByte(kind)
		for _, w := range words {
			text.WriteString(strconv.Quote(w))
		}
	}
	for i, l := range x.limits.Tags {
		if value, ok := l.bucket(it.run.Run); ok {
			made.buckets = append(made.buckets, bucket{x.bucket(i, value), i, value})
			part('t', strconv.Itoa(i), value)
		}
	}
	if p := it.run.Pools; p != nil && x.limits.Pools.Block {
		for _, pool := range slices.Sorted(slices.Values(x.limits.Pools.names(it.run.Run))) {
			part('p', pool)
		}
		for _, pool := range slices.Sorted(maps.Keys(p.Root)) {
			part('r', pool, strconv.Itoa(p.Root[pool]))
		}
		if p.Unconstrained {
			part('u')
		}
	}
	if slices.ContainsFunc(x.pausing, func(p Pause) bool { return p.HoldsRun(it.run.Run) }) {
		made.paused = true
		part('h')
	}
	held := func(launcher string) bool {
		until, ok := x.holds[it.run.ID][launcher]
		if ok && until.After(now) {
			heap.Push(&x.timers, timer{until, it.run.ID})
			return true
		}
		if ok {
			delete(x.holds[it.run.ID], launcher)
		}
		return false
	}
	if made.rests = held(""); made.rests {
		part('x')
	} else {
		for _, at := range it.stops {
			if at.held = held(at.launcher); at.held {
				part('b')
			}
			made.stops = append(made.stops, at)
			part('s', at.launcher, at.target)
		}
	}
	made.signature = text.String()
	l := x.lanes[made.signature]
	isNew := l == nil
	if isNew {
		l = &made
		x.lanes[l.signature] = l
		for _, b := range l.buckets {
			b.gate.users++
		}
	}
	it.lane, it.told = l, l.told-1
	l.untold++
	heap.Push(l, it)
	switch {
	case isNew:
		heap.Push(&x.awake, l)
	case l.at >= 0:
		heap.Fix(&x.awake, l.at)
	default:
		x.waits[l.why]++
	}
}

// leave takes a queued run out of its lane.
func (x *index) leave(it *item) {
	l := it.lane
	heap.Remove(l, it.at)
	if it.lane = nil; it.told != l.told {
		l.untold--
	}
	switch {
	case l.at < 0:
		if x.waits[l.why]--; len(l.items) == 0 {
			x.unpark(l)
			x.drop(l)
		}
	case len(l.items) == 0:
		heap.Remove(&x.awake, l.at)
		x.drop(l)
	default:
		heap.Fix(&x.awake, l.at)
	}
}

// drop forgets a lane that has no run any more.
func (x *index) drop(l *lane) {
	delete(x.lanes, l.signature)
	for _, b := range l.buckets {
		b.gate.users--
		x.disuse(b.limit, b.value)
	}
}

// disuse forgets a bucket that no run counts for: a tag may have ever new values.
func (x *index) disuse(limit int, value string) {
	if g := x.tags[limit][value]; g != nil && g.taken == 0 && g.users == 0 {
		delete(x.tags[limit], value)
	}
}

// park takes a lane out of the decisions until one of its gates changes.
func (x *index) park(l *lane, why Reason, gates []*gate) {
	heap.Remove(&x.awake, l.at)
	l.why, l.gates = why, gates
	x.waits[why] += len(l.items)
	if state := fmt.Sprint(why == Sick, len(gates)); state != l.state {
		l.state, l.untold = state, len(l.items)
		l.told++
	}
	for _, g := range gates {
		if g.lanes == nil {
			g.lanes = map[*lane]bool{}
		}
		g.lanes[l] = true
	}
}

func (x *index) unpark(l *lane) {
	for _, g := range l.gates {
		delete(g.lanes, l)
	}
	l.gates = nil
}

// rouse lets a lane that is parked be looked at again.
func (x *index) rouse(l *lane) {
	x.unpark(l)
	x.waits[l.why] -= len(l.items)
	heap.Push(&x.awake, l)
}

// wake rouses the lanes that are parked at a gate.
func (x *index) wake(g *gate) {
	for l := range g.lanes {
		x.rouse(l)
	}
}

func (x *index) bucket(limit int, value string) *gate { return gateOf(x.tags[limit], value) }
func (x *index) pool(name string) *gate               { return gateOf(x.pools, name) }
func (x *index) target(name string) *gate             { return gateOf(x.targets, name) }

func gateOf(gates map[string]*gate, name string) *gate {
	g := gates[name]
	if g == nil {
		g = &gate{name: name}
		gates[name] = g
	}
	return g
}
