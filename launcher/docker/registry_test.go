package docker_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	registrytypes "github.com/moby/moby/api/types/registry"

	"github.com/slipway-run/slipway/launcher"
)

// A credential helper like Docker's: it reads a registry's address and writes a login, or the
// reason why it has none.
const helper = `#!/bin/sh
read -r server
case $server in
helped.example) echo '{"ServerURL": "helped.example", "Username": "ann", "Secret": "of the helper"}' ;;
token.example) echo '{"ServerURL": "token.example", "Username": "<token>", "Secret": "a token"}' ;;
https://index.docker.io/v1/) echo '{"Username": "ann", "Secret": "of the hub"}' ;;
broken.example) echo 'the keychain is locked'; exit 1 ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
`

// Logins are found where Docker's own clients find them.
func TestLoginsOfDockersConfig(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	auth := base64.StdEncoding.EncodeToString([]byte("ann:of:the file"))
	for _, c := range []struct {
		what, config, image string
		want                registrytypes.AuthConfig // without the address
		fails               string
	}{
		{"nothing", `{}`, "r.example/x:1", registrytypes.AuthConfig{}, ""},
		{"the file", `{"auths": {"https://r.example/v1/": {"auth": "` + auth + `"}, "other.example": {"auth": "eDp5"}}}`, "r.example/x:1", registrytypes.AuthConfig{Username: "ann", Password: "of:the file"}, ""},
		{"the file, of the hub", `{"auths": {"https://index.docker.io/v1/": {"auth": "` + auth + `"}}}`, "team/x:1", registrytypes.AuthConfig{Username: "ann", Password: "of:the file"}, ""},
		{"the file, of another", `{"auths": {"other.example": {"auth": "` + auth + `"}}}`, "r.example/x:1",
			registrytypes.AuthConfig{}, ""},
		{"a token in the file", `{"auths": {"r.example": {"identitytoken": "a token"}}}`, "r.example/x:1",
			registrytypes.AuthConfig{IdentityToken: "a token"}, ""},
		{"the store", `{"credsStore": "test", "auths": {"helped.example": {}}}`, "helped.example/x:1",
			registrytypes.AuthConfig{Username: "ann", Password: "of the helper"}, ""},
		{"the store, of the hub", `{"credsStore": "test"}`, "x:1",
			registrytypes.AuthConfig{Username: "ann", Password: "of the hub"}, ""},
		{"a token in the store", `{"credsStore": "test"}`, "token.example/x:1",
			registrytypes.AuthConfig{IdentityToken: "a token"}, ""},
		{"the file behind a store without it",
			`{"credsStore": "test", "auths": {"r.example": {"auth": "` + auth + `"}}}`, "r.example/x:1",
			registrytypes.AuthConfig{Username: "ann", Password: "of:the file"}, ""},
		{"a helper of one registry", `{"credsStore": "missing", "credHelpers": {"helped.example": "test"}}`,
			"helped.example/x:1", registrytypes.AuthConfig{Username: "ann", Password: "of the helper"}, ""},
		{"a helper that fails", `{"credsStore": "test"}`, "broken.example/x:1", registrytypes.AuthConfig{},
			"the keychain is locked"},
		{"a helper that is missing", `{"credsStore": "missing"}`, "r.example/x:1", registrytypes.AuthConfig{},
			"docker-credential-missing"},
		{"a file that cannot be read", `{"auths": [`, "r.example/x:1", registrytypes.AuthConfig{}, "config.json"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(c.config), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("DOCKER_CONFIG", dir)
		e := newFakeEngine(t)
		e.pull = func(string, string, registrytypes.AuthConfig) string { return "manifest unknown" }
		req := e.request()
		req.Image = c.image
		_, err := launchTold(t, must(t, "{host: '"+e.address+"', network: none}"), req)
		if err == nil || !strings.Contains(err.Error(), "manifest unknown") || !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: Launch = %v, want that the registry was asked, and %q", c.what, err, c.fails)
		}
		if c.fails != "" && !strings.Contains(err.Error(), "without a login") {
			t.Errorf("%s: Launch = %v, want that it says that there was no login", c.what, err)
		}
		e.set(func() {
			if len(e.pulls) != 1 {
				t.Fatalf("%s: %d pulls", c.what, len(e.pulls))
			}
			got := e.pulls[0]
			if got.ServerAddress = ""; got != c.want {
				t.Errorf("%s: the login is %+v, want %+v", c.what, got, c.want)
			}
		})
	}
}

// The login of the settings goes only to the registry of its host, however the registry's address
// is written.
func TestLoginIsForItsHost(t *testing.T) {
	for _, c := range []struct {
		url, image string
		shown      bool
	}{
		{"r.example", "r.example/x:1", true},
		{"https://R.example/v2/", "r.example/x:1", true},
		{"http://r.example:5000", "r.example:5000/team/x:1", true},
		{"r.example", "r.example:5000/x:1", false},
		{"r.example", "other.example/x:1", false},
		{"r.example", "team/x:1", false},
		{"example", "r.example/x:1", false},
		{"docker.io", "x:1", true},
		{"https://index.docker.io/v1/", "team/x:1", true},
		{"registry-1.docker.io", "docker.io/team/x:1", true},
		{"docker.io", "r.example/x:1", false},
	} {
		t.Setenv("DOCKER_CONFIG", t.TempDir())
		e := newFakeEngine(t)
		req := e.request()
		req.Image = c.image
		l := must(t, "{host: '"+e.address+"', network: none, registry: {url: '"+c.url+
			"', username: ann, password: secret}}")
		// the engine's names are longer
		if _, err := launchTold(t, l, req); err != nil && !strings.Contains(err.Error(), "No such image") {
			t.Errorf("%s: Launch = %v", c.image, err)
		}
		e.set(func() {
			if shown := len(e.pulls) > 0 && e.pulls[0].Password == "secret"; len(e.pulls) == 0 || shown != c.shown {
				t.Errorf("login of %s, image %s: the pulls have the logins %+v, want it shown: %v", c.url, c.image,
					e.pulls, c.shown)
			}
		})
	}
}

// Workers get the proxies of Docker's config.json, as from Docker's own clients. Their own
// variables win.
func TestProxiesOfDockersConfig(t *testing.T) {
	dir := t.TempDir()
	config := `{"proxies": {"default": {"httpProxy": "http://ann:secret@proxy:3128", "noProxy": "localhost"}, "tcp://engine:2375": {"httpsProxy": "http://near:3128"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	for settings, want := range map[string][]string{
		"{image: image}": {"http_proxy=[redacted]", "HTTP_PROXY=[redacted]", "no_proxy=localhost",
			"NO_PROXY=localhost"},
		"{image: image, env_vars: [NO_PROXY=mine]}": {"http_proxy=[redacted]",
			"HTTP_PROXY=[redacted]", "no_proxy=localhost", "NO_PROXY=mine"},
		"{image: image, host: 'tcp://engine:2375'}":                              {"https_proxy=http://near:3128", "HTTPS_PROXY=http://near:3128"},
		"{image: image, container_kwargs: {use_config_proxy: false, tty: true}}": nil,
	} {
		previewer, _ := launcher.As[launcher.Previewer](must(t, settings))
		text, err := previewer.Preview(t.Context(), (&fakeEngine{}).request())
		var got struct{ Config struct{ Env []string } }
		if err = errors.Join(err, json.Unmarshal(text, &got)); err != nil || !slices.Equal(got.Config.Env, want) {
			t.Errorf("%s: the environment is %q, %v, want %q", settings, got.Config.Env, err, want)
		}
	}
}
