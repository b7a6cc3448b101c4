package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher/aci"
	emulator "github.com/slipway-run/slipway/test/emulator/aci"
)

// callsBound is how many requests to Azure one run may cost, not counting a GET for each check of
// its health.
const callsBound = 7

// azure measures many runs in one resource group of the Azure emulator with a small quota.
func azure(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench azure", flag.ContinueOnError)
	n := flags.Int("n", 500, "how many runs are queued")
	quota := flags.Int("quota", 60, "how many container groups there may be")
	kind := flags.String("storage", "postgres", "postgres, as containers need it, or sqlite")
	seconds := flags.Float64("seconds", 2, "how long a run takes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, _, err := built(ctx, "slipway-worker")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if !slices.Contains(storages(), *kind) {
		return fmt.Errorf("there is no %s here: hack/with-postgres go run ./test/bench azure starts one", *kind)
	}
	return azureOn(ctx, dir, *kind, *n, *quota, *seconds)
}

func azureOn(ctx context.Context, dir, kind string, n, quota int, seconds float64) error {
	settings, err := emulator.Preset("fast")
	if err != nil {
		return err
	}
	settings.Quota.Groups = quota
	e, err := emulator.New(emulator.Options{Backend: &emulator.Processes{Path: dir + ":" + os.Getenv("PATH")},
		State: filepath.Join(dir, kind), Settings: settings})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: e, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }() // until Close
	defer func() { _ = errors.Join(server.Close(), e.Close()) }()
	w, err := newWorld(ctx, dir, kind, parkedYAML, fmt.Sprintf(`
queue: {max_concurrent_runs: -1}
default: azure
allow_secrets_in_argv: true
launchers:
  azure:
    kind: aci
    config: {resource_group: bench, subscription_id: 11111111-2222-3333-4444-555555555555, image: "bench:1", cpu: 0.1, memory: 0.1, endpoint: "http://%s", allow_http: true, credential: token, token: t}
`, l.Addr()))
	if err != nil {
		return err
	}
	var ids []string
	queued := map[string]time.Time{}
	config := dagster.Encode(map[string]any{
		"steps": map[string]any{"only": map[string]any{"command": []string{"sleep", fmt.Sprint(seconds)}}}})
	began := time.Now()
	err = w.slipway(ctx, aci.Kind(), func(ctx context.Context) error {
		for range n {
			run := dagster.NewCommandRun(uuid.NewString(), "command", config, nil)
			if err := w.writer.EnqueueRun(run); err != nil {
				return err
			}
			ids, queued[run.ID] = append(ids, run.ID), time.Now()
		}
		for _, id := range ids {
			r, err := w.await(ctx, id, func(r storage.Run) bool { return r.Status.Finished() })
			if err != nil {
				return err
			}
			if r.Status != dagster.Success {
				return fmt.Errorf("run %s is %s", id, r.Status)
			}
		}
		return nil
	})
	took := time.Since(began)
	if err = errors.Join(err, w.close()); err != nil {
		return err
	}
	calls, accepted := map[string]int{}, map[string]time.Time{}
	for _, r := range e.Journal() {
		calls[r.Operation]++
		if r.Operation == "put" && r.Status < 300 {
			accepted[r.Group] = r.At
		}
	}
	var waits []time.Duration // of the runs for which there was room at once
	for _, id := range ids {
		for name, at := range accepted {
			if len(name) > 48 && name[12:48] == id {
				waits = append(waits, at.Sub(queued[id]))
			}
		}
	}
	slices.Sort(waits)
	first := waits[:min(quota, len(waits))]
	fmt.Printf("%s: %d runs of %g s through %d container groups took %.0f s, %.0f runs a minute; QUEUED to accepted, "+
		"of the first %d: p50 %d ms, p99 %d ms\n",
		kind, n, seconds, quota, took.Seconds(), float64(n)/took.Minutes(), len(first),
		first[len(first)/2].Milliseconds(), first[(len(first)*99+99)/100-1].Milliseconds())
	others := 0
	for _, op := range slices.Sorted(maps.Keys(calls)) {
		fmt.Printf("%s:   %-8s %6d, %.2f a run\n", kind, op, calls[op], float64(calls[op])/float64(n))
		if op != "get" {
			others += calls[op]
		}
	}
	// Two GETs are not health checks: the one before the PUT and the one before the removal.
	perRun := float64(others)/float64(n) + 2
	looks := math.Max(0, float64(calls["get"])/float64(n)-2)
	fmt.Printf("%s: %.2f requests a run, bound %d, and %.2f looks at its health\n", kind, perRun, callsBound, looks)
	if perRun > callsBound {
		return errors.New("the bound was missed")
	}
	return nil
}
