package failpoint

// Point names a place in the code.
type Point string

// The points of any run, in the order in which it passes them.
const (
	ClaimBegun     Point = "claim.begun"     // storage: before the transaction of a claim
	ClaimCommitted Point = "claim.committed" // storage: after the commit of a claim
	ClaimDone      Point = "claim.done"      // queue: the storage has returned the claim's outcome

	LaunchBefore  Point = "launch.before"  // dispatch: before the call of Launch
	LaunchDir     Point = "launch.dir"     // process launcher: the worker has a folder, but no process
	LaunchSpawned Point = "launch.spawned" // process launcher: the worker has a process
	LaunchAfter   Point = "launch.after"   // dispatch: after the call of Launch

	HandleCommitted Point = "handle.committed" // storage: after the commit of a worker's handle

	FinishBefore    Point = "finish.before"    // monitor: before a status, such as FAILURE, is written
	FinishCommitted Point = "finish.committed" // monitor: after the commit of the status
	FinishDone      Point = "finish.done"      // monitor: the status is logged

	ReplaceBefore    Point = "replace.before"    // monitor: before a dead worker's attempt is closed
	ReplaceCommitted Point = "replace.committed" // monitor: after the commit that closes the attempt
)

// The points of single launchers and storages.
const (
	ACIPut          Point = "aci.put"          // aci: before the request that creates a container group
	DockerCreated   Point = "docker.created"   // docker: the container is created, but not started
	K8sCreated      Point = "k8s.created"      // k8s: the Job is created, but not its Secret
	SQLiteStatement Point = "sqlite.statement" // sqlite: before and after each statement that writes
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
	StepEnd      Step = "end"      // the run was failed
)
