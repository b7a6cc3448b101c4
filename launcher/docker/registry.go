package docker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/distribution/reference"
	registrytypes "github.com/moby/moby/api/types/registry"

	"github.com/slipway-run/slipway/config"
)

const (
	dockerHub    = "docker.io" // in names of images
	dockerHubKey = "https://index.docker.io/v1/"
)

// registryHost returns the host of a registry's address, which may be a URL, in the form that
// images use.
func registryHost(address string) string {
	_, rest, found := strings.Cut(address, "://")
	if !found {
		rest = address
	}
	host, _, _ := strings.Cut(rest, "/")
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io", "":
		return dockerHub
	}
	return host
}

// imageHost returns the host of the registry that an image comes from.
func imageHost(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil { // it was checked before
		return ""
	}
	return strings.ToLower(reference.Domain(named))
}

// loginFor returns r if the image comes from its registry, else an empty one. So a registry never
// sees the login of another.
func loginFor(image string, r *registry) registry {
	if r == nil || registryHost(r.URL) != imageHost(image) {
		return registry{}
	}
	return *r
}

// login returns the login for a pull: that of the settings, else that of Docker's config.json, else
// an empty one. The file is read for each try, because tokens expire and people log in.
func (p *puller) login(ctx context.Context, k pullKey) (registrytypes.AuthConfig, error) {
	if r := k.login; r != (registry{}) {
		return registrytypes.AuthConfig{Username: r.Username, Password: r.Password, ServerAddress: r.URL}, nil
	}
	c, err := readClientConfig(p.env)
	if err != nil {
		return registrytypes.AuthConfig{}, err
	}
	return c.login(ctx, imageHost(k.image))
}

// clientConfig is the part of the config.json of Docker's clients that Slipway reads.
type clientConfig struct {
	Auths map[string]struct {
		Username, Password, Auth, IdentityToken, RegistryToken string
	} `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
	Proxies     map[string]struct {
		HTTPProxy, HTTPSProxy, FTPProxy, NoProxy string
	} `json:"proxies"`
}

// readClientConfig reads config.json in the folder DOCKER_CONFIG, or in ~/.docker. If there is no
// file, the result is empty.
func readClientConfig(env config.Lookup) (clientConfig, error) {
	var c clientConfig
	dir := variableOf(env, "DOCKER_CONFIG")
	if home := variableOf(env, "HOME"); dir == "" && home != "" {
		dir = filepath.Join(home, ".docker")
	}
	if dir == "" {
		return c, nil
	}
	file := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// login returns the login of a registry as Docker's clients find it: from the credential helper of
// this registry or of all registries, else from the file itself.
func (c clientConfig) login(ctx context.Context, host string) (registrytypes.AuthConfig, error) {
	helper := c.CredsStore
	for address, name := range c.CredHelpers {
		if registryHost(address) == host {
			helper = name
		}
	}
	if helper != "" {
		if got, err := askHelper(ctx, helper, host); err != nil || got != (registrytypes.AuthConfig{}) {
			return got, err
		}
	}
	for address, a := range c.Auths {
		if registryHost(address) != host {
			continue
		}
		out := registrytypes.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken,
			RegistryToken: a.RegistryToken, ServerAddress: address}
		if a.Auth != "" {
			text, err := base64.StdEncoding.DecodeString(a.Auth)
			if err != nil {
				return registrytypes.AuthConfig{},
					fmt.Errorf("config.json: auths.%s.auth is not base64; log in again with docker login %s", address,
						host)
			}
			out.Username, out.Password, _ = strings.Cut(strings.Trim(string(text), "\x00"), ":")
		}
		if out.Username+out.IdentityToken+out.RegistryToken != "" { // logins that a helper keeps have an empty entry
			return out, nil
		}
	}
	return registrytypes.AuthConfig{}, nil
}

// helperTimeout is the timeout of a credential helper, which may ask a cloud for a token.
const helperTimeout = 30 * time.Second

// askHelper runs the program docker-credential-NAME, which reads a registry's address and writes a
// login. The login is empty if the program does not have one.
func askHelper(ctx context.Context, name, host string) (registrytypes.AuthConfig, error) {
	var none registrytypes.AuthConfig
	if strings.ContainsRune(name, filepath.Separator) {
		return none, fmt.Errorf("config.json: %q is not the name of a credential helper", name)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	server := host
	if host == dockerHub {
		server = dockerHubKey
	}
	cmd := exec.CommandContext(ctx, "docker-credential-"+name, "get")
	cmd.Stdin, cmd.WaitDelay = strings.NewReader(server), time.Second
	out, err := cmd.Output()
	if err != nil && strings.Contains(string(out), "credentials not found") {
		return none, nil
	}
	if err != nil { // then its standard output is the reason, and contains no login
		return none, fmt.Errorf("docker-credential-%s get (for %s): %w: %.300s", name, server, err,
			strings.TrimSpace(string(out)))
	}
	var got struct{ Username, Secret string }
	if json.Unmarshal(out, &got) != nil || got.Secret == "" {
		return none, fmt.Errorf("docker-credential-%s get (for %s): its answer is not a login", name, server)
	}
	if got.Username == "<token>" {
		return registrytypes.AuthConfig{IdentityToken: got.Secret, ServerAddress: server}, nil
	}
	return registrytypes.AuthConfig{Username: got.Username, Password: got.Secret, ServerAddress: server}, nil
}

// proxies returns the variables that Docker's clients set in containers, from the section proxies
// of config.json. docker-py 7.2: docker.utils.proxy.
func (l *Launcher) proxies() []variable {
	c, err := readClientConfig(l.env)
	if err != nil {
		l.log.Warn("docker: workers get no proxies from Docker's settings", "err", err)
		return nil
	}
	p, ok := c.Proxies[l.engine.DaemonHost()]
	if !ok {
		p = c.Proxies["default"]
	}
	var out []variable
	for _, v := range [][2]string{{"http_proxy", p.HTTPProxy}, {"https_proxy", p.HTTPSProxy}, {"ftp_proxy", p.FTPProxy},
		{"no_proxy", p.NoProxy}} {
		if v[1] != "" {
			secret := strings.Contains(v[1], "@") // the URL contains a login
			out = append(out, variable{v[0] + "=" + v[1], secret}, variable{strings.ToUpper(v[0]) + "=" + v[1], secret})
		}
	}
	return out
}
