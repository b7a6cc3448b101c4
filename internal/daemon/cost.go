package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

// bill is what a run has cost so far, as its tag has it.
type bill struct {
	Amount     float64 `json:"amount,omitempty"`
	Currency   string  `json:"currency,omitempty"`
	AsOf       string  `json:"prices_as_of,omitempty"`
	CPUSeconds float64 `json:"cpu_seconds"`
	GBSeconds  float64 `json:"gb_seconds"`
	Attempts   []int   `json:"attempts"` // the attempts that are included
}

// bill writes what workers have cost onto their runs, each once.
func (d *Daemon) bill(fence storage.Fence) func(context.Context, storage.Run, launcher.Worker, launcher.Cost) error {
	return func(ctx context.Context, r storage.Run, w launcher.Worker, c launcher.Cost) error {
		// another of its workers may just have been billed
		runs, err := d.Store.Runs(ctx, storage.Filter{IDs: []string{r.ID}})
		if err != nil || len(runs) == 0 {
			return err
		}
		var b bill
		if text := runs[0].Bill; text != "" {
			if err := json.Unmarshal([]byte(text), &b); err != nil {
				return fmt.Errorf("tag %s: %w", storage.BillTag, err)
			}
		}
		if slices.Contains(b.Attempts, w.ID.Attempt) {
			return nil
		}
		b.Amount, b.CPUSeconds, b.GBSeconds = b.Amount+c.Amount, b.CPUSeconds+c.CPUSeconds, b.GBSeconds+c.GBSeconds
		b.Attempts = append(b.Attempts, w.ID.Attempt)
		if c.Currency != "" {
			b.Currency, b.AsOf = c.Currency, c.AsOf
		}
		text, err := json.Marshal(b)
		if err != nil {
			return err
		}
		var events []dagster.Event
		tags := map[string]string{storage.BillTag: string(text)}
		if b.Currency != "" {
			cost := fmt.Sprintf("%.4f %s", b.Amount, b.Currency)
			tags[storage.CostTag] = cost
			events = append(events, dagster.NewEngineEvent(runs[0].Run, time.Now(),
				"[Slipway] The run's workers have cost "+cost+" in all.", nil, nil))
		}
		out, err := d.Store.Move(ctx, fence, storage.Transition{Run: r.ID, Tags: tags, Events: events})
		if err == nil && out.Done {
			d.Metrics.Cost(runs[0].Launch.Launcher, c.Currency, c.Amount, c.CPUSeconds, c.GBSeconds)
		}
		return err
	}
}
