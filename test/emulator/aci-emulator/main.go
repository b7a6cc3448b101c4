//go:build !windows

// Aci-emulator takes the place of Azure Container Instances on this machine. Container groups
// become containers of the local Docker engine, or processes.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/slipway-run/slipway/test/emulator/aci"
)

const usage = `aci-emulator: Azure Container Instances on this machine, for tests and laptops.

  aci-emulator [-listen 127.0.0.1:10600] [-tls] [-backend docker|process] [-state FOLDER] …

SDKs reach it with its address as the endpoint of Azure Resource Manager, any subscription and
resource group, and any bearer token. See docs/aci-emulator.md.

`

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "aci-emulator:", err)
		os.Exit(1)
	}
}

func run() error {
	f := flag.CommandLine
	f.Usage = func() { _, _ = fmt.Fprint(f.Output(), usage); f.PrintDefaults() }
	listen := f.String("listen", "127.0.0.1:10600", "address; another one than loopback needs -token")
	withTLS := f.Bool("tls", false,
		"serve https, with a certificate for localhost by an authority of the state folder, ca.pem")
	state := f.String("state", ".aci-emulator", "folder for groups and certificates")
	backend := f.String("backend", "", "docker or process; default: docker if an engine answers")
	network := f.String("network", "", "Docker network of containers; host gives them this machine's")
	scale := f.Float64("cpu-scale", 1, "divides the processors that groups ask for; 0 sets no limit")
	preset := f.String("preset", "fast", "timing, quotas and limits: fast or real")
	settings := f.String("settings", "", "file with JSON of settings, laid over the preset's")
	faults := f.String("faults", "", "file with a JSON list of faults")
	token := f.String("token", "", "the bearer token that requests must have; default: any")
	files := f.String("files", "", "folder whose ACCOUNT/SHARE folders are Azure file shares")
	git := f.Bool("git", false, "clone the repositories of git volumes, with this machine's git; else they are refused")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))

	host, _, err := net.SplitHostPort(*listen)
	if err != nil {
		return fmt.Errorf("-listen: %w", err)
	}
	if ip := net.ParseIP(host); (ip == nil || !ip.IsLoopback()) && host != "localhost" && *token == "" {
		return fmt.Errorf("-listen %s: all who reach it can run containers here: set -token, or listen on 127.0.0.1",
			*listen)
	}
	o := aci.Options{Token: *token, Files: *files, Git: *git, Log: log}
	for flagName, at := range map[string]struct {
		path, to *string
	}{"-state": {state, &o.State}, "-files": {files, &o.Files}} {
		if *at.path == "" {
			continue
		}
		if *at.to, err = filepath.Abs(*at.path); err != nil {
			return fmt.Errorf("%s: %w", flagName, err)
		}
	}
	if o.Settings, err = aci.Preset(*preset); err != nil {
		return fmt.Errorf("-preset: %w", err)
	}
	if err := readJSON(*settings, &o.Settings); err != nil {
		return fmt.Errorf("-settings: %w", err)
	}
	var rules []aci.Fault
	if err := readJSON(*faults, &rules); err != nil {
		return fmt.Errorf("-faults: %w", err)
	}
	name, err := choose(&o, *backend, *network, *scale)
	if err != nil {
		return fmt.Errorf("-backend: %w", err)
	}
	e, err := aci.New(o)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if err := e.Inject(r); err != nil {
			return fmt.Errorf("-faults: %w", err)
		}
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: e, ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	address := "http://" + l.Addr().String()
	if *withTLS {
		cert, err := certificate(o.State, host)
		if err != nil {
			return fmt.Errorf("-tls: %w", err)
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
		address = "https" + strings.TrimPrefix(address, "http")
	}
	fmt.Printf("aci-emulator: listening on %s, containers by %s, state in %s\n", address, name, o.State)
	if *withTLS {
		fmt.Printf("aci-emulator: the authority's certificate is %s\n", filepath.Join(o.State, "ca.pem"))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = server.Close()
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, e.Close())
}

func readJSON(file string, into any) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// choose sets what runs the containers, and returns a description of it.
func choose(o *aci.Options, backend, network string, scale float64) (string, error) {
	if backend != "" && backend != "docker" && backend != "process" {
		return "", fmt.Errorf("%q is none of docker and process", backend)
	}
	if backend != "process" {
		d, err := aci.NewDocker(network, scale)
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			err = d.Ping(ctx)
		}
		if err == nil {
			o.Backend = d
			return "the Docker engine", nil
		}
		if backend == "docker" {
			return "", fmt.Errorf("no Docker engine answers: %w; start one, or use -backend process", err)
		}
		o.Log.Warn("no Docker engine answers: containers are processes of this machine", "err", err)
	}
	o.Backend = &aci.Processes{}
	return "processes of this machine", nil
}

// certificate makes a certificate for this machine. It is signed by an authority that is kept in
// folder, so clients have to trust that authority only once.
func certificate(folder, host string) (tls.Certificate, error) {
	var none tls.Certificate
	caFile, keyFile := filepath.Join(folder, "ca.pem"), filepath.Join(folder, "ca.key")
	year := func(c *x509.Certificate, serial int64) *x509.Certificate {
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(serial), time.Now().Add(-time.Hour),
			time.Now().AddDate(1, 0, 0)
		return c
	}
	ca, err := tls.LoadX509KeyPair(caFile, keyFile)
	if err != nil || ca.Leaf.NotAfter.Before(time.Now().AddDate(0, 1, 0)) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return none, err
		}
		c := year(&x509.Certificate{Subject: pkix.Name{CommonName: "aci-emulator"}, IsCA: true,
			BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, 1)
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			return none, err
		}
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return none, err
		}
		if err := errors.Join(
			os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600),
			os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
				0o644), //nolint:gosec // clients read it
		); err != nil {
			return none, err
		}
		if ca, err = tls.LoadX509KeyPair(caFile, keyFile); err != nil {
			return none, err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, err
	}
	c := year(&x509.Certificate{Subject: pkix.Name{CommonName: "localhost"},
		DNSNames:    []string{"localhost", "management.azure.com"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, time.Now().UnixNano())
	c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if ip := net.ParseIP(host); ip != nil {
		c.IPAddresses = append(c.IPAddresses, ip)
	} else {
		c.DNSNames = append(c.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.Leaf, key.Public(), ca.PrivateKey)
	return tls.Certificate{Certificate: [][]byte{der, ca.Certificate[0]}, PrivateKey: key}, err
}
