package aci

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
)

// admin answers requests below /_emulator/:
//
//	GET    state       the groups, with settings and the hits of faults
//	GET    settings    PUT changes the settings that its body has
//	GET    requests    the journal; DELETE empties it
//	POST   faults      adds a fault or a list; DELETE removes all
//	POST   groups/NAME/{evict,maintenance,oom,kill,vanish}
func (e *Emulator) admin(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Origin") != "" || strings.HasPrefix(r.URL.Path, "/_emulator/exec/") {
		if strings.HasPrefix(r.URL.Path, "/_emulator/exec/") {
			e.socket(w, r)
			return
		}
		http.Error(w, "not from web pages", http.StatusForbidden)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return // the client has gone
	}
	what := strings.TrimPrefix(r.URL.Path, "/_emulator/")
	out := any(map[string]any{})
	switch r.Method + " " + what {
	case "GET state":
		out = e.state()
	case "GET settings":
		out = e.Settings()
	case "PUT settings":
		s := e.Settings()
		if err = json.Unmarshal(body, &s); err == nil {
			e.Set(s)
		}
		out = s
	case "GET requests":
		out = e.Journal()
	case "DELETE requests":
		e.Forget()
	case "POST faults":
		err = e.injectJSON(body)
	case "DELETE faults":
		e.Calm()
	default:
		parts := strings.Split(what, "/")
		if r.Method != http.MethodPost || len(parts) != 3 || parts[0] != "groups" {
			err = problem{Status: 404, Code: "NotFound", Message: "there is no " + r.Method + " " + r.URL.Path}
			break
		}
		err = e.Befall("", "", parts[1], parts[2])
	}
	status := http.StatusOK
	var p problem
	switch {
	case errors.As(err, &p):
		status, out = p.Status, map[string]any{"error": p}
	case err != nil:
		status, out = http.StatusBadRequest,
			map[string]any{"error": map[string]any{"code": "BadRequest", "message": err.Error()}}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(out) // the client may have gone
}

// injectJSON adds a fault or a list of faults.
func (e *Emulator) injectJSON(text []byte) error {
	var list []Fault
	if err := json.Unmarshal(text, &list); err != nil {
		var one Fault
		if err := json.Unmarshal(text, &one); err != nil {
			return err
		}
		list = []Fault{one}
	}
	var errs []error
	for _, f := range list {
		errs = append(errs, e.Inject(f))
	}
	return errors.Join(errs...)
}

// state returns everything except secrets.
func (e *Emulator) state() any {
	e.mu.Lock()
	defer e.mu.Unlock()
	groups := map[string]any{}
	for k, g := range e.groups {
		groups[k] = map[string]any{"group": e.view(g, true), "deployed": g.deploy, "stopping": g.stopping,
			"deleting": g.deleting}
	}
	return map[string]any{"groups": groups, "settings": e.settings, "faults": e.rules}
}

// Deployed returns how often a group was deployed, or 0 if it does not exist.
func (e *Emulator) Deployed(name string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.groups {
		if g.name == name {
			return g.deploy
		}
	}
	return 0
}

// Names returns the names of all groups.
func (e *Emulator) Names() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := []string{}
	for _, g := range e.groups {
		out = append(out, g.name)
	}
	return out
}
