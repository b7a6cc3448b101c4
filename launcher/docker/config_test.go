package docker_test

import (
	"strings"
	"testing"
)

// Settings that cannot work are reported when they are read, with the setting and its place.
func TestBadSettings(t *testing.T) {
	for settings, want := range map[string]string{
		"network: a\nnetworks: [b]": "slipway.yaml:1:10: launchers.docker.config.network: " +
			"set either",
		"image: UPPER case":               "config.image: \"UPPER case\" names no image",
		"pull: sometimes":                 "config.pull: \"sometimes\" is none of",
		"registry: {url: x, username: u}": "config.registry.password: required",
		"container_kwargs: {image: x}": "container_kwargs.image: not allowed here; the " +
			"setting for it is image",
		"container_kwargs: {no_such_option: 1}": "container_kwargs.no_such_option",
		"container_kwargs: {mem_limit: lots}":   "container_kwargs.mem_limit",
		"container_kwargs: {hostname: {env: H}}": "container_kwargs.hostname: a text or a number is " +
			"expected",
		"container_kwargs: {hostname: '${NO_SUCH_VARIABLE}'}": "container_kwargs.hostname: environment variable " +
			"NO_SUCH_VARIABLE is not set",
		"memory: 3 apples":           "config.memory",
		"cpu: many":                  "config.cpu",
		"ulimits: {nofile: a lot}":   "config.ulimits.nofile",
		"mounts: [/only-one]":        "config.mounts",
		"extra_hosts: {db: nowhere}": "config.extra_hosts.db",
		"host: 'ftp://x'":            "config.host",
		"host: 'tcp://127.0.0.1:2376'\ntls: {ca: /no/such/ca}": "config.host",
		"imagee: x": "did you mean image?",
	} {
		if _, err := open(t, settings); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", settings, err, want)
		}
	}
}
