package storage

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// Inbox collects changed runs for one reader, who is woken and takes them all at once; of several
// versions of one run it keeps the newest. The zero value is not usable; see [NewInbox].
type Inbox struct {
	mu   sync.Mutex
	runs map[string]Run
	wake chan struct{}
}

// NewInbox makes an empty inbox.
func NewInbox() *Inbox { return &Inbox{runs: map[string]Run{}, wake: make(chan struct{}, 1)} }

// Put adds runs. It never blocks.
func (b *Inbox) Put(runs ...Run) {
	if len(runs) == 0 {
		return
	}
	b.mu.Lock()
	for _, r := range runs {
		b.runs[r.ID] = r
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default: // it is awake already
	}
}

// Wake is ready when there is something to take.
func (b *Inbox) Wake() <-chan struct{} { return b.wake }

// Take empties the inbox.
func (b *Inbox) Take() []Run {
	b.mu.Lock()
	defer b.mu.Unlock()
	runs := slices.Collect(maps.Values(b.runs))
	clear(b.runs)
	return runs
}

// Feed turns hints into changed runs. A hint names at most a run and comes up to 50 ms before the
// change that it is about can be read, so the run is looked at several times, many hints in one
// query; a slow poll finds what hints missed.
type Feed struct {
	Store Store
	Log   *slog.Logger
	// Put is given runs that may have changed; the first call has all unfinished ones. It must not
	// block.
	Put func(...Run)

	known  map[string]Head // of unfinished runs
	newest time.Time       // the latest update seen
	looked time.Time       // when everything was looked at last
}

const (
	pollInterval = 5 * time.Second // the net under hints
	scanInterval = time.Minute     // the net under the poll: clocks of workers may be behind
	// By how much a poll goes back before the latest update: what is stamped by a clock of another
	// machine, or of this one.
	farOverlap  = 30 * time.Second
	nearOverlap = 2 * time.Second
	hintRetry   = time.Second
	// While notices do not arrive, polls are as fast as notices would be, and look back over the
	// time between an update's stamp and its commit.
	fastInterval = 15 * time.Millisecond
	fastOverlap  = 250 * time.Millisecond
	noticeRetry  = 30 * time.Second
)

// probes are the waits after a notice, each from the one before.
var probes = []time.Duration{
	2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond, 16 * time.Millisecond, 32 * time.Millisecond,
	64 * time.Millisecond, time.Second,
}

// Run feeds until ctx ends or the storage fails for good; it returns nil only with ctx.
func (f *Feed) Run(ctx context.Context) error {
	f.known = map[string]Head{}
	if err := f.scan(ctx); err != nil {
		return err
	}
	hints, noNotices := make(chan Hint, 1024), make(chan bool, 1)
	var wg sync.WaitGroup
	wg.Go(func() { f.listen(ctx, hints, noNotices) })
	fast := time.NewTicker(fastInterval)
	fast.Stop()
	defer fast.Stop()
	defer wg.Wait()
	poll, scan := time.NewTicker(pollInterval), time.NewTicker(scanInterval)
	defer poll.Stop()
	defer scan.Stop()
	due := map[string]probe{}
	for {
		var next <-chan time.Time
		if len(due) > 0 {
			next = time.After(time.Until(slices.MinFunc(slices.Collect(maps.Values(due)), func(a, b probe) int {
				return a.at.Compare(b.at)
			}).at))
		}
		var err error
		select {
		case <-ctx.Done():
			return nil
		case h := <-hints:
			all := f.hinted(h, due)
			for len(hints) > 0 { // one poll for all that wait
				all = f.hinted(<-hints, due) || all
			}
			if all {
				err = f.poll(ctx, nearOverlap)
			}
		case <-next:
			err = f.probe(ctx, due)
		case none := <-noNotices:
			if fast.Stop(); none {
				fast.Reset(fastInterval)
			}
		case <-fast.C:
			err = f.poll(ctx, fastOverlap)
		case <-poll.C:
			err = f.poll(ctx, farOverlap)
		case <-scan.C:
			err = f.scan(ctx)
		}
		if err != nil && ctx.Err() == nil {
			f.Log.WarnContext(ctx, "cannot read the storage; retrying", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(hintRetry):
			}
		}
	}
}

// hinted notes when to look at the run that a hint names. It reports whether the hint is about
// everything.
func (f *Feed) hinted(h Hint, due map[string]probe) bool {
	if h.Run == "" {
		return true
	}
	p := f.first(h.Run)
	if old, ok := due[h.Run]; ok && old.at.Before(p.at) {
		p.at = old.at // and from there on the series of the new notice
	}
	due[h.Run] = p
	return false
}

// probe is the next look at a run that a notice named.
type probe struct {
	n  int
	at time.Time
}

// first is the first look after a notice. A run in flight announces each of its events; the last
// looks of the series are enough for it.
func (f *Feed) first(run string) probe {
	n := 0
	if f.known[run].Status.Active() {
		n = len(probes) - 2
	}
	return probe{n + 1, time.Now().Add(probes[n])}
}

