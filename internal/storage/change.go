package storage

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// Row is the part of a run's row that a transition reads and writes.
type Row struct {
	Status     dagster.Status
	Body       string
	Updated    time.Time
	Start, End float64 // seconds since 1970; 0 while there is none
}

// Change is the effect of a Claim or Transition on a run's rows. It is planned here once, and each
// storage carries it out in its own SQL.
type Change struct {
	Outcome    Outcome
	Body       string // to store; only if Status or Tags changed
	Status     dagster.Status
	Updated    time.Time
	Start, End float64 // 0: leave
	DeleteTags []int64 // ids of rows of run_tags
	UpdateTags []Tag   // by id
	SetTags    map[string]string
	DropTags   []string
	AddTags    []Tag // in order; their ids are not set
	Events     []dagster.Event
	// OnlyEvents means that nothing but the log can tell whether the change was made before. The
	// storage then leaves out events that the log has.
	OnlyEvents bool
}

// PlanClaim plans a claim of a run. The rows of run_tags with our prefix are in ours, ordered by
// id. If the current launch row already has the claim's token, the claim was made before: it is
// done, and nothing is written.
func PlanClaim(f Fence, c Claim, row Row, ours []Tag) (Change, error) {
	refused := Change{Outcome: Outcome{Status: row.Status}}
	if row.Status == "" {
		return refused, nil
	}
	r, err := dagster.ParseRun(row.Body)
	if err != nil {
		return Change{}, err
	}
	if l := Ours(c.Run, ours, r.Tags).Launch; l != nil && l.Token == c.Token {
		r.Status = row.Status
		return Change{Outcome: Outcome{Done: l.State != Void, Status: row.Status, Launch: *l, Run: &r}}, nil
	}
	if row.Status != dagster.Queued {
		return refused, nil
	}
	ch := Change{Status: dagster.Starting, Updated: c.At}
	attempt, deaths := 0, Ours(c.Run, ours, r.Tags).Deaths
	for _, t := range ours {
		if Alien(c.Run, t, r.Tags) {
			ch.DeleteTags = append(ch.DeleteTags, t.ID)
		} else if l, ok := ParseLaunch(c.Run, t.Value); ok && t.Key == LaunchKey {
			attempt = max(attempt, l.Attempt)
			if l.State == Void && !slices.ContainsFunc(deaths, func(d Death) bool { return d.Attempt == l.Attempt }) {
				ch.DeleteTags = append(ch.DeleteTags, t.ID) // it never had a worker
			}
		}
	}
	launch := LaunchRow{
		Run: c.Run, Attempt: attempt + 1, Instance: c.Instance, Launcher: c.Launcher, Token: c.Token,
		Epoch: f.Epoch, At: c.At, State: Open,
	}
	ch.AddTags = []Tag{{Key: LaunchKey, Value: launch.String()}}
	r.Status = dagster.Starting
	for k, v := range c.Tags {
		r.Tags[k] = v
	}
	ch.SetTags = c.Tags
	// of an earlier attempt, or copied by an older Slipway from the run that this one retries
	stale := []string{CauseTag}
	if attempt == 0 {
		stale = append(stale, CostTag, BillTag)
	}
	for _, tag := range stale {
		if _, ok := r.Tags[tag]; ok || attempt > 0 {
			delete(r.Tags, tag)
			ch.DropTags = append(ch.DropTags, tag)
		}
	}
	ch.Body = r.Body()
	ch.Events = []dagster.Event{dagster.NewEvent(r, dagster.RunStarting, c.At, "")}
	ch.Outcome = Outcome{Done: true, Status: dagster.Starting, Launch: launch, Run: &r}
	return ch, nil
}

