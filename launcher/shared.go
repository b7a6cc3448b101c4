package launcher

import (
	"regexp"
	"slices"
)

// MaxArgument is the maximum length in bytes of one argument or environment variable on Linux
// (MAX_ARG_STRLEN).
const MaxArgument = 128<<10 - 1

// Redacted replaces the value of a secret.
const Redacted = "[redacted]"

var secretName = regexp.MustCompile(`(?i)PASSWORD|SECRET|TOKEN|KEY`)

// SecretName reports whether a variable with this name holds a secret, so that its value is not
// shown.
func SecretName(name string) bool { return secretName.MatchString(name) }

var (
	// secretText matches a text that holds a secret: a URL with a password, or an assignment such
	// as DB_PASSWORD=x or AccountKey=x;.
	secretText = regexp.MustCompile(`://[^\s@]*:[^\s]*@|(?i)(?:PASSWORD|PASSWD|PWD|SECRET|TOKEN|KEY|SIG)[\w-]*=[^\s;&]`)
	// namesOfSecrets are settings of Dagster and Kubernetes that hold only the name of a secret.
	namesOfSecrets = []string{"key", "secrets", "secrets_tag", "env_secrets", "image_pull_secrets",
		"postgres_password_secret"}
)

// HoldsSecret reports whether a tree of settings (maps, lists and plain values, as in JSON) seems
// to hold a secret. That is a text that looks like one, or a text with the name of a secret. The
// name is the text's key, or the member name beside its member value. A mapping such as {env: NAME}
// holds none.
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
