//go:build !failpoints

package failpoint

// Enabled reports whether this program was built with the tag failpoints.
const Enabled = false

// Here kills or stops this process if the point is armed; without the tag it does nothing.
func Here(Point) {}

// Trace records a step of the protocol; without the tag it does nothing.
func Trace(Step, string, int) {}
