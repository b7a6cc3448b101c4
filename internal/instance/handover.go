package instance

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipway-run/slipway/internal/dagster"
)

// Edit is one change of a file that is needed so that Slipway launches runs instead of
// dagster-daemon.
type Edit struct {
	File    string `json:"file"`
	Section string `json:"-"`   // dotted keys below which Lines belong; "" for the top of the file
	Lines   string `json:"-"`   // in flow style
	Add     string `json:"add"` // Lines below the keys of Section
	Undo    string `json:"undo"`
	Done    bool   `json:"done"`
}

// String returns on one line what to write and where.
func (e Edit) String() string {
	if e.Section == "" {
		return fmt.Sprintf("write %s in %s", e.Lines, e.File)
	}
	return fmt.Sprintf("write %s under %s in %s", e.Lines, e.Section, e.File)
}

// Handover returns the edits that hand the runs selected by o over to Slipway; the zero Only
// selects all runs. An edit of limits names the section that this dagster.yaml uses, because
// Dagster accepts limits in one section only. The first edit is for the queue in dagster.yaml, the
// second for the queue in slipway.yaml, and the last for run_monitoring.
func (in *Instance) Handover(o Only) []Edit {
	dagsterYAML, slipwayYAML := filepath.Join(in.Home, "dagster.yaml"), filepath.Join(in.Home, "slipway.yaml")
	const onlyOurs = "not needed: only Slipway reads this file"
	edit := func(file, section, lines, undo string, done bool) Edit {
		return Edit{File: file, Section: section, Lines: lines, Add: nested(section, lines), Undo: undo, Done: done}
	}
	var list []Edit
	if len(o.Locations)+len(o.Tags) == 0 { // Dagster has no limits per job
		q, _ := in.QueueLimits() // Load has checked them
		list = append(list,
			edit(dagsterYAML, in.QueueSection(), "max_concurrent_runs: 0",
				"remove the line, or put your old limit back", in.Parked),
			edit(slipwayYAML, "", fmt.Sprintf("queue: {max_concurrent_runs: %d}", q.MaxConcurrentRuns), onlyOurs,
				in.Settings.Queue.MaxConcurrentRuns != nil && in.Settings.Queue.Only.Empty()))
	} else {
		var limits []string
		for _, l := range o.Locations {
			limits = append(limits, fmt.Sprintf("{key: %s, value: %s, limit: 0}", dagster.CodeLocationTag, l))
		}
		for _, key := range slices.Sorted(maps.Keys(o.Tags)) {
			value := ""
			if v := o.Tags[key]; v != "" {
				value = fmt.Sprintf("value: %s, ", v)
			}
			limits = append(limits, fmt.Sprintf("{key: %s, %slimit: 0}", key, value))
		}
		list = append(list,
			edit(dagsterYAML, in.QueueSection(), "tag_concurrency_limits: ["+strings.Join(limits, ", ")+"]",
				"remove these limits", in.parks(o)),
			edit(slipwayYAML, "", "queue: {only: "+o.String()+"}", onlyOurs,
				o.String() == in.Settings.Queue.Only.String()))
	}
	if t := in.Settings.Terminate; in.Storage.URL != "" && !in.StockTerminates() {
		add, done := "terminate: {advertise: \"HOST:4001\"}   # where webservers reach slipway daemon; or "+
			"{local_only: true}", true
		switch {
		case t.Advertise != "":
			add = fmt.Sprintf("terminate: {advertise: %q}", t.Advertise)
		case t.Listen != "":
			add = fmt.Sprintf("terminate: {listen: %q}", t.Listen)
		case t.LocalOnly:
			add = "terminate: {local_only: true}"
		default:
			done = false
		}
		list = append(list, edit(slipwayYAML, "", add, onlyOurs, done))
	}
	return append(list, edit(dagsterYAML, "run_monitoring", "enabled: false",
		"remove the line, or set it to true again", !in.MonitorsRun))
}

// Park returns the edit that keeps the stock dequeuer from the runs that Slipway launches, and the
// one that turns the stock monitor off.
func (in *Instance) Park() (queue, monitor Edit) {
	edits := in.Handover(in.Settings.Queue.Only)
	return edits[0], edits[len(edits)-1]
}

// Limit returns the edit of slipway.yaml that keeps the present limit of the stock queue.
func (in *Instance) Limit() Edit { return in.Handover(Only{})[1] }

// String returns o in the form of slipway.yaml.
func (o Only) String() string {
	var parts []string
	for _, list := range []struct {
		key    string
		values []string
	}{{"locations", o.Locations}, {"jobs", o.Jobs}} {
		if len(list.values) > 0 {
			parts = append(parts, list.key+": ["+strings.Join(slices.Sorted(slices.Values(list.values)), ", ")+"]")
		}
	}
	var tags []string
	for _, key := range slices.Sorted(maps.Keys(o.Tags)) {
		tags = append(tags, fmt.Sprintf("%s: %q", key, o.Tags[key]))
	}
	if len(tags) > 0 {
		parts = append(parts, "tags: {"+strings.Join(tags, ", ")+"}")
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// nested returns lines as YAML below dotted keys.
func nested(keys, lines string) string {
	if keys == "" {
		return lines
	}
	for _, key := range slices.Backward(strings.Split(keys, ".")) {
		lines = key + ":\n  " + strings.ReplaceAll(lines, "\n", "\n  ")
	}
	return lines
}
