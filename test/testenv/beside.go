package testenv

import (
	"context"
	"math"
	"runtime"
	"testing"

	"golang.org/x/sync/semaphore"
)

// Weights of tests that run beside others.
const (
	Light   = 1 // a daemon and Go workers
	Leads   = 2 // daemons whose leases must not end because the machine is busy
	Dagster = 3 // a webserver, its code servers, Python workers
	Alone   = math.MaxInt64
)

// room is what the tests of one process may weigh together. Most of them wait most of the time.
var room = int64(max(3*runtime.NumCPU(), Dagster))

var besides = semaphore.NewWeighted(room)

// Beside marks the test as parallel and waits until it fits beside the other tests of this process. The test's
// weight is free again after all of its cleanups. It is the first call of a test. The limit is this one and not
// go test's: hack/test sets -parallel high enough.
func Beside(t *testing.T, weight int64) {
	t.Helper()
	t.Parallel()
	if err := besides.Acquire(context.Background(), min(weight, room)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { besides.Release(min(weight, room)) })
}
