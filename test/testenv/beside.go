package testenv

import (
	"context"
	"flag"
	"math"
	"runtime"
	"testing"

	"golang.org/x/sync/semaphore"
)

// Weights of tests that run in parallel.
const (
	Light   = 1 // a daemon and Go workers
	Leads   = 2 // daemons whose leases must not end because the machine is busy
	Dagster = 3 // a webserver, its code servers, Python workers
	Alone   = math.MaxInt64
)

// room is the total weight of the tests that may run at the same time in one process. Most tests
// wait most of the time.
var room = int64(max(3*runtime.NumCPU(), Dagster))

var besides = semaphore.NewWeighted(room)

// Beside marks the test as parallel and waits until it fits beside the other running tests of this
// process. The weight is released after all cleanups of the test. Call Beside first in a test. Only
// this limit counts, not that of go test: hack/test sets -parallel high enough.
func Beside(t *testing.T, weight int64) {
	t.Helper()
	t.Parallel()
	if err := besides.Acquire(context.Background(), min(weight, room)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { besides.Release(min(weight, room)) })
}

// Parallel lets as many tests of this process run at the same time as hack/test does, also under a
// plain go test, which takes one for each processor: they wait for most of their time. Call it in
// TestMain, before the flags are parsed; a -parallel of the command line wins.
func Parallel() {
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err) // not in a test
	}
}
