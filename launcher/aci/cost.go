package aci

import (
	"context"
	"fmt"
	"time"

	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"

	"github.com/slipway-run/slipway/launcher"
)

type price struct {
	CPUHour     string `config:"cpu_hour" required:"true" help:"Price of one processor for an hour."`
	GBHour      string `config:"gb_hour" required:"true" help:"Price of one GB of memory for an hour."`
	SpotCPUHour string `config:"spot_cpu_hour" help:"Price of one spot processor for an hour. Default: unknown."`
	SpotGBHour  string `config:"spot_gb_hour" help:"Price of one GB of spot memory for an hour. Default: unknown."`
}

// rates are prices as numbers. Zero means unknown.
type rates struct{ cpu, gb, spotCPU, spotGB float64 }

// defaultPricesAsOf is the date at which the Retail Prices API returned the default prices, for
// eastus and Linux.
const defaultPricesAsOf = "2026-08-27"

// priceTable parses the prices.
func priceTable(c Config) (map[string]rates, error) {
	if len(c.Prices) == 0 {
		return map[string]rates{"eastus": {cpu: 0.0405, gb: 0.00445}}, nil
	}
	if _, err := time.Parse(time.DateOnly, c.PricesAsOf); err != nil {
		return nil, fmt.Errorf("prices_as_of: the date of the prices is expected, as %s", defaultPricesAsOf)
	}
	out := map[string]rates{}
	for location, p := range c.Prices {
		var r rates
		for _, at := range []struct {
			name, text string
			to         *float64
		}{{"cpu_hour", p.CPUHour, &r.cpu}, {"gb_hour", p.GBHour, &r.gb}, {"spot_cpu_hour", p.SpotCPUHour, &r.spotCPU},
			{"spot_gb_hour", p.SpotGBHour, &r.spotGB}} {
			if at.text == "" {
				continue
			}
			var err error
			if *at.to, err = positive(at.text); err != nil {
				return nil, fmt.Errorf("%s.%s: %w", location, at.name, err)
			}
		}
		out[plain(location)] = r
	}
	return out, nil
}

// Cost implements [launcher.Meter]. Azure bills a group from its first pull until it is stopped or
// has ended.
func (l *Launcher) Cost(ctx context.Context, h launcher.Handle) (launcher.Cost, error) {
	name, err := l.name(h)
	if err != nil {
		return launcher.Cost{}, err
	}
	health, err := l.look(ctx, name, false)
	if err != nil {
		return launcher.Cost{}, err
	}
	w := l.workers.of(name)
	l.workers.mu.Lock()
	g := w.group
	l.workers.mu.Unlock()
	if g == nil {
		return launcher.Cost{}, fmt.Errorf("%w: container group %s", launcher.ErrNotFound, name)
	}
	return l.cost(g, health, time.Now()), nil
}

func (l *Launcher) cost(g *arm.ContainerGroup, h launcher.Health, now time.Time) launcher.Cost {
	c := containerOf(g)
	begin, end := h.Started, h.Ended
	if c.InstanceView != nil {
		if e := happened(c.InstanceView.Events, "Pulling"); e != nil &&
			(begin.IsZero() || val(e.FirstTimestamp).Before(begin)) {
			begin = val(e.FirstTimestamp)
		}
	}
	if end.IsZero() {
		end = now
	}
	if begin.IsZero() || end.Before(begin) || c.Resources == nil || c.Resources.Requests == nil {
		return launcher.Cost{}
	}
	took := end.Sub(begin).Seconds()
	out := launcher.Cost{CPUSeconds: took * val(c.Resources.Requests.CPU),
		GBSeconds: took * val(c.Resources.Requests.MemoryInGB)}
	r, ok := l.prices[plain(val(g.Location))]
	cpu, gb := r.cpu, r.gb
	if val(g.Properties.Priority) == arm.ContainerGroupPrioritySpot {
		cpu, gb = r.spotCPU, r.spotGB
	}
	if !ok || cpu == 0 || gb == 0 {
		return out
	}
	out.Amount, out.Currency, out.AsOf = (out.CPUSeconds*cpu+out.GBSeconds*gb)/3600, l.c.Currency, l.c.PricesAsOf
	if out.AsOf == "" {
		out.AsOf = defaultPricesAsOf
	}
	return out
}
