// Package failpoint lets tests kill or stop a real daemon at a named line, and read which steps of
// the protocol it took. The tests show that no run is lost wherever a daemon dies or sleeps.
//
// [Here] and [Trace] act only in programs that are built with the tag failpoints. Without it they
// are empty and no environment variable is read, so the program that users get has no test hook.
package failpoint

// Env is the variable that arms one point: NAME, or NAME:N for the N-th passing. The process is
// then killed. With "stop " before the name it is stopped instead, until it gets SIGCONT.
const Env = "SLIPWAY_FAILPOINT"

// TraceEnv is the variable with a file. Each [Trace] adds a line to it: PID, step, run and attempt.
const TraceEnv = "SLIPWAY_TRACE"

// Point names a place in the code.
type Point string

// The points of any run, in the order in which it passes them.
const (
	ClaimBegun     Point = "claim.begun"     // storage: before the transaction of a claim
	ClaimCommitted Point = "claim.committed" // storage: after the commit of a claim
	ClaimDone      Point = "claim.done"      // queue: the storage has returned the claim's outcome

	LaunchBefore  Point = "launch.before"  // dispatch: before the call of Launch
	LaunchDir     Point = "launch.dir"     // process launcher: the worker has a folder, no process
	LaunchSpawned Point = "launch.spawned" // process launcher: the worker has a process
	LaunchAfter   Point = "launch.after"   // dispatch: after the call of Launch

	HandleCommitted Point = "handle.committed" // storage: after the commit of a worker's handle

	FinishBefore    Point = "finish.before"    // monitor: before a status is written
	FinishCommitted Point = "finish.committed" // monitor: after the commit of the status
	FinishDone      Point = "finish.done"      // monitor: the status is logged

	ReplaceBefore    Point = "replace.before"    // monitor: before an attempt is closed
	ReplaceCommitted Point = "replace.committed" // monitor: after the commit that closes it
)

// The points of single launchers and storages.
const (
	ACIPut          Point = "aci.put"          // aci: before a container group is created
	DockerCreated   Point = "docker.created"   // docker: the container is created, but not started
	K8sCreated      Point = "k8s.created"      // k8s: the Job is created, but not its Secret
	SQLiteStatement Point = "sqlite.statement" // sqlite: between any two statements of a write
)

// Points lists the points that runs pass on the process launcher, with any storage. A run passes
// finish.* and replace.* only if its worker dies. The kill suite goes through all of them.
func Points() []Point {
	return []Point{
		ClaimBegun, ClaimCommitted, ClaimDone,
		LaunchBefore, LaunchDir, LaunchSpawned, LaunchAfter,
		HandleCommitted, FinishBefore, FinishCommitted, FinishDone,
		ReplaceBefore, ReplaceCommitted,
	}
}

// Step names a step of the protocol, as package model knows it.
type Step string

// The steps that daemons record.
const (
	StepClaim    Step = "claim"    // the run was claimed for an attempt
	StepLaunch   Step = "launch"   // the launcher is about to be asked for a worker
	StepLaunched Step = "launched" // the launcher has returned a worker
	StepHandle   Step = "handle"   // the handle of the worker was written
	StepAgain    Step = "again"    // the attempt was closed and the run put back into the queue
	StepRequeue  Step = "requeue"  // the run was put back into the queue, because it certainly has no worker
	StepEnd      Step = "end"      // the run was failed
)
