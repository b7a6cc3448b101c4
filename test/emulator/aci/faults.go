package aci

import (
	"cmp"
	"encoding/json"
	"math/rand/v2"
	"path"
	"time"
)

// Fault is a rule: which requests or groups it applies to, and what it does to them. Its zero
// fields match everything. Actions on a request:
//
//	quota, capacity, fraud, inaccessible_image,
//	registry_error, transitioning   the refusal of the service with that name
//	throttle       429 with RetryAfter, in seconds
//	status         Status, with Code and Message
//	drop_before    the connection breaks before the request is read
//	drop_after     it breaks after the request was executed: the answer is lost
//	slow           the answer takes Delay longer
//	stale_read     GET and list show what existed Delay ago
//	bad_json       the answer is cut
//	group_says_running, no_instance_view, truncate_logs   in the answer
//
// Actions on a group, decided when it is PUT:
//
//	stuck_pending      nothing changes, for Delay or forever
//	provision_failed   provisioningState is Failed; with Delay the group starts after it all the
//	                   same
//	image_pull         the image cannot be pulled, for Delay or forever
//	restart_on_failure a container that exits non-zero is started once more
//	slow_delete        the deletion takes Delay
//	delete_ignored     DELETE and stop are answered, but nothing happens
type Fault struct {
	ID          string        `json:"id,omitempty"`
	Action      string        `json:"action"`
	Operation   string        `json:"operation,omitempty"` // as in the journal: put, get, list, delete, stop, …
	Group       string        `json:"group,omitempty"`     // glob for its name
	Location    string        `json:"location,omitempty"`
	Skip        int           `json:"skip,omitempty"`        // how many matches to skip first
	Count       int           `json:"count,omitempty"`       // at most so often; 0: always
	Probability float64       `json:"probability,omitempty"` // 0: always
	Status      int           `json:"status,omitempty"`
	Code        string        `json:"code,omitempty"`
	Message     string        `json:"message,omitempty"`
	RetryAfter  int           `json:"retry_after,omitempty"`
	Delay       time.Duration `json:"delay,omitempty"` // nanoseconds
}

// ofGroups are the actions on groups.
var ofGroups = map[string]bool{"stuck_pending": true, "provision_failed": true, "image_pull": true,
	"restart_on_failure": true, "slow_delete": true, "delete_ignored": true}

// ofRequests are the actions on requests.
var ofRequests = map[string]bool{
	"quota": true, "capacity": true, "fraud": true, "inaccessible_image": true, "registry_error": true,
	"transitioning": true, "throttle": true, "status": true, "drop_before": true,
	"drop_after": true, "slow": true, "stale_read": true, "bad_json": true, "group_says_running": true,
	"no_instance_view": true, "truncate_logs": true,
}

// rule is a fault with its counters.
type rule struct {
	Fault
	Matched int `json:"matched"`
	Done    int `json:"done"`
}

// Inject adds a fault after the existing ones.
func (e *Emulator) Inject(f Fault) error {
	if !ofGroups[f.Action] && !ofRequests[f.Action] {
		return problem{Status: 400, Code: "UnknownAction", Message: "there is no fault " + f.Action}
	}
	if _, err := path.Match(f.Group, ""); err != nil {
		return problem{Status: 400, Code: "BadGlob", Message: f.Group + ": " + err.Error()}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.ID == "" {
		f.ID = e.nextID()
	}
	e.rules = append(e.rules, &rule{Fault: f})
	return nil
}

// Calm removes all faults.
func (e *Emulator) Calm() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rules = nil
}

// Seed makes faults with a probability repeatable.
func (e *Emulator) Seed(seed uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.random = rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // faults are no secret
}

// strike returns the faults that apply to a request, with an action in of. The mutex is held.
func (e *Emulator) strike(c call, location string, of map[string]bool) []Fault {
	var out []Fault
	for _, r := range e.rules {
		fits, _ := path.Match(cmp.Or(r.Group, "*"), c.name)
		if !of[r.Action] || !fits || r.Operation != "" && r.Operation != c.op || r.Location != "" &&
			place(r.Location) != location {
			continue
		}
		r.Matched++
		if r.Matched <= r.Skip || r.Count > 0 && r.Done >= r.Count || r.Probability > 0 &&
			e.random.Float64() >= r.Probability {
			continue
		}
		r.Done++
		out = append(out, r.Fault)
	}
	return out
}

// problem is an error in the form in which ARM answers it.
type problem struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`
	Message string `json:"message"`
	// RetryAfter is in seconds.
	RetryAfter int `json:"-"`
}

func (p problem) Error() string { return p.Code + ": " + p.Message }

func (p problem) body() []byte {
	text, err := json.Marshal(map[string]any{"error": p})
	if err != nil { // texts can always be marshaled
		panic(err)
	}
	return text
}
