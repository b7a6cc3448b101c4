package aci

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
)

// deployment is a template with its parameters, in the form that ARM accepts.
type deployment struct {
	Properties struct {
		Template struct {
			Parameters map[string]struct {
				DefaultValue any `json:"defaultValue"`
			} `json:"parameters"`
			Resources []map[string]any `json:"resources"`
		} `json:"template"`
		Parameters map[string]struct {
			Value any `json:"value"`
		} `json:"parameters"`
	} `json:"properties"`
}

var parameter = regexp.MustCompile(`^\[parameters\('([^']+)'\)\]$`)

// resolve replaces references to parameters by their values. The only other template function that
// it knows is resourceGroup().location.
func resolve(v any, values map[string]any) (any, *answer) {
	switch t := v.(type) {
	case string:
		if m := parameter.FindStringSubmatch(t); m != nil {
			value, ok := values[m[1]]
			if !ok || value == nil {
				a := wrong(400, "InvalidTemplate",
					"Deployment template validation failed: 'The value for the template parameter '%s' is not "+
						"provided.'", m[1])
				return nil, &a
			}
			return value, nil
		}
		if t == "[resourceGroup().location]" {
			return "westeurope", nil
		}
		if strings.HasPrefix(t, "[") && !strings.HasPrefix(t, "[[") {
			a := wrong(400, "InvalidTemplate", "The emulator does not know the expression '%s'.", t)
			return nil, &a
		}
	case map[string]any:
		for k, item := range t {
			got, a := resolve(item, values)
			if a != nil {
				return nil, a
			}
			t[k] = got
		}
	case []any:
		for i, item := range t {
			got, a := resolve(item, values)
			if a != nil {
				return nil, a
			}
			t[i] = got
		}
	}
	return v, nil
}

// deployTemplate makes the container groups of a template. As with ARM, refusals are in details.
func (e *Emulator) deployTemplate(r *http.Request, c call, body []byte) answer {
	var d deployment
	if a := decode(body, &d); a != nil {
		return *a
	}
	values := map[string]any{}
	for k, p := range d.Properties.Template.Parameters {
		values[k] = p.DefaultValue
	}
	for k, p := range d.Properties.Parameters {
		values[k] = p.Value
	}
	for _, res := range d.Properties.Template.Resources {
		got, a := resolve(res, values)
		if a != nil {
			return *a
		}
		res := got.(map[string]any) //nolint:errcheck,forcetypeassert // a mapping stays one
		kind, _ := res["type"].(string)
		name, _ := res["name"].(string)
		if !strings.EqualFold(kind, "Microsoft.ContainerInstance/containerGroups") {
			return wrong(400, "InvalidTemplate", "The emulator has no resources of type '%s'.", kind)
		}
		text, err := json.Marshal(res)
		if err != nil {
			return wrong(400, "InvalidTemplate", "%v", err)
		}
		one := call{op: "put", sub: c.sub, rg: c.rg, name: name}
		put := e.put(r, one, e.groups[groupKey(c.sub, c.rg, name)], text)
		if p, bad := put.body.(problem); bad {
			return answer{status: put.status,
				body: map[string]any{"error": map[string]any{"code": "DeploymentFailed",
					"message": "At least one resource deployment operation failed.", "details": []problem{p}}}}
		}
	}
	return answer{status: 201, body: map[string]any{"name": c.name,
		"properties": map[string]any{"provisioningState": "Succeeded"}}}
}