// PlanMove plans a transition. If it was made before, it is done, and nothing is written.
func PlanMove(t Transition, row Row, ours []Tag) (Change, error) {
	refused := Change{Outcome: Outcome{Status: row.Status}}
	if row.Status == "" {
		return refused, nil
	}
	r, err := dagster.ParseRun(row.Body)
	if err != nil {
		return Change{}, err
	}
	launch := Ours(t.Run, ours, r.Tags).Launch
	if t.madeBefore(row, launch, ours) {
		done := Change{Outcome: Outcome{Done: true, Status: row.Status}}
		if launch != nil {
			done.Outcome.Launch = *launch
		}
		return done, nil
	}
	if len(t.From) > 0 && !slices.Contains(t.From, row.Status) {
		return refused, nil
	}
	adopts := t.Next != nil && t.Next.Instance != ""
	if t.Launch != "" && (launch == nil || launch.Token != t.Launch) || adopts && launch != nil {
		return refused, nil
	}
	if t.Void && t.Death == nil && launch != nil && launch.State == Taken { // its worker executes
		return refused, nil
	}
	ch := Change{Status: row.Status, Events: t.Events, SetTags: t.Tags}
	if adopts { // its worker is past every gate
		n := t.Next
		launch = &LaunchRow{Run: t.Run, Attempt: 1, Instance: n.Instance, Launcher: n.Launcher, Token: n.Token,
			Epoch: n.Epoch, At: n.At, State: Taken}
		ch.AddTags = append(ch.AddTags, Tag{Key: LaunchKey, Value: launch.String()})
	}
	if t.Logged != nil {
		ch.apply(*t.Logged)
		ch.Updated = time.Time{} // the row changes now, however old the event is
	}
	for _, e := range t.Events {
		ch.apply(e)
	}
	rewrite := ch.Status != row.Status
	for k, v := range t.Tags {
		if _, has := r.Tags[k]; !rowOnly(k) {
			r.Tags[k], rewrite = v, true
		} else if has { // an older Slipway wrote it
			delete(r.Tags, k)
			rewrite = true
		}
	}
	if rewrite {
		if ch.Updated.IsZero() && len(t.Events) > 0 {
			ch.Updated = t.Events[len(t.Events)-1].Time
		}
		r.Status = ch.Status
		ch.Body = r.Body()
	}
	if launch != nil && t.Handle != "" {
		ch.AddTags = append(ch.AddTags, Tag{Key: HandleKey, Value: HandleRow(*launch, t.Handle)})
	}
	if launch != nil && t.Death != nil {
		ch.AddTags = append(ch.AddTags, Tag{Key: DeathKey, Value: deathRow(t.Run, *t.Death)})
	}
	if launch != nil && !t.Began.IsZero() {
		ch.AddTags = append(ch.AddTags, Tag{Key: BeganKey, Value: beganRow(t.Run, t.Began)})
	}
	ch.Outcome = Outcome{Done: true, Status: ch.Status}
	if launch != nil {
		ch.Outcome.Launch = *launch
	}
	if launch == nil || adopts || !t.Void && t.Next == nil {
		ch.OnlyEvents = t.Launch != "" && ch.Body == "" && len(ch.AddTags) == 0
		return ch, nil
	}
	for _, row := range ours {
		if row.Key == LaunchKey && row.Value == launch.String() {
			ch.DeleteTags = append(ch.DeleteTags, row.ID)
		}
	}
	launch.State, launch.By = Void, ""
	ch.AddTags = append(ch.AddTags, Tag{Key: LaunchKey, Value: launch.String()})
	ch.Outcome.Launch = *launch
	if n := t.Next; n != nil {
		next := LaunchRow{Run: t.Run, Attempt: launch.Attempt + 1, Instance: launch.Instance, Launcher: n.Launcher,
			Token: n.Token, Epoch: n.Epoch, At: n.At, State: Open}
		ch.AddTags = append(ch.AddTags, Tag{Key: LaunchKey, Value: next.String()})
		ch.Outcome.Launch = next
	}
	return ch, nil
}

// madeBefore reports whether the storage has the very change of t already, because the answer to an
// earlier try was lost. Each kind of change leaves a trace that no other change leaves: a launch
// row with its token, a voided one, a handle row, or the time of its status event. A change of
// events alone leaves only those; see [Change].OnlyEvents.
func (t Transition) madeBefore(row Row, launch *LaunchRow, ours []Tag) bool {
	has := func(key, value string) bool {
		return slices.ContainsFunc(ours, func(o Tag) bool { return o.Key == key && o.Value == value })
	}
	switch {
	case launch == nil:
	case t.Next != nil:
		return launch.Token == t.Next.Token
	case t.Launch != "" && launch.Token != t.Launch:
		return false
	case t.Void:
		return t.Launch != "" && launch.State == Void && (t.Death == nil || has(DeathKey, deathRow(t.Run, *t.Death)))
	case t.Handle != "":
		return has(HandleKey, HandleRow(*launch, t.Handle))
	}
	return t.setStatus(row)
}

// setStatus reports whether row has the status and the time of the event of t that sets the status.
func (t Transition) setStatus(row Row) bool {
	var last *dagster.Event
	for i, e := range t.Events {
		if e.Type.Status() != "" {
			last = &t.Events[i]
		}
	}
	if last == nil {
		last = t.Logged
	}
	switch {
	case last == nil || row.Status != last.Type.Status():
		return false
	case row.Status.Finished():
		return row.End == dagster.ToUnix(last.Time)
	case last.Type == dagster.RunStart:
		return row.Start == dagster.ToUnix(last.Time)
	}
	return row.Updated.Equal(last.Time.Truncate(time.Microsecond))
}

// apply lets an event set the status and times of the run, as Dagster's handle_run_event does.
func (ch *Change) apply(e dagster.Event) {
	s := e.Type.Status()
	if s == "" {
		return
	}
	ch.Status, ch.Updated = s, e.Time
	if e.Type == dagster.RunStart {
		ch.Start = dagster.ToUnix(e.Time)
	}
	if s.Finished() {
		ch.End = dagster.ToUnix(e.Time)
	}
}

// FenceValue returns the value of the leader row.
func FenceValue(f Fence) string { return strconv.FormatInt(f.Epoch, 10) + " " + f.Leader }

// ParseFence parses the leader row. It returns the zero Fence if there is none.
func ParseFence(value string) Fence {
	epoch, leader, _ := strings.Cut(value, " ")
	n, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return Fence{}
	}
	return Fence{Leader: leader, Epoch: n}
}
