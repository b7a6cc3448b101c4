package worker

import "github.com/slipway-run/slipway/launcher"

// Gate says which Python workers must pass a gate before they execute. Go workers always must.
type Gate string

// The settings of worker_gate.
const (
	GateOff      Gate = "off"
	GateRelaunch Gate = "relaunch" // attempts after the first
	GateOn       Gate = "on"
)

// DefaultGate returns the default of worker_gate. It is on if the target can have two workers with
// one name over time.
func DefaultGate(t launcher.Traits) Gate {
	switch {
	case !t.Gate, t.LocalFiles && t.Unique: // on this machine, a file that can be created only once is the fence
		return GateOff
	case !t.Unique:
		return GateOn
	}
	return GateRelaunch
}

func (g Gate) closed(attempt int) bool { return g == GateOn || g == GateRelaunch && attempt > 1 }

// bootstrap returns the entry point of a worker that first executes Slipway's own lines, in the
// interpreter that then runs Dagster.
func bootstrap(entry []string, gated bool) []string {
	python := "python"
	if len(entry) == 3 { // python -m dagster; any other entry point does not name its Python
		python = entry[0]
	}
	script := unpack
	if gated {
		script += passGate
	}
	return []string{python, "-c", script + become}
}

// unpack moves the arguments from the variable to the command line, if the variable is set. It is
// for workers whose Dagster does not read that variable, and for lines below that need the
// arguments.
const unpack = `
import base64, os, runpy, sys, zlib
packed = os.environ.pop("DAGSTER_COMPRESSED_EXECUTE_RUN_ARGS", None)
if packed:
    sys.argv.append(zlib.decompress(base64.b64decode(packed)).decode())
`

// openInstance opens the instance as Dagster's worker does, which reads .env in its folder first.
const openInstance = `
from dagster._cli.utils import get_instance_for_cli
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs  # known to deserialize_value once imported
from dagster._serdes import deserialize_value
args = deserialize_value(sys.argv[3])
`

// canary opens the storage with the arguments of a worker, in the interpreter of a worker.
const canary = unpack + openInstance + `
import dagster
with get_instance_for_cli(instance_ref=args.instance_ref) as instance:
    storage = instance.run_storage.get_run_storage_id()
    print("the storage is open: run_storage_id", storage + ", Dagster", dagster.__version__)
`

// passGate changes the newest launch row of the run from open to taken, for exactly this attempt
// and token. If it cannot, the worker exits with code 0. The row keeps the worker's nonce, so a
// lost answer does no harm: passGate asks again after an error or after 30 s without an answer.
// Each question has its own thread, which may wait forever.
const passGate = openInstance + `
import threading, time, uuid
from sqlalchemy import text
attempt, token = os.environ.pop("SLIPWAY_GATE").split()
taken = "taken/" + uuid.uuid4().hex
newest = text("SELECT id, value FROM run_tags WHERE run_id = :run AND key = '.dagster/slipway/launch' "
    "ORDER BY id DESC LIMIT 1")
change = text("UPDATE run_tags SET value = :new WHERE id = :id AND value = :old")
def ask(answers):
    def row(state):
        found = db.execute(newest, {"run": args.run_id}).fetchone()
        old = found[1].split() if found else []
        right = len(old) == 8 and (old[0], old[1], old[4], old[7]) == (args.run_id, attempt, token, state)
        return found if right else None
    try:
        with instance.run_storage.connect() as db:
            old = row("open")
            if old:
                db.execute(change, {"new": old[1][:-4] + taken, "id": old[0], "old": old[1]})
            ours = row(taken) is not None
        answers.append(ours)
    except Exception as e:
        print("slipway: the gate gives no answer, asking again:", e, flush=True)
with get_instance_for_cli(instance_ref=args.instance_ref) as instance:
    answers, until = [], time.monotonic() + 300
    while not answers:
        if time.monotonic() > until:
            sys.exit("slipway: the gate gave no answer for five minutes")
        asking = threading.Thread(target=ask, args=(answers,), daemon=True)
        asking.start()
        asking.join(30)
        if not answers:
            time.sleep(1)
if not answers[0]:
    print("slipway: another worker of this run has passed the gate, or this one was replaced; leaving")
    sys.exit(0)
`

// become runs Dagster's command line in this process.
const become = `
sys.argv[0] = "dagster"
runpy.run_module("dagster", run_name="__main__", alter_sys=True)
`
