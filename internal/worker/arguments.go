package worker

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/launcher"
)

// start sets the command of a worker, beginning with entry, and its arguments.
//
// The arguments hold the InstanceRef, and so the contents of dagster.yaml. Every user of a machine
// can see command lines, and so can every reader of the specification of a container or a Job. So
// the arguments are passed in an environment variable that is marked as secret. They are passed on
// the command line, as Dagster's own launchers do, only in three cases:
//
//   - they hold no InstanceRef
//   - the worker runs on another machine, where its Dagster version is unknown, and nothing in the
//     arguments looks like a secret
//   - slipway.yaml allows it
func (b *Builder) start(req *launcher.Request, entry []string, verb string, r dagster.Run, a Attempt, t Target) error {
	args := dagster.ExecuteRunArgs{
		InstanceRef: t.Ref, Origin: r.Code.Raw, RunID: r.ID, Resume: a.Resume, SetExitCodeOnFailure: t.FailsWithRun,
	}.JSON()
	fits := func(n int) bool { return t.Traits.MaxCommand == 0 || n <= t.Traits.MaxCommand }
	secret := t.Ref != nil && b.RefSecret || contextHoldsSecret(r.Code.Context)
	version := takesVariable(req.DagsterVersion)
	shows := b.AllowSecretsInArgv || !secret && (t.Ref == nil || !version && !t.Traits.LocalFiles)
	gated := !r.IsCommand() && t.Gate.closed(a.Number)
	pack := !shows || !fits(len(args))
	if gated || pack && !r.IsCommand() && (a.Resume || !version) { // resume_run reads no variable
		entry = bootstrap(entry, gated)
	}
	if gated || r.IsCommand() {
		req.Env = append(req.Env, gateEnv(a))
	}
	req.Command = append(entry, "api", verb)
	if !pack {
		req.Command = append(req.Command, args)
		return nil
	}
	packed := dagster.Compress(args)
	if !fits(len(packed) + len(dagster.CompressedArgsEnv) + 1) {
		return fmt.Errorf(
			"%w: the arguments of run %s have %d bytes even when compressed, more than launcher %s accepts",
			launcher.ErrInvalid, r.ID, len(packed), t.Name)
	}
	req.Env = append(req.Env, launcher.Env{Name: dagster.CompressedArgsEnv, Value: packed, Secret: true})
	return nil
}

// contextHoldsSecret reports whether the container_context of a code location, which is part of the
// arguments, seems to hold a secret.
func contextHoldsSecret(context json.RawMessage) bool {
	var tree any
	return json.Unmarshal(context, &tree) == nil && launcher.HoldsSecret(tree)
}

// takesVariable reports whether a version of Dagster reads its arguments from a variable: 1.12 and
// newer.
func takesVariable(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	m, err1 := strconv.Atoi(major)
	n, err2 := strconv.Atoi(minor)
	return err1 == nil && err2 == nil && (m > 1 || m == 1 && n >= 12)
}
