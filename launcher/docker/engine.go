package docker

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/slipway-run/slipway/config"
)

type sshConfig struct {
	Key        string `config:"key" help:"File with the private key. Default: the keys of the ssh agent."`
	KnownHosts string `config:"known_hosts" help:"File with the engine host's key. Default: ~/.ssh/known_hosts."`
}

// connect returns the client of an engine. It sends nothing.
func connect(c Config, env config.Lookup, log *slog.Logger) (*client.Client, error) {
	host := cmp.Or(c.Host, variableOf(env, client.EnvOverrideHost), client.DefaultDockerHost)
	u, err := url.Parse(host)
	if err != nil {
		return nil, err
	}
	options := []client.Opt{client.WithUserAgent("slipway")}
	switch u.Scheme {
	case "unix", "tcp", "http", "https":
		if c.TLS != (tlsConfig{}) {
			options = append(options, client.WithTLSClientConfig(c.TLS.CA, c.TLS.Cert, c.TLS.Key))
		} else if u.Scheme == "tcp" || u.Scheme == "https" {
			fromEnv, err := tlsFromEnv(env, log)
			if err != nil {
				return nil, fmt.Errorf("DOCKER_CERT_PATH: %w", err)
			}
			options = append(options, fromEnv)
		}
		options = append(options, client.WithHost(host))
	case "ssh":
		dial, err := sshDialer(u, c.SSH)
		if err != nil {
			return nil, err
		}
		options = append(options, client.WithHost("tcp://"+u.Host), client.WithDialContext(dial))
	default:
		return nil,
			fmt.Errorf("%q is not an address of an engine: write unix:///path, tcp://host:port or ssh://user@host",
				host)
	}
	return client.New(options...)
}

// Host implements [launcher.Local]. It returns the engine's ID, so that two daemons that reach one
// engine by different addresses get the same name. An engine without a lasting ID is named by its
// machine and the folder of its containers. Podman's is such an engine: it makes a new ID for each
// answer (4.9, pkg/api/handlers/compat/info.go).
func (l *Launcher) Host(ctx context.Context) (string, error) {
	info, err := l.info(ctx)
	// the first answer, or another engine
	if last, _ := l.engineID.Load().(string); err == nil && info.ID != "" && info.ID != last {
		last = info.ID
		if info, err = l.info(ctx); info.ID != last {
			info.ID = ""
		}
	}
	switch {
	// from a proxy that passes only some requests
	case cerrdefs.IsPermissionDenied(err), cerrdefs.IsUnauthorized(err), cerrdefs.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", unclear(err)
	case info.ID != "":
		l.engineID.Store(info.ID)
		return info.ID, nil
	case info.Name != "":
		return strings.Join(strings.Fields(info.Name+":"+info.DockerRootDir), "_"), nil
	}
	return "", nil
}

func (l *Launcher) info(ctx context.Context) (system.Info, error) {
	got, err := l.engine.Info(ctx, client.InfoOptions{})
	return got.Info, err
}

// tlsFromEnv reads DOCKER_CERT_PATH and DOCKER_TLS_VERIFY as docker-py 7.2 does
// (docker.utils.kwargs_from_env). Either variable asks for TLS with the files of the folder. The
// engine's certificate is checked only if DOCKER_TLS_VERIFY is not empty. tlsFromEnv returns nil if
// neither variable is set.
func tlsFromEnv(env config.Lookup, log *slog.Logger) (client.Opt, error) {
	dir, verify := variableOf(env, client.EnvOverrideCertPath), variableOf(env, client.EnvTLSVerify) != ""
	if dir == "" && !verify {
		return nil, nil
	}
	if dir == "" {
		dir = filepath.Join(variableOf(env, "HOME"), ".docker")
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	with := &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: !verify, //nolint:gosec // as the environment says
	}
	if verify {
		file := filepath.Join(dir, "ca.pem")
		ca, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if !with.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s holds no certificate", file)
		}
	} else {
		log.Warn("docker: the engine's certificate is not checked; set DOCKER_TLS_VERIFY=1")
	}
	return client.WithHTTPClient(&http.Client{Transport: &http.Transport{TLSClientConfig: with},
		CheckRedirect: client.CheckRedirect}), nil
}

// variableOf returns the value of an environment variable, or "" if it is not set.
func variableOf(env config.Lookup, name string) string {
	if env == nil {
		return ""
	}
	value, _ := env(name)
	return value
}

// sshDialer connects to the engine's socket on another machine, with one ssh connection for each
// stream.
func sshDialer(u *url.URL, c *sshConfig) (func(ctx context.Context, _, _ string) (net.Conn, error), error) {
	if c == nil {
		c = &sshConfig{}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	known := c.KnownHosts
	if known == "" {
		known = filepath.Join(home, ".ssh", "known_hosts")
	}
	hostKey, err := knownhosts.New(known)
	if err != nil {
		return nil, fmt.Errorf("ssh.known_hosts: %w", err)
	}
	auth, err := sshAuth(c.Key)
	if err != nil {
		return nil, err
	}
	address, socket := u.Host, u.Path
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "22")
	}
	if socket == "" || socket == "/" {
		socket = "/var/run/docker.sock"
	}
	settings := &ssh.ClientConfig{User: u.User.Username(), Auth: []ssh.AuthMethod{auth}, HostKeyCallback: hostKey}
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		tcp, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		conn, channels, requests, err := ssh.NewClientConn(tcp, address, settings)
		if err != nil {
			return nil, errors.Join(err, tcp.Close())
		}
		c := ssh.NewClient(conn, channels, requests)
		stream, err := c.DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("the engine's socket %s there: %w", socket, err), c.Close())
		}
		return overSSH{stream, c}, nil
	}, nil
}

// overSSH is a stream that closes its ssh connection when it is closed.
type overSSH struct {
	net.Conn
	client *ssh.Client
}

func (c overSSH) Close() error { return errors.Join(c.Conn.Close(), c.client.Close()) }

func sshAuth(key string) (ssh.AuthMethod, error) {
	if key != "" {
		text, err := os.ReadFile(key)
		if err != nil {
			return nil, fmt.Errorf("ssh.key: %w", err)
		}
		signer, err := ssh.ParsePrivateKey(text)
		if err != nil {
			return nil, fmt.Errorf("ssh.key: %s: %w", key, err)
		}
		return ssh.PublicKeys(signer), nil
	}
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return nil, errors.New("ssh.key: not set, and there is no ssh agent (SSH_AUTH_SOCK)")
	}
	return ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return nil, err
		}
		return agent.NewClient(conn).Signers()
	}), nil
}
