package worker

import "github.com/slipway-run/slipway/launcher"

// Gate says which workers of Dagster's Python pass a gate before they execute. Go workers always do.
type Gate string

// The settings of worker_gate.
const (
	GateOff      Gate = "off"
	GateRelaunch Gate = "relaunch" // attempts after the first
	GateOn       Gate = "on"
)

// DefaultGate is on where the target can hold two workers of one name over time.
func DefaultGate(t launcher.Traits) Gate {
	switch {
	case !t.Gate, t.LocalFiles && t.Unique: // on this machine, files that cannot be made twice are the fence
		return GateOff
	case !t.Unique:
		return GateOn
	}
	return GateRelaunch
}

func (g Gate) closed(attempt int) bool { return g == GateOn || g == GateRelaunch && attempt > 1 }

// canary opens the storage with what a worker is given, in the interpreter of a worker.
const canary = `
import base64, os, sys, zlib
import dagster
from dagster import DagsterInstance
from dagster._grpc.types import ExecuteRunArgs  # known to deserialize_value once imported
from dagster._serdes import deserialize_value
packed = os.environ.get("DAGSTER_COMPRESSED_EXECUTE_RUN_ARGS")
args = deserialize_value(sys.argv[3] if len(sys.argv) > 3 else zlib.decompress(base64.b64decode(packed)).decode())
with DagsterInstance.from_ref(args.instance_ref) if args.instance_ref else DagsterInstance.get() as instance:
    print("the storage is open: run_storage_id", instance.run_storage.get_run_storage_id() + ", Dagster", dagster.__version__)
`

// bootstrap passes the gate in the interpreter that then becomes Dagster's worker: it turns the newest launch row of the run from
// open to taken, for exactly this attempt and token, and leaves with exit code 0 if it cannot.
const bootstrap = `
import base64, os, runpy, sys, zlib
from dagster import DagsterInstance
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs  # known to deserialize_value once imported
from dagster._serdes import deserialize_value
from sqlalchemy import text
packed = os.environ.get("DAGSTER_COMPRESSED_EXECUTE_RUN_ARGS")
args = deserialize_value(sys.argv[3] if len(sys.argv) > 3 else zlib.decompress(base64.b64decode(packed)).decode())
attempt, token = os.environ.pop("SLIPWAY_GATE").split()
with DagsterInstance.from_ref(args.instance_ref) if args.instance_ref else DagsterInstance.get() as instance:
    with instance.run_storage.connect() as db:
        newest = "SELECT id, value FROM run_tags WHERE run_id = :run AND key = '.dagster/slipway/launch' ORDER BY id DESC LIMIT 1"
        row = db.execute(text(newest), {"run": args.run_id}).fetchone()
        old = row[1].split() if row else []
        ours = len(old) == 8 and (old[0], old[1], old[4], old[7]) == (args.run_id, attempt, token, "open")
        change = text("UPDATE run_tags SET value = :new WHERE id = :id AND value = :old")
        ours = ours and db.execute(change, {"new": row[1][:-4] + "taken", "id": row[0], "old": row[1]}).rowcount == 1
if not ours:
    print("slipway: another worker of this run has passed the gate, or this one was replaced; leaving")
    sys.exit(0)
sys.argv[0] = "dagster"
runpy.run_module("dagster", run_name="__main__", alter_sys=True)
`
