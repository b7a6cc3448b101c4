package instance

import (
	"maps"
	"strings"

	"github.com/slipway-run/slipway/launcher"
)

// RefHasSecret reports whether the InstanceRef seems to hold a secret in plain text, so that no
// process list, container or Job may show the ref. If a setting is unknown it returns true: any
// text in the config of a class that is not Dagster's may be secret.
func (in *Instance) RefHasSecret() bool {
	rest := maps.Clone(in.tree)
	for _, key := range []string{"run_queue", "concurrency"} { // have keys of tags, and no secret
		delete(rest, key)
	}
	storage, _ := rest["storage"].(map[string]any)
	postgres, _ := storage["postgres"].(map[string]any)
	if url, _ := postgres["postgres_url"].(string); strings.Contains(userOf(url), ":") {
		return true
	}
	for _, section := range rest {
		if c := classOf(section); c != nil && foreign(c) && holdsText(c["config"]) {
			return true
		}
	}
	return launcher.HoldsSecret(rest)
}

// userOf returns the part user:password of an address, before its host. It works also for addresses
// that URL parsers reject.
func userOf(url string) string {
	if _, rest, ok := strings.Cut(url, "://"); ok {
		url = rest
	}
	return url[:max(0, strings.LastIndexByte(url, '@'))]
}

// classOf returns the section that names a class: section itself or its key custom. It returns nil
// if neither does.
func classOf(section any) map[string]any {
	c, _ := section.(map[string]any)
	if custom, ok := c["custom"].(map[string]any); ok {
		c = custom
	}
	if c["module"] == nil {
		return nil
	}
	return c
}

func foreign(class map[string]any) bool {
	module, _ := class["module"].(string)
	first, _, _ := strings.Cut(module, ".")
	return first != "dagster" && !strings.HasPrefix(first, "dagster_")
}

// holdsText reports whether a tree contains a text, except in {env: NAME}.
func holdsText(tree any) bool {
	switch v := tree.(type) {
	case map[string]any:
		if _, ok := v["env"].(string); ok && len(v) == 1 {
			return false
		}
		for _, item := range v {
			if holdsText(item) {
				return true
			}
		}
	case []any:
		for _, item := range v {
			if holdsText(item) {
				return true
			}
		}
	case string:
		return v != ""
	}
	return false
}
