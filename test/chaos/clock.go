package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/slipway-run/slipway/test/chaos/check"
)

// clockEnv names the environment variable with a file. The file has the seconds by which the clock
// of a process built with [overlay] is off.
const clockEnv = "SLIPWAY_TEST_CLOCK"

const now = "sec, nsec, mono := runtimeNow()\n\tif mono == 0 {\n\t\treturn Time{uint64(nsec), sec + unixToInternal, " +
	"Local}"

const clockFile = `package time

import (
	"sync/atomic"
	"syscall"
)

var stepped atomic.Int64

func init() {
	file, ok := syscall.Getenv("` + clockEnv + `")
	if !ok {
		return
	}
	go func() {
		for ; ; Sleep(100 * Millisecond) {
			if text, err := readFile(file); err == nil {
				if n, err := atoi(string(text)); err == nil {
					stepped.Store(int64(n))
				}
			}
		}
	}()
}
`

// overlay makes the input of go build for programs whose wall clock can be stepped, as the clock of
// a machine can. It is Go's own package time, with an offset that it reads from a file. The
// monotonic clock is not affected. overlay returns the file for -overlay.
func overlay(ctx context.Context, dir string) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	pkg := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(pkg, "time.go"))
	if err != nil {
		return "", err
	}
	if strings.Count(string(source), now) != 1 {
		return "", fmt.Errorf("%s: this Go tells the time in another way: have test/chaos/clock.go know it", pkg)
	}
	stepped := strings.Replace(now, "\n", "\n\tsec += stepped.Load()\n", 1)
	files := map[string]string{"time.go": strings.Replace(string(source), now, stepped, 1), "stepped.go": clockFile}
	replace := map[string]string{}
	for name, text := range files {
		replace[filepath.Join(pkg, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, text, 0o600)
}

// clock returns the file of a daemon's clock. Two daemons on one SQLite storage are on one machine,
// so they share a clock.
func (w *world) clock(i int) string {
	if w.storage == "sqlite" {
		i = 0
	}
	return filepath.Join(w.dir, fmt.Sprintf("clock-%d", i))
}

// steps sets a daemon's clock off by up to an hour. It stays off until the next step, if there is
// one.
func (w *world) steps(i int, r *rand.Rand) {
	offsets := []time.Duration{0, time.Second, 5 * time.Second, time.Minute, time.Hour}
	by := offsets[r.IntN(len(offsets))]
	if r.IntN(2) == 0 {
		by = -by
	}
	w.note(check.Entry{Do: "step_clock"})
	if err := w.setClock(i, by); err != nil {
		fmt.Println("chaos: clock:", err)
	}
}

// setClock replaces the file atomically, because it is read all the time.
func (w *world) setClock(i int, by time.Duration) error {
	file := w.clock(i)
	return errors.Join(os.WriteFile(file+".new", []byte(strconv.Itoa(int(by.Seconds()))), 0o600),
		os.Rename(file+".new", file))
}
