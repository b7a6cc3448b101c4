package aci

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/slipway-run/slipway/launcher"
)

// Check implements [launcher.Checker]. It does not test whether the image can be pulled, and
// whether the storage can be reached from inside. A canary does: slipway launchers check
// --from-target.
func (l *Launcher) Check(ctx context.Context) []launcher.Finding {
	if _, err := l.api.credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{l.api.scope}}); err != nil {
		return []launcher.Finding{{What: "no token from Microsoft Entra: " + firstLine(err),
			Fix: "sign in (az login), give the machine a managed identity, or set credential"}}
	}
	out := []launcher.Finding{{OK: true, What: "credential " + l.c.Credential + " gives a token"}}
	if _, err := l.api.list(ctx); err != nil {
		return append(out, launcher.Finding{What: fmt.Sprintf("resource group %s of subscription %s: %v",
			l.c.ResourceGroup, l.c.SubscriptionID, err),
			Fix: "create it, correct resource_group and subscription_id, and give the identity the role of " +
				"docs/launchers/aci.md there"})
	}
	out = append(out, launcher.Finding{OK: true, What: "resource group " + l.c.ResourceGroup + " can be read"},
		l.checkPermissions(ctx))
	for _, location := range l.base.Locations {
		out = append(out, l.checkQuota(ctx, location), l.checkSize(ctx, location))
	}
	return append(out, launcher.Finding{OK: true,
		What: "whether the image is pulled and the storage reached is told by: slipway launchers check --from-target " +
			"NAME"})
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func (l *Launcher) checkPermissions(ctx context.Context) launcher.Finding {
	have, err := l.api.permissions(ctx)
	if err != nil {
		return launcher.Finding{OK: true, What: "permissions could not be read, which is not needed to launch: " +
			firstLine(err)}
	}
	var missing []string
	for _, op := range operations() {
		if op != opPermissions && !allowed(have, op.permission) && !slices.Contains(missing, op.permission) {
			missing = append(missing, op.permission)
		}
	}
	if len(missing) > 0 {
		return launcher.Finding{What: "missing permissions: " + strings.Join(missing, ", "),
			Fix: "assign the role of docs/launchers/aci.md on the resource group, and its part about locations on " +
				"the subscription"}
	}
	return launcher.Finding{OK: true, What: "all permissions are there"}
}

// allowed reports whether some assignments allow an action.
func allowed(have []permission, action string) bool {
	matches := func(pattern string) bool {
		pattern = strings.ReplaceAll(strings.ToLower(pattern), "/", "|") // * matches any text, including /
		ok, _ := path.Match(pattern, strings.ReplaceAll(strings.ToLower(action), "/", "|"))
		return ok
	}
	return slices.ContainsFunc(have, func(p permission) bool {
		return slices.ContainsFunc(p.Actions, matches) && !slices.ContainsFunc(p.NotActions, matches)
	})
}

func (l *Launcher) checkQuota(ctx context.Context, location string) launcher.Finding {
	if err := l.regions.read(ctx, l, location); err != nil {
		return launcher.Finding{What: fmt.Sprintf("quotas of %s: %s", location, firstLine(err)),
			Fix: "correct location, and give the identity Microsoft.ContainerInstance/locations/usages/read on the " +
				"subscription"}
	}
	l.regions.mu.Lock()
	at := *l.regions.of(location)
	l.regions.mu.Unlock()
	f := launcher.Finding{What: fmt.Sprintf("quotas of %s: %d more container groups, %g more cores, %g more spot cores",
		location, at.groups, at.cores, at.spot)}
	cores := at.cores
	if strings.HasPrefix(l.base.Priority, "spot") {
		cores = max(at.spot, cores)
		if l.base.Priority == "spot" {
			cores = at.spot
		}
	}
	if f.OK = at.groups > 0 && cores >= l.base.CPU; !f.OK {
		f.Fix = "delete what is not needed, ask Azure for a higher quota, or add a region to locations"
	}
	return f
}

func (l *Launcher) checkSize(ctx context.Context, location string) launcher.Finding {
	all, err := l.api.capabilities(ctx, location)
	if err != nil {
		return launcher.Finding{OK: true,
			What: fmt.Sprintf("sizes of %s could not be read, which is not needed to launch: %s", location,
				firstLine(err))}
	}
	cpu, memory := 0.0, 0.0
	for _, c := range all {
		if c.Capabilities != nil && strings.EqualFold(val(c.OSType), "linux") && strings.EqualFold(val(c.Gpu), "none") {
			cpu, memory = max(cpu, float64(val(c.Capabilities.MaxCPU))),
				max(memory, float64(val(c.Capabilities.MaxMemoryInGB)))
		}
	}
	f := launcher.Finding{OK: cpu >= l.base.CPU && memory >= l.base.Memory,
		What: fmt.Sprintf("%s offers groups of up to %g processors and %g GB; workers have %g and %g", location, cpu,
			memory, l.base.CPU, l.base.Memory)}
	if !f.OK {
		f.Fix = "lower cpu and memory, or choose another location"
	}
	return f
}

// Role returns a custom role with the permissions of the launcher's calls, in the form that az role
// definition create accepts.
func Role() json.RawMessage {
	var actions []string
	for _, op := range operations() {
		if op != opPermissions && !slices.Contains(actions, op.permission) {
			actions = append(actions, op.permission)
		}
	}
	text, err := json.MarshalIndent(map[string]any{
		"Name": "Slipway run launcher", "Description": "Launches Dagster runs in container groups.", "IsCustom": true,
		"Actions": actions, "NotActions": []string{},
		"AssignableScopes": []string{"/subscriptions/SUBSCRIPTION/resourceGroups/RESOURCE_GROUP"},
	}, "", "  ")
	if err != nil { // texts cannot fail
		panic(err)
	}
	return text
}
