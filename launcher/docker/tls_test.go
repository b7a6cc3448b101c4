//go:build real

package docker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// authority makes certificates for tests, in files of one folder.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue("ca", nil, nil)
	return a
}

// issue writes NAME.pem and NAME.key, signed by the parent or by itself.
func (a *authority) issue(name string, parent *x509.Certificate,
	signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:        parent == nil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der},
		".key": {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(a.dir, name+file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// An engine is reached over TCP with TLS if both sides can verify each other.
func TestEngineOverTLS(t *testing.T) {
	b := newBench(t)
	a := newAuthority(t)
	a.issue("server", a.cert, a.key)
	a.issue("client", a.cert, a.key)
	pair, err := tls.LoadX509KeyPair(filepath.Join(a.dir, "server.pem"), filepath.Join(a.dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	listener, err := tls.Listen("tcp", "127.0.0.1:0",
		&tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go forward(listener, testenv.DockerSocket())
	files := func(cert string) string {
		return fmt.Sprintf(
			"{host: 'tcp://%s', network: none, tls: {ca: %[2]s/ca.pem, cert: %[2]s/%[3]s.pem, key: %[2]s/%[3]s.key}}",
			listener.Addr(), a.dir, cert)
	}
	l := must(t, files("client"))
	if got := b.until(l, b.launch(l, b.request("true")), ended); got.Status != launcher.Succeeded {
		t.Errorf("Health = %+v", got)
	}
	stranger := newAuthority(t)
	stranger.issue("client", stranger.cert, stranger.key)
	for _, ext := range []string{".pem", ".key"} {
		if err := os.Rename(filepath.Join(stranger.dir, "client"+ext), filepath.Join(a.dir, "stranger"+ext)); err !=
			nil {
			t.Fatal(err)
		}
	}
	if _, err := must(t, files("stranger")).Launch(t.Context(), b.request("true")); !errors.Is(err,
		launcher.ErrTransient) {
		t.Errorf("Launch with a certificate that the engine does not know = %v, want an error of the connection", err)
	}
	// as Docker's clients name them
	for file, as := range map[string]string{"client.pem": "cert.pem", "client.key": "key.pem"} {
		if err := os.Symlink(filepath.Join(a.dir, file), filepath.Join(a.dir, as)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("DOCKER_HOST", "tcp://"+listener.Addr().String())
	t.Setenv("DOCKER_CERT_PATH", a.dir)
	for _, verify := range []string{"1", ""} {
		t.Setenv("DOCKER_TLS_VERIFY", verify)
		l := must(t, "{network: none}")
		if got := b.until(l, b.launch(l, b.request("true")), ended); got.Status != launcher.Succeeded {
			t.Errorf("DOCKER_TLS_VERIFY=%q: Health = %+v", verify, got)
		}
	}
	t.Setenv("DOCKER_TLS_VERIFY", "1")
	if err := os.Rename(filepath.Join(stranger.dir, "ca.pem"), filepath.Join(a.dir, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := must(t, "{network: none}").Launch(t.Context(), b.request("true")); !errors.Is(err,
		launcher.ErrTransient) {
		t.Errorf("Launch on an engine with another authority's certificate = %v, want an error of the connection", err)
	}
	t.Setenv("DOCKER_CERT_PATH", "/no/such/folder")
	if _, err := open(t, "{network: none}"); err == nil ||
		!strings.Contains(err.Error(), "config.host: DOCKER_CERT_PATH") {
		t.Errorf("without the files: %v, want that it names DOCKER_CERT_PATH", err)
	}
}

// forward connects every client to the engine's socket, until the listener is closed.
func forward(l net.Listener, socket string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("unix", socket)
		if err != nil {
			_ = in.Close()
			continue
		}
		copyAndClose := func(to, from net.Conn) {
			_, _ = io.Copy(to, from) // ends with either side
			_ = to.Close()
		}
		go copyAndClose(in, out)
		go copyAndClose(out, in)
	}
}
