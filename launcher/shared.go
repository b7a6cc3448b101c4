package launcher

import "regexp"

// MaxArgument is the most bytes that Linux takes for one argument or environment variable (MAX_ARG_STRLEN).
const MaxArgument = 128<<10 - 1

// Redacted stands where the value of a secret would.
const Redacted = "[redacted]"

var secretName = regexp.MustCompile(`(?i)PASSWORD|SECRET|TOKEN|KEY`)

// SecretName says by a variable's name whether its value does not show.
func SecretName(name string) bool { return secretName.MatchString(name) }
