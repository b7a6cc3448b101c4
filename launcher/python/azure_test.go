//go:build real

package python_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/emulator/aci"
	"github.com/slipway-run/slipway/test/testenv"
)

// azure is the edge of Azure: a proxy that answers for Azure's hosts, with the emulator behind it.
type azure struct {
	t        *testing.T
	cert     tls.Certificate
	emulator *aci.Emulator
}

// scripted runs a script instead of each container's command.
type scripted struct {
	aci.Processes
	script atomic.Value
}

func (s *scripted) Start(ctx context.Context, spec aci.Spec) (aci.Container, error) {
	spec.Command = []string{"sh", "-c", s.script.Load().(string)} //nolint:errcheck,forcetypeassert // the test sets it
	return s.Processes.Start(ctx, spec)
}

// newAzure starts an azure and returns the variables that make a program use it.
func newAzure(t *testing.T, backend aci.Backend) (*azure, []string) {
	t.Helper()
	settings, err := aci.Preset("fast")
	if err != nil {
		t.Fatal(err)
	}
	e, err := aci.New(aci.Options{Backend: backend, State: t.TempDir(), Settings: settings, Token: "a token"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	caCert, caKey := certificate(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	cert, key := certificate(t,
		&x509.Certificate{DNSNames: []string{"management.azure.com", "login.microsoftonline.com"},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, caCert, caKey)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caCert.Raw}), 0o600); err !=
		nil {
		t.Fatal(err)
	}
	a := &azure{t: t, cert: tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, emulator: e}
	proxy := httptest.NewServer(http.HandlerFunc(a.connect))
	t.Cleanup(proxy.Close)
	return a, []string{
		"HTTPS_PROXY: " + proxy.URL, "REQUESTS_CA_BUNDLE: " + ca, "NO_PROXY: ''",
		"AZURE_TENANT_ID: 00000000-0000-0000-0000-00000000000a", "AZURE_CLIENT_ID: c", "AZURE_CLIENT_SECRET: s",
	}
}

// certificate returns a certificate that is valid for an hour. Without a parent it signs itself.
func certificate(t *testing.T, c, parent *x509.Certificate,
	by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, by = c, key
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()),
		pkix.Name{CommonName: fmt.Sprintf("a test, authority %v", c.IsCA)}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err == nil {
		c, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

// connect speaks TLS as the host that a CONNECT names.
func (a *azure) connect(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil || r.Method != http.MethodConnect {
		a.t.Errorf("the proxy was asked %s %s", r.Method, r.Host)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		a.t.Error(err)
		return
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		a.t.Error(err)
	}
	tc := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{a.cert}, MinVersion: tls.VersionTLS12})
	defer func() { _ = tc.Close() }() // the client hangs up
	for in := bufio.NewReader(tc); ; {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		rec := httptest.NewRecorder()
		a.answer(rec, req, host)
		resp := rec.Result()
		resp.ContentLength = int64(rec.Body.Len())
		if err := resp.Write(tc); err != nil {
			return
		}
	}
}

func (a *azure) answer(w http.ResponseWriter, r *http.Request, host string) {
	reply := func(code int, v any) { testenv.Reply(w, code, v) }
	if host == "login.microsoftonline.com" {
		at := "https://" + host + "/00000000-0000-0000-0000-00000000000a"
		if strings.HasSuffix(r.URL.Path, "/token") {
			reply(200, map[string]any{"token_type": "Bearer", "expires_in": 3600, "access_token": "a token"})
			return
		}
		reply(200, map[string]any{"token_endpoint": at + "/oauth2/v2.0/token",
			"authorization_endpoint": at + "/oauth2/v2.0/authorize", "issuer": at + "/v2.0",
			"tenant_discovery_endpoint": at + "/v2.0/.well-known/openid-configuration"})
		return
	}
	a.emulator.ServeHTTP(w, r)
}

// A launcher of the kind that guides show works unchanged on the emulator, with Azure's real SDK
// for Python.
func TestAzureLauncher(t *testing.T) {
	h := newHost(t)
	others(t)
	containers := &scripted{}
	cloud, env := newAzure(t, containers)
	h.env = append(env, "DAGSTER_AZURE_RG: my-group")
	l, err := h.open("azure_launcher", "AzureContainerInstanceRunLauncher",
		`{resource_group: {env: DAGSTER_AZURE_RG}, subscription_id: 11111111-2222-3333-4444-555555555555, image: `+
			`"myregistry.azurecr.io/dagster:1", cpu: 2.0, memory: 4.0, environment_variables: {DAGSTER_HOME: /opt}}`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := launcher.Close(l); err != nil {
			t.Error(err)
		}
	})
	req := h.starting(0)
	launch := func(script string) launcher.Handle {
		t.Helper()
		containers.script.Store(script)
		got, err := l.Launch(t.Context(), req)
		if err != nil {
			t.Fatalf("Launch = %v\n%s", err, h.log.String())
		}
		return got.Handle
	}
	becomes := func(handle launcher.Handle, want launcher.Status) {
		t.Helper()
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			got, err := l.Health(t.Context(), handle)
			return err == nil && got.Status == want, fmt.Sprintf("Health = %+v, %v, want %s", got, err, want)
		})
	}
	handle := launch("sleep 1000")
	becomes(handle, launcher.Running)
	if names := cloud.emulator.Names(); len(names) != 1 || names[0] != "dagster-run-"+req.ID.Run {
		t.Errorf("groups %v", names)
	}
	state := httptest.NewRecorder()
	cloud.emulator.ServeHTTP(state, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/_emulator/state",
		nil))
	text := strings.Join(strings.Fields(state.Body.String()), "")
	for _, want := range []string{`"restartPolicy":"Never"`, `"dagster-run-id":"` + req.ID.Run + `"`, `"cpu":2`,
		`"memoryInGB":4`, `"execute_run"`, `"name":"DAGSTER_HOME","value":"/opt"`, "myregistry.azurecr.io/dagster:1"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
	describer, _ := launcher.As[launcher.Describer](l)
	if text, err := describer.Describe(t.Context(), handle, false); err != nil ||
		!strings.Contains(string(text), "container_state") {
		t.Errorf("Describe = %s, %v", text, err)
	}
	if ran, err := l.Terminate(t.Context(), handle, 0); err != nil || !ran {
		t.Errorf("Terminate = %v, %v", ran, err)
	}
	becomes(handle, launcher.NotFound)
	if ran, err := l.Terminate(t.Context(), handle, 0); err != nil || ran {
		t.Errorf("second Terminate = %v, %v", ran, err)
	}
	for i, want := range map[int]launcher.Status{1: launcher.Failed, 2: launcher.Succeeded} {
		req = h.starting(i)
		becomes(launch(map[launcher.Status]string{launcher.Failed: "exit 1", launcher.Succeeded: "exit 0"}[want]), want)
	}
}
