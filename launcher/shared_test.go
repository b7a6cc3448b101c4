package launcher_test

import (
	"encoding/json"
	"testing"

	"github.com/slipway-run/slipway/launcher"
)

func TestHoldsSecret(t *testing.T) {
	for tree, want := range map[string]bool{
		`{"secret_key": "x"}`:                 true,
		`{"a": [{"Password": "x"}]}`:          true,
		`{"password": {"env": "X"}}`:          false,
		`{"password": ""}`:                    false,
		`["DB_PASSWORD=x"]`:                   true,
		`["DB_PASSWORD", "TZ=UTC"]`:           false,
		`{"name": "API_TOKEN", "value": "x"}`: true,
		`{"name": "API_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}}`: false,
		`{"url": "redis://:x@host/0"}`:                            true,
		`{"url": "https://host:8080/a@b"}`:                        true, // looks like a password
		`{"url": "https://me@host/"}`:                             false,
		`{"dsn": "AccountName=a;AccountKey=x;"}`:                  true,
		`{"url": "https://a.blob.core.windows.net/c?sv=1&sig=x"}`: true,
		`{"postgres_password_secret": "s", "env_secrets": ["s"], "image_pull_secrets": [{"name": "s"}]}`: false,
		`{"bucket": "logs", "prefix": "a/b", "n": 5, "on": true, "none": null}`:                          false,
	} {
		var v any
		if err := json.Unmarshal([]byte(tree), &v); err != nil {
			t.Fatal(tree, err)
		}
		if got := launcher.HoldsSecret(v); got != want {
			t.Errorf("HoldsSecret(%s) = %v, want %v", tree, got, want)
		}
	}
}
