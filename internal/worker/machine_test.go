package worker_test

import (
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/slipway-run/slipway/internal/worker"
)

// Code servers are found in the process list by their command line, with their working directory.
func TestCodeServersOfThisMachine(t *testing.T) {
	if _, err := os.Stat("/proc/self/cmdline"); err != nil {
		t.Skip("no /proc")
	}
	dir, err := os.MkdirTemp("/tmp", "served-") // a path without links
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, c := range []struct {
		line []string
		want worker.CodeServer
	}{
		{[]string{"api", "grpc", "--port", "1", "-f", "code/etl.py", "-d", "code"},
			worker.CodeServer{File: "code/etl.py", WorkingDirectory: "code"}},
		{[]string{"code-server", "start", "-p", "1", "--module-name=pkg"}, worker.CodeServer{Module: "pkg"}},
		{[]string{"api", "grpc", "--socket", "/s", "--heartbeat", "--instance-ref", "{}", "--location-name", "etl",
			"--package-name", "p", "-d", "sub"},
			worker.CodeServer{Ref: "{}", Location: "etl", Module: "p", WorkingDirectory: "sub"}},
	} {
		cmd := exec.Command("sh", append([]string{"-c", "echo; read x", "dagster"}, c.line...)...)
		cmd.Dir = dir
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it is another program by now
			t.Fatal(err)
		}
		c.want.Dir = dir
		if got := (&worker.Machine{}).CodeServers(); !slices.Contains(got, c.want) {
			t.Errorf("CodeServers() = %+v, want %+v among them", got, c.want)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // read failed at the end of its input
	}
}
