// Package webserver runs a real, unmodified dagster-webserver as a child process, and sends it the
// GraphQL queries of Dagster's own pages: launch a run, list runs, read a run's log.
package webserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Server is a running webserver.
type Server struct {
	URL  string // without a slash at the end
	Home string // DAGSTER_HOME
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	log  string
}

// Options say what to start.
type Options struct {
	Bin       string            // folder of dagster-webserver
	Home      string            // DAGSTER_HOME
	Locations []string          // Python files with definitions
	Servers   map[string]string // host:port of code servers that already run, by location
	Env       []string          // in addition to the environment of this process
	Python    map[string]string // Python by name of location; other locations have the one in Bin
	Workspace string            // text of workspace.yaml, instead of Locations and Servers
}

// startTimeout is how long a webserver may take until it answers and its locations are loaded.
const startTimeout = 3 * time.Minute

// Start starts a webserver and waits until its code locations are loaded. The caller stops it.
func Start(ctx context.Context, o Options) (*Server, error) {
	workspace := "load_from:\n"
	for _, f := range o.Locations {
		name := strings.TrimSuffix(filepath.Base(f), ".py")
		if name == "definitions" {
			name = filepath.Base(filepath.Dir(f))
		}
		python := o.Python[name]
		if python == "" {
			python = filepath.Join(o.Bin, "python")
		}
		workspace += fmt.Sprintf("  - python_file: {relative_path: %q, location_name: %q, executable_path: %q}\n", f,
			name, python)
	}
	for name, address := range o.Servers {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		workspace += fmt.Sprintf("  - grpc_server: {host: %q, port: %s, location_name: %q}\n", host, port, name)
	}
	if o.Workspace != "" {
		workspace = o.Workspace
	}
	file := filepath.Join(o.Home, "workspace.yaml")
	if err := os.WriteFile(file, []byte(workspace), 0o600); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &Server{URL: fmt.Sprintf("http://127.0.0.1:%d", port), Home: o.Home, done: make(chan struct{}), log: filepath.Join(o.Home, "webserver.log")}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	s.cmd = exec.Command(filepath.Join(o.Bin, "dagster-webserver"), "-w", file, "-h", "127.0.0.1",
		"-p", fmt.Sprint(port))
	s.cmd.Env = append(append(os.Environ(), "DAGSTER_HOME="+o.Home, "DAGSTER_DISABLE_TELEMETRY=1"), o.Env...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = o.Home, log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(s.cmd.Start(), log.Close()); err != nil {
		return nil, err
	}
	go func() { _ = s.cmd.Wait(); close(s.done) }() // Stop waits for it
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.ready(ctx, len(o.Locations)+len(o.Servers)); err != nil {
		s.Stop()
		text, _ := os.ReadFile(s.log) // only for the message
		return nil, fmt.Errorf("dagster-webserver: %w; its log:\n%s", err, text)
	}
	return s, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

func (s *Server) ready(ctx context.Context, locations int) error {
	for {
		var got struct {
			WorkspaceOrError struct {
				LocationEntries []struct {
					Name                string
					LoadStatus          string
					LocationOrLoadError struct {
						Typename string `json:"__typename"`
						Message  string
					}
				}
			}
		}
		err := s.Query(ctx,
			`{workspaceOrError {... on Workspace {locationEntries {name loadStatus locationOrLoadError {__typename `+
				`... on PythonError {message}}}}}}`, nil, &got)
		if err == nil {
			loaded := 0
			for _, e := range got.WorkspaceOrError.LocationEntries {
				if e.LocationOrLoadError.Typename == "PythonError" {
					return fmt.Errorf("code location %s: %s", e.Name, e.LocationOrLoadError.Message)
				}
				if e.LoadStatus == "LOADED" {
					loaded++
				}
			}
			all := max(locations, len(got.WorkspaceOrError.LocationEntries))
			if loaded == all && all > 0 {
				return nil
			}
			err = fmt.Errorf("%d of %d code locations are loaded", loaded, all)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-s.done:
			return errors.New("it ended")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Stop ends the webserver and its code servers.
func (s *Server) Stop() {
	_ = syscall.Kill(s.cmd.Process.Pid, syscall.SIGTERM) // it may have ended by itself
	select {
	case <-s.done:
	case <-time.After(15 * time.Second):
	}
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // the rest of its process group
	<-s.done
}

// Query sends a GraphQL request and decodes its data.
func (s *Server) Query(ctx context.Context, query string, variables map[string]any, into any) error {
	body, err := json.Marshal(map[string]any{"query": query, "variables": variables})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/graphql", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	var got struct {
		Data   json.RawMessage
		Errors []struct{ Message string }
	}
	if err := json.Unmarshal(text, &got); err != nil || resp.StatusCode != http.StatusOK || len(got.Errors) > 0 {
		return errors.Join(fmt.Errorf("graphql: %s: %s", resp.Status, text), err)
	}
	return json.Unmarshal(got.Data, into)
}

// Job names what to launch.
type Job struct {
	Location, Name string
	Partition      string
	Config         map[string]any
	Tags           map[string]string
}

const launchRun = `mutation ($p: ExecutionParams!) {launchRun(executionParams: $p) {__typename
	... on LaunchRunSuccess {run {runId}} ... on PythonError {message} ... on RunConfigValidationInvalid {errors {message}}}}`

// Launch does what the button "Launch run" does, and returns the new run's ID.
func (s *Server) Launch(ctx context.Context, j Job) (string, error) {
	tags := []map[string]string{}
	for k, v := range j.Tags {
		tags = append(tags, map[string]string{"key": k, "value": v})
	}
	if j.Partition != "" {
		tags = append(tags, map[string]string{"key": "dagster/partition", "value": j.Partition})
	}
	config := j.Config
	if config == nil {
		config = map[string]any{}
	}
	params := map[string]any{
		"selector": map[string]any{"repositoryLocationName": j.Location, "repositoryName": "__repository__",
			"jobName": j.Name},
		"runConfigData": config, "executionMetadata": map[string]any{"tags": tags},
	}
	var got struct {
		LaunchRun struct {
			Typename string `json:"__typename"`
			Run      struct{ RunID string }
			Message  string
			Errors   []struct{ Message string }
		}
	}
	if err := s.Query(ctx, launchRun, map[string]any{"p": params}, &got); err != nil {
		return "", err
	}
	if got.LaunchRun.Run.RunID == "" {
		return "", fmt.Errorf("launch %s: %s %s %v", j.Name, got.LaunchRun.Typename, got.LaunchRun.Message,
			got.LaunchRun.Errors)
	}
	return got.LaunchRun.Run.RunID, nil
}

// Reexecute does what the button "Re-execute all" of a run's page does, and returns the new run's
// ID.
func (s *Server) Reexecute(ctx context.Context, parent string) (string, error) {
	var got struct {
		LaunchRunReexecution struct {
			Typename string `json:"__typename"`
			Run      struct{ RunID string }
			Message  string
		}
	}
	err := s.Query(ctx,
		`mutation ($p: ReexecutionParams!) {launchRunReexecution(reexecutionParams: $p) {__typename ... on `+
			`LaunchRunSuccess {run {runId}} ... on PythonError {message}}}`,
		map[string]any{"p": map[string]any{"parentRunId": parent, "strategy": "ALL_STEPS"}}, &got)
	if err == nil && got.LaunchRunReexecution.Run.RunID == "" {
		err = fmt.Errorf("re-execute %s: %s %s", parent, got.LaunchRunReexecution.Typename,
			got.LaunchRunReexecution.Message)
	}
	return got.LaunchRunReexecution.Run.RunID, err
}

// Run is a run as the runs page shows it. Times are seconds since 1970; 0 means not yet.
type Run struct {
	RunID, JobName, Status           string
	CreationTime, StartTime, EndTime float64
	Tags                             []struct{ Key, Value string }
}

// Runs lists the newest runs, as the runs page does.
func (s *Server) Runs(ctx context.Context, limit int) ([]Run, error) {
	var got struct {
		RunsOrError struct {
			Typename string `json:"__typename"`
			Message  string
			Results  []Run
		}
	}
	err := s.Query(ctx,
		`query ($n: Int) {runsOrError(limit: $n) {__typename ... on Runs {results {runId jobName status creationTime `+
			`startTime endTime tags {key value}}} ... on PythonError {message}}}`,
		map[string]any{"n": limit}, &got)
	if err == nil && got.RunsOrError.Typename != "Runs" {
		err = fmt.Errorf("runs page: %s: %s", got.RunsOrError.Typename, got.RunsOrError.Message)
	}
	return got.RunsOrError.Results, err
}

// Event is one line of a run's log.
type Event struct {
	Typename  string `json:"__typename"`
	EventType string
	Message   string
	StepKey   string
	Timestamp string // milliseconds since 1970
}

// Events reads a run's log, as the run page does.
func (s *Server) Events(ctx context.Context, run string) ([]Event, error) {
	var all []Event
	cursor := ""
	for {
		var got struct {
			LogsForRun struct {
				Typename string `json:"__typename"`
				Message  string
				Events   []Event
				Cursor   string
				HasMore  bool
			}
		}
		vars := map[string]any{"run": run}
		if cursor != "" {
			vars["after"] = cursor
		}
		err := s.Query(ctx, `query ($run: ID!, $after: String) {logsForRun(runId: $run, afterCursor: $after) {__typename
			... on EventConnection {cursor hasMore
				events {__typename ... on MessageEvent {eventType message stepKey timestamp}}}
			... on PythonError {message}}}`, vars, &got)
		if err != nil {
			return nil, err
		}
		if got.LogsForRun.Typename != "EventConnection" {
			return nil, fmt.Errorf("run page: %s: %s", got.LogsForRun.Typename, got.LogsForRun.Message)
		}
		all = append(all, got.LogsForRun.Events...)
		if !got.LogsForRun.HasMore {
			return all, nil
		}
		cursor = got.LogsForRun.Cursor
	}
}

// RunPage queries everything else that a run's page shows: statistics, steps, assets, timings,
// termination.
func (s *Server) RunPage(ctx context.Context, run string) error {
	var got struct {
		RunOrError struct {
			Typename string `json:"__typename"`
			Message  string
			Stats    struct {
				Typename string `json:"__typename"`
			}
		}
	}
	err := s.Query(ctx,
		`query ($run: ID!) {runOrError(runId: $run) {__typename ... on PythonError {message} ... on Run {
		id runId status canTerminate hasReExecutePermission runConfigYaml tags {key value} rootRunId parentRunId
		startTime endTime updateTime stepKeysToExecute hasConcurrencyKeySlots hasRunMetricsEnabled
		repositoryOrigin {repositoryName repositoryLocationName} executionPlan {steps {key}} assets {key {path}}
		stats {__typename
			... on RunStatsSnapshot {stepsSucceeded stepsFailed enqueuedTime launchTime startTime endTime}}
		stepStats {stepKey status startTime endTime attempts {startTime}}}}}`, map[string]any{"run": run}, &got)
	if err == nil && (got.RunOrError.Typename != "Run" || got.RunOrError.Stats.Typename != "RunStatsSnapshot") {
		err = fmt.Errorf("run page of %s: %+v", run, got.RunOrError)
	}
	return err
}

// Steps returns the states of a run's steps as its page shows them, by key.
func (s *Server) Steps(ctx context.Context, run string) (map[string]string, error) {
	var got struct {
		RunOrError struct {
			StepStats []struct{ StepKey, Status string }
		}
	}
	err := s.Query(ctx, `query ($run: ID!) {runOrError(runId: $run) {... on Run {stepStats {stepKey status}}}}`,
		map[string]any{"run": run}, &got)
	steps := map[string]string{}
	for _, st := range got.RunOrError.StepStats {
		steps[st.StepKey] = st.Status
	}
	return steps, err
}

// Captured returns the standard output and error of a run's steps, as its page shows them.
func (s *Server) Captured(ctx context.Context, run string) (stdout, stderr string, err error) {
	var keys struct {
		LogsForRun struct{ Events []struct{ FileKey string } }
	}
	if err := s.Query(ctx,
		`query ($run: ID!) {logsForRun(runId: $run) {... on EventConnection {events {... on LogsCapturedEvent `+
			`{fileKey}}}}}`, map[string]any{"run": run}, &keys); err != nil {
		return "", "", err
	}
	for _, e := range keys.LogsForRun.Events {
		if e.FileKey == "" {
			continue
		}
		var got struct {
			CapturedLogs struct{ Stdout, Stderr string }
		}
		if err := s.Query(ctx, `query ($key: [String!]!) {capturedLogs(logKey: $key) {stdout stderr}}`,
			map[string]any{"key": []string{run, "compute_logs", e.FileKey}}, &got); err != nil {
			return "", "", err
		}
		stdout, stderr = stdout+got.CapturedLogs.Stdout, stderr+got.CapturedLogs.Stderr
	}
	return stdout, stderr, nil
}

// Terminate does what the run page's button does. It returns whether Dagster reports success.
func (s *Server) Terminate(ctx context.Context, run string) (bool, error) {
	return s.terminate(ctx, run, "SAFE_TERMINATE")
}

// ForceTerminate marks a run as canceled at once, as the UI's check box does.
func (s *Server) ForceTerminate(ctx context.Context, run string) (bool, error) {
	return s.terminate(ctx, run, "MARK_AS_CANCELED_IMMEDIATELY")
}

// Delete deletes a run.
func (s *Server) Delete(ctx context.Context, run string) error {
	var got struct {
		DeleteRun struct {
			Typename string `json:"__typename"`
		}
	}
	err := s.Query(ctx, `mutation ($run: String!) {deleteRun(runId: $run) {__typename}}`, map[string]any{"run": run},
		&got)
	if err == nil && got.DeleteRun.Typename != "DeletePipelineRunSuccess" {
		err = fmt.Errorf("deleteRun: %s", got.DeleteRun.Typename)
	}
	return err
}

// Backfill launches a backfill of a job over partitions and returns its ID.
func (s *Server) Backfill(ctx context.Context, location, job string, partitions []string) (string, error) {
	var got struct {
		LaunchPartitionBackfill struct {
			Typename   string `json:"__typename"`
			BackfillID string `json:"backfillId"`
			Message    string
		}
	}
	err := s.Query(ctx,
		`mutation ($p: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $p) {__typename ... on `+
			`LaunchBackfillSuccess {backfillId} ... on PythonError {message}}}`,
		map[string]any{"p": map[string]any{
			"selector": map[string]any{"partitionSetName": job + "_partition_set",
				"repositorySelector": map[string]any{"repositoryLocationName": location,
					"repositoryName": "__repository__"}},
			"partitionNames": partitions,
		}}, &got)
	if err == nil && got.LaunchPartitionBackfill.BackfillID == "" {
		err = fmt.Errorf("launchPartitionBackfill: %s %s", got.LaunchPartitionBackfill.Typename,
			got.LaunchPartitionBackfill.Message)
	}
	return got.LaunchPartitionBackfill.BackfillID, err
}

// CancelBackfill asks dagster-daemon to cancel a backfill and its runs.
func (s *Server) CancelBackfill(ctx context.Context, id string) error {
	var got struct {
		CancelPartitionBackfill struct {
			Typename string `json:"__typename"`
			Message  string
		}
	}
	err := s.Query(ctx,
		`mutation ($id: String!) {cancelPartitionBackfill(backfillId: $id) {__typename ... on PythonError {message}}}`,
		map[string]any{"id": id}, &got)
	if err == nil && got.CancelPartitionBackfill.Typename != "CancelBackfillSuccess" {
		err = fmt.Errorf("cancelPartitionBackfill: %s %s", got.CancelPartitionBackfill.Typename,
			got.CancelPartitionBackfill.Message)
	}
	return err
}

func (s *Server) terminate(ctx context.Context, run, policy string) (bool, error) {
	var got struct {
		TerminateRun struct {
			Typename string `json:"__typename"`
			Message  string
		}
	}
	err := s.Query(ctx,
		`mutation ($run: String!, $policy: TerminateRunPolicy) {terminateRun(runId: $run, terminatePolicy: $policy) `+
			`{__typename ... on TerminateRunFailure {message} ... on PythonError {message}}}`,
		map[string]any{"run": run, "policy": policy}, &got)
	if got.TerminateRun.Message != "" {
		err = errors.Join(err, errors.New(got.TerminateRun.Message))
	}
	return got.TerminateRun.Typename == "TerminateRunSuccess", err
}
