// Pgserver runs a command with SLIPWAY_TEST_PG set to a throw-away Postgres server that it fetches
// as a dependency, for machines that have none. It cannot run as root, as Postgres cannot.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgserver:", err)
		code = 1
	}
	os.Exit(code)
}

func run(command []string) (code int, err error) {
	if len(command) == 0 {
		return 0, errors.New("usage: pgserver COMMAND…")
	}
	dir, err := os.MkdirTemp("", "slipway-pg-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return 0, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	server := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Port(uint32(port)).Username("slipway").Password("slipway").Database("slipway").Version(embeddedpostgres.V17).
		RuntimePath(filepath.Join(dir, "run")).StartTimeout(time.Minute).Logger(log).
		StartParameters(map[string]string{"fsync": "off", "max_connections": "300", "listen_addresses": "127.0.0.1"}))
	if err := server.Start(); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("SLIPWAY_TEST_PG=postgresql://slipway:slipway@127.0.0.1:%d/slipway",
		port))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}
