package launcher

import (
	"regexp"
	"slices"
)

// MaxArgument is the most bytes that Linux takes for one argument or environment variable (MAX_ARG_STRLEN).
const MaxArgument = 128<<10 - 1

// Redacted stands where the value of a secret would.
const Redacted = "[redacted]"

var secretName = regexp.MustCompile(`(?i)PASSWORD|SECRET|TOKEN|KEY`)

// SecretName says by a variable's name whether its value does not show.
func SecretName(name string) bool { return secretName.MatchString(name) }

var (
	// secretText is a text that holds a secret: a URL with a password, or an assignment such as
	// DB_PASSWORD=x or AccountKey=x;.
	secretText = regexp.MustCompile(`://[^\s@]*:[^\s]*@|(?i)(?:PASSWORD|PASSWD|PWD|SECRET|TOKEN|KEY|SIG)[\w-]*=[^\s;&]`)
	// namesOfSecrets are settings of Dagster and Kubernetes that name a secret, and do not hold it.
	namesOfSecrets = []string{"key", "secrets", "secrets_tag", "env_secrets", "image_pull_secrets", "postgres_password_secret"}
)

// HoldsSecret reports whether a tree of settings (maps, lists and plain values, as JSON has them)
// seems to hold a secret: a text whose name is that of a secret, in an entry or beside it as name
// and value, or one that looks like it. A mapping such as {env: NAME} holds none.
func HoldsSecret(tree any) bool {
	switch v := tree.(type) {
	case map[string]any:
		if _, ok := v["env"].(string); ok && len(v) == 1 {
			return false
		}
		name, _ := v["name"].(string)
		for key, item := range v {
			text, isText := item.(string)
			secret := SecretName(key) && !slices.Contains(namesOfSecrets, key) || key == "value" && SecretName(name)
			if isText && text != "" && secret || HoldsSecret(item) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, HoldsSecret)
	case string:
		return secretText.MatchString(v)
	}
	return false
}
