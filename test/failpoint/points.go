package failpoint

// Points lists every point that the daemon passes on the way of one run. The kill suite goes
// through all of them.
func Points() []string {
	return []string{
		"claim.begun", "claim.committed", "claim.done",
		"launch.before", "launch.dir", "launch.spawned", "launch.after",
		"handle.committed", "finish.before", "finish.committed", "finish.done",
		"replace.before", "replace.committed",
	}
}
