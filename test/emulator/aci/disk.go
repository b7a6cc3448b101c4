package aci

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"
)

// saved is a group on disk.
type saved struct {
	Sub, RG, Name string
	At            time.Time
	Deploy        int
	View          *arm.ContainerGroup // without secrets
}

func (e *Emulator) file(g *group) string {
	return filepath.Join(e.o.State, "groups", e.boxKey(g, "group")+".json")
}

// save writes a group completely or not at all.
func (e *Emulator) save(g *group) {
	err := os.MkdirAll(filepath.Dir(e.file(g)), 0o700)
	text, jerr := json.Marshal(saved{g.sub, g.rg, g.name, g.at, g.deploy, e.view(g, true)})
	if err = errors.Join(err, jerr); err == nil {
		if err = os.WriteFile(e.file(g)+".new", text, 0o600); err == nil {
			err = os.Rename(e.file(g)+".new", e.file(g))
		}
	}
	if err != nil {
		e.o.Log.Error("a group was not saved", "group", g.name, "err", err)
	}
}

func (e *Emulator) erase(g *group) {
	if err := os.Remove(e.file(g)); err != nil && !errors.Is(err, os.ErrNotExist) {
		e.o.Log.Error("a group's file was not removed", "group", g.name, "err", err)
	}
}

// load finds the groups of an earlier emulator and their containers.
func (e *Emulator) load() error {
	files, err := filepath.Glob(filepath.Join(e.o.State, "groups", "*.json"))
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var s saved
		if err := json.Unmarshal(text, &s); err != nil {
			return err
		}
		e.revive(s)
	}
	return nil
}

// revive makes a group from what was saved. It watches running containers again. A container has
// failed if it has gone or was not started yet, because values that were sent as secret are no
// longer known.
func (e *Emulator) revive(s saved) {
	p := s.View.Properties
	g := &group{sub: s.Sub, rg: s.RG, name: s.Name, at: s.At, deploy: s.Deploy, asked: *s.View,
		provisioning: val(p.ProvisioningState), state: "Pending"}
	if p.InstanceView != nil {
		g.state, g.events = val(p.InstanceView.State), p.InstanceView.Events
	}
	asked := *p
	asked.InstanceView, asked.ProvisioningState = nil, nil
	g.asked.Properties = &asked
	asked.Containers = nil
	for _, c := range p.Containers {
		props := *c.Properties
		b := &box{name: val(c.Name), asked: &props}
		if v := props.InstanceView; v != nil {
			b.current, b.previous, b.events, b.restarts = v.CurrentState, v.PreviousState, v.Events, val(v.RestartCount)
		}
		props.InstanceView = nil
		b.c, _ = e.o.Backend.Find(e.ctx, e.boxKey(g, b.name))
		g.boxes = append(g.boxes, b)
		asked.Containers = append(asked.Containers, &arm.Container{Name: c.Name, Properties: &props})
	}
	g.op = &operation{id: e.nextID(), group: g.id(), began: g.at, status: "Succeeded"}
	e.ops[g.op.id] = g.op
	e.groups[g.key()] = g
	e.begin(g, func(ctx context.Context, g *group) {
		if g.finished() {
			<-ctx.Done()
			return
		}
		e.change(ctx, g, func() {
			for _, b := range g.boxes {
				if b.c == nil {
					now, code := time.Now().UTC(), int32(255)
					event(&b.events, "Killing", "Normal",
						"The emulator was started again, and has no such container any more")
					b.current = &arm.ContainerState{State: to.Ptr("Terminated"), StartTime: &now, FinishTime: &now,
						ExitCode: &code, DetailStatus: to.Ptr("Error")}
					g.state, g.lives = "Failed", false
				}
			}
		})
		if strings.EqualFold(g.state, "Failed") {
			return
		}
		e.runAll(ctx, g, g.boxes)
	})
}
