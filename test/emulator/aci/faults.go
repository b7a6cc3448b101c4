package aci

import (
	"cmp"
	"encoding/json"
	"math/rand/v2"
	"path"
	"time"
)

// Fault is a rule: to which requests or groups something happens. Its zero fields match everything. Actions of a request:
//
//	quota, capacity, fraud, inaccessible_image, registry_error, transitioning   the service's refusal of that name
//	throttle       429 with RetryAfter, in seconds
//	status         Status, with Code and Message
//	drop_before    the connection breaks before the request is read
//	drop_after     it breaks after it was carried out: the answer is lost
//	slow           the answer takes Delay longer
//	stale_read     GET and list show what there was Delay ago
//	bad_json       the answer is cut
//	group_says_running, no_instance_view, truncate_logs   in the answer
//
// Actions that befall a group, decided when it is PUT:
//
//	stuck_pending      nothing moves, for Delay or for ever
//	provision_failed   provisioningState Failed; after Delay, if there is one, it starts all the same
//	image_pull         the image cannot be pulled, for Delay or for ever
//	restart_on_failure a container that exits non-zero is started once more
//	slow_delete        it takes Delay to go
//	delete_ignored     DELETE and stop are answered, and nothing happens
type Fault struct {
	ID          string        `json:"id,omitempty"`
	Action      string        `json:"action"`
	Operation   string        `json:"operation,omitempty"` // as in the journal: put, get, list, delete, stop, …
	Group       string        `json:"group,omitempty"`     // glob of its name
	Location    string        `json:"location,omitempty"`
	Skip        int           `json:"skip,omitempty"`        // so many matches first
	Count       int           `json:"count,omitempty"`       // no more often than this; 0 is always
	Probability float64       `json:"probability,omitempty"` // 0 is always
	Status      int           `json:"status,omitempty"`
	Code        string        `json:"code,omitempty"`
	Message     string        `json:"message,omitempty"`
	RetryAfter  int           `json:"retry_after,omitempty"`
	Delay       time.Duration `json:"delay,omitempty"` // nanoseconds
}

// ofGroups are the actions that befall a group.
var ofGroups = map[string]bool{"stuck_pending": true, "provision_failed": true, "image_pull": true, "restart_on_failure": true, "slow_delete": true, "delete_ignored": true}

// ofRequests are the others.
var ofRequests = map[string]bool{
	"quota": true, "capacity": true, "fraud": true, "inaccessible_image": true, "registry_error": true, "transitioning": true, "throttle": true, "status": true, "drop_before": true,
	"drop_after": true, "slow": true, "stale_read": true, "bad_json": true, "group_says_running": true, "no_instance_view": true, "truncate_logs": true,
}

// rule is a fault with what it has done.
type rule struct {
	Fault
	Matched int `json:"matched"`
	Done    int `json:"done"`
}

// Inject adds a fault, after those that there are.
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

// Calm takes all faults away.
func (e *Emulator) Calm() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rules = nil
}

// Seed makes what faults with a probability do repeatable.
func (e *Emulator) Seed(seed uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.random = rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // faults are no secret
}

// strike gives the faults of a request, of those that want accepts. The mutex is held.
func (e *Emulator) strike(c call, location string, of map[string]bool) []Fault {
	var out []Fault
	for _, r := range e.rules {
		fits, _ := path.Match(cmp.Or(r.Group, "*"), c.name)
		if !of[r.Action] || !fits || r.Operation != "" && r.Operation != c.op || r.Location != "" && place(r.Location) != location {
			continue
		}
		r.Matched++
		if r.Matched <= r.Skip || r.Count > 0 && r.Done >= r.Count || r.Probability > 0 && e.random.Float64() >= r.Probability {
			continue
		}
		r.Done++
		out = append(out, r.Fault)
	}
	return out
}

// problem is an error as ARM answers it.
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
	if err != nil { // texts do not fail
		panic(err)
	}
	return text
}
