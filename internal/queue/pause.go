package queue

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// pauseRetry is how often the loop looks whether what is paused may go on.
const pauseRetry = 500 * time.Millisecond

// PausePrefix is the prefix of the keys of pauses in kvs.
const PausePrefix = "slipway/pause/"

// Scope is the kind of thing that a pause applies to.
type Scope string

// The scopes.
const (
	OfInstance Scope = "instance"
	OfLauncher Scope = "launcher"
	OfLocation Scope = "location"
	OfJob      Scope = "job"
	OfTag      Scope = "tag" // its value is KEY=VALUE
	// Ended is not a pause but ends maintenance windows. Its value is their scope and value,
	// SCOPE/VALUE. The windows that had begun by Since are no longer in force.
	Ended Scope = "ended"
)

// End returns the entry that ends the maintenance windows with the scope and value of p.
func (p Pause) End(by string, now time.Time) Pause {
	return Pause{Scope: Ended, Value: string(p.Scope) + "/" + p.Value, By: by, Since: now, Until: p.Until}
}

// Pause holds back launches until it is removed or has expired. Runs in flight continue.
type Pause struct {
	Scope Scope     `json:"scope"`
	Value string    `json:"value,omitempty"`
	By    string    `json:"by"`
	Why   string    `json:"why"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"` // zero: until it is removed
}

// Key returns the pause's key in kvs: there is one for each scope and value.
func (p Pause) Key() string { return PausePrefix + string(p.Scope) + "/" + p.Value }

// Text returns the pause's value in kvs.
func (p Pause) Text() string {
	text, _ := json.Marshal(p) // it has nothing that cannot be marshaled
	return string(text)
}

// String says what is paused.
func (p Pause) String() string {
	if p.Scope == OfInstance {
		return "the instance"
	}
	return strings.TrimSpace(string(p.Scope) + " " + p.Value)
}

// ParsePauses reads the pauses among entries of kvs, oldest first. Each one that cannot be parsed
// is an error.
func ParsePauses(entries map[string]string) (pauses []Pause, bad []error) {
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		var p Pause
		if err := json.Unmarshal([]byte(entries[key]), &p); err != nil || p.Key() != key {
			bad = append(bad, fmt.Errorf("kvs %s is not a pause: %q", key, entries[key]))
			continue
		}
		pauses = append(pauses, p)
	}
	slices.SortStableFunc(pauses, func(a, b Pause) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Key(), b.Key()))
	})
	return pauses, bad
}

// Over reports whether the pause has expired.
func (p Pause) Over(now time.Time) bool { return !p.Until.IsZero() && !now.Before(p.Until) }

// HoldsLauncher reports whether the pause holds back all launches of a launcher.
func (p Pause) HoldsLauncher(name string) bool { return p.Scope == OfLauncher && p.Value == name }

// HoldsRun reports whether the pause holds back a run on every launcher.
func (p Pause) HoldsRun(r dagster.Run) bool {
	switch p.Scope {
	case OfInstance:
		return true
	case OfLocation:
		return r.Remote.Location == p.Value
	case OfJob:
		return r.Job == p.Value
	case OfTag:
		key, value, _ := strings.Cut(p.Value, "=")
		got, ok := r.Tags[key]
		return ok && got == value
	}
	return false
}