// probe reads the runs whose look is due.
func (f *Feed) probe(ctx context.Context, due map[string]probe) error {
	now := time.Now()
	var ids []string
	for run, p := range due {
		if p.at.After(now) {
			continue
		}
		ids = append(ids, run)
		if p.n < len(probes) {
			due[run] = probe{p.n + 1, now.Add(probes[p.n])}
		} else {
			delete(due, run)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	runs, err := f.Store.Runs(ctx, Filter{IDs: ids})
	if err != nil {
		return err
	}
	f.put(runs, false)
	for _, r := range runs {
		if r.Status == dagster.Queued {
			delete(due, r.ID) // what the notice was about
		}
	}
	return nil
}

// listen passes hints on until ctx ends, and reports when notices stop and when they arrive again.
func (f *Feed) listen(ctx context.Context, hints chan<- Hint, noNotices chan<- bool) {
	last := false
	say := func(none bool) {
		if none != last {
			last = none
			select {
			case noNotices <- none:
			case <-ctx.Done():
			}
		}
	}
	for ctx.Err() == nil {
		wait := hintRetry
		for h, err := range f.Store.Hints(ctx) {
			if errors.Is(err, ErrNoNotices) {
				wait = noticeRetry
				say(true)
				f.Log.WarnContext(ctx,
					"the storage's notices do not arrive; polling instead. If there is a pooler in between, set "+
						"storage.direct_url in slipway.yaml", "err", err)
				break
			}
			if err != nil {
				f.Log.WarnContext(ctx, "the storage's notices stopped; listening again", "err", err)
				break
			}
			if h.Run != "" {
				say(false)
			}
			select {
			case hints <- h:
			default: // full: the poll finds it
			}
			if ctx.Err() != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// poll reads what was updated lately: after the latest update seen, or, if the clocks of others do
// not matter, after the last look. So it does not read again what was written at once long ago.
func (f *Feed) poll(ctx context.Context, overlap time.Duration) error {
	now := time.Now().Round(0) // without its monotonic part, as the times in the storage
	if f.newest.After(now) {   // our clock was set back
		f.newest = now
	}
	since := f.newest
	if overlap == nearOverlap && f.looked.After(since) && f.looked.Before(now) {
		since = f.looked
	}
	// With the statuses named, Dagster's index of status and update time serves the query.
	heads, err := f.Store.Heads(ctx, Filter{Statuses: dagster.Statuses(), Since: since.Add(-overlap)})
	if err != nil {
		return err
	}
	if err := f.read(ctx, heads, false); err != nil {
		return err
	}
	f.looked = now
	return nil
}

// scan looks at all unfinished runs, and at all runs that were unfinished when last seen. It reads
// the runs in flight, and the queued ones that have changed.
func (f *Feed) scan(ctx context.Context) error {
	heads, err := f.Store.Heads(ctx, Filter{Statuses: dagster.UnfinishedStatuses()})
	if err != nil {
		return err
	}
	gone := maps.Clone(f.known)
	for _, h := range heads {
		delete(gone, h.ID)
	}
	for id := range gone { // ended, or deleted
		heads = append(heads, Head{ID: id})
	}
	return f.read(ctx, heads, true)
}

// read reads the runs whose heads are not those last seen, and with all those in flight as well,
// and passes them on.
func (f *Feed) read(ctx context.Context, heads []Head, all bool) error {
	var ids []string
	for _, h := range heads {
		f.saw(h.Updated)
		seen, known := f.known[h.ID]
		changed := !known || seen.Status != h.Status || !seen.Updated.Equal(h.Updated)
		ours := !h.Status.Finished() && h.Status != dagster.NotStarted
		if changed && (known || ours) || all && h.Status.Active() {
			ids = append(ids, h.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	runs, err := f.Store.Runs(ctx, Filter{IDs: ids})
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, r := range runs {
		there[r.ID] = true
	}
	for _, id := range ids {
		if _, known := f.known[id]; known && !there[id] { // deleted
			runs = append(runs, Run{Run: dagster.Run{ID: id}})
		}
	}
	f.put(runs, all)
	return nil
}

// saw notes the time of an update.
func (f *Feed) saw(at time.Time) {
	if at.After(f.newest) && at.Before(time.Now()) {
		f.newest = at
	}
}

// put passes on the runs that are not as they were last seen, or all of them, in one call.
func (f *Feed) put(runs []Run, all bool) {
	var changed []Run
	for _, r := range runs {
		f.saw(r.Updated)
		seen, known := f.known[r.ID]
		if known && seen.Status == r.Status && seen.Updated.Equal(r.Updated) && !all ||
			!known && (r.Status.Finished() || r.Status == dagster.NotStarted) {
			continue
		}
		f.known[r.ID] = Head{r.ID, r.Status, r.Updated}
		if r.Status.Finished() || r.Status == "" {
			delete(f.known, r.ID)
		}
		changed = append(changed, r)
	}
	if len(changed) > 0 {
		f.Put(changed...)
	}
}
