"""Serves a RunLauncher class of Dagster's to Slipway: python -m slipway_launcher.host, started by launchers of kind python."""

import importlib
import json
import logging
import os
import threading
import time

import dagster
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.errors import DagsterInvalidConfigError
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher.base import (
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)

from slipway_launcher import Failure, Launcher, parse_name, pb, serve, worker_name

log = logging.getLogger("slipway_launcher.host")

# How a launch went so far, as "ATTEMPT begun TIME" or "ATTEMPT done", on the run itself: launch_run is no call that can be repeated,
# and any host must know that it was made. Dagster's UI hides tags of this prefix.
TAG = ".dagster/slipway/launch_run"

# How long a worker of which nothing is known may take to report itself: Dagster's own run_monitoring.start_timeout_seconds.
UNKNOWN_FOR = 180.0

# How long a call waits for the class before it answers that the class is still at it.
WAIT = 20.0


class NoWorkspace:
    """Stands for the workspace, which only Dagster's own processes have."""

    def __getattr__(self, name):
        raise Failure(
            "INVALID_ARGUMENT",
            "the launcher's class asks for the workspace (code servers of workspace.yaml), which only dagster-daemon and webserver have: "
            "it cannot be hosted. For runs on code servers there is the launcher kind codeserver.",
        )


def is_connection(e):
    """Whether an exception says that a connection failed, so that nothing is known of what the target did."""
    lost = {
        "ConnectionError",
        "TimeoutError",
        "Timeout",  # requests
        "MaxRetryError",  # urllib3
        "ServiceRequestError",  # azure
        "ServiceResponseError",
        "EndpointConnectionError",  # botocore
    }
    while e is not None:
        if lost & {c.__name__ for c in type(e).__mro__}:
            return True
        e = e.__cause__
    return False


class Host(Launcher):
    name = "python"
    help = "A RunLauncher class of Dagster's."
    settings = (
        pb.Setting(name="module", type="text", required=True),
        pb.Setting(name="class", type="text", required=True),
        pb.Setting(name="config", type="any"),
        pb.Setting(name="python", type="text"),  # these four are Slipway's, to start this program
        pb.Setting(name="path", type="list"),
        pb.Setting(name="pass_env", type="list"),
        pb.Setting(name="env", type="map"),
    )
    traits = pb.Traits(own_command=True, writes_storage=True, strong_read=True)

    def setup(self, config, folder):
        home = os.environ["DAGSTER_HOME"]
        module, name = config["module"], config["class"]
        try:
            cls = getattr(importlib.import_module(module), name)
        except ImportError as e:
            raise Failure(
                "INVALID_ARGUMENT",
                str(e),
                problems=[("module", f"cannot be imported by this Python: {e}")],
            ) from e
        except AttributeError as e:
            raise Failure("INVALID_ARGUMENT", str(e), problems=[("class", f"{module} has no {name}")]) from e
        if not (isinstance(cls, type) and issubclass(cls, RunLauncher)):
            raise Failure(
                "INVALID_ARGUMENT",
                "no launcher",
                problems=[("class", f"{module}.{name} is no dagster RunLauncher")],
            )
        ref = InstanceRef.from_dir(
            home,
            overrides={
                "run_launcher": {
                    "module": module,
                    "class": name,
                    "config": config.get("config") or {},
                }
            },
        )
        self.instance = DagsterInstance.from_ref(ref)
        try:
            self.launcher = self.instance.run_launcher
        except DagsterInvalidConfigError as e:
            raise Failure("INVALID_ARGUMENT", str(e), problems=[problem_of(x) for x in e.errors]) from e
        except Exception as e:
            raise Failure(
                "INVALID_ARGUMENT",
                str(e),
                problems=[("config", f"{name} refuses its config: {type(e).__name__}: {e}")],
            ) from e
        self.lock = threading.Lock()
        self.calls = {}  # those that go on, by what they are about
        log.info("hosting %s.%s with Dagster %s", module, name, dagster.__version__)

    def close(self):
        if hasattr(self, "instance"):
            self.instance.dispose()  # and the launcher's own dispose

    def run(self, id):
        run = self.instance.get_run_by_id(id.run)
        if run is None:
            raise Failure("NOT_FOUND", f"there is no run {id.run} in the storage")
        return run

    def join(self, about, f):
        """Calls f in a thread of its own, unless that was done and goes on, and waits a while for it to end."""
        with self.lock:
            call = self.calls.get(about)
            if call is None:
                call = self.calls[about] = Call(f)
        if not call.ended.wait(WAIT):
            return None
        with self.lock:
            self.calls.pop(about, None)
        return call

    def Launch(self, request, context):
        if not request.instance or not request.id.attempt or not request.run:
            raise Failure("INVALID_ARGUMENT", "the request names no instance, attempt or run")
        found = self.find(request)
        if found is not None:
            return found
        call = self.join((request.id.run, request.id.attempt), lambda: self.launch(request))
        if call is None:
            raise Failure("UNAVAILABLE", f"launch_run of {type(self.launcher).__name__} goes on")
        if call.error is not None:
            raise call.error
        return pb.Launched(handle=worker_name(request.id))

    def launch(self, request):
        run, attempt = self.run(request.id), request.id.attempt
        if request.resume and not self.launcher.supports_resume_run:
            raise Failure("INVALID_ARGUMENT", f"{type(self.launcher).__name__} cannot resume a run")
        self.instance.add_run_tags(run.run_id, {TAG: f"{attempt} begun {time.time():.0f}"})
        try:
            if request.resume:
                self.launcher.resume_run(ResumeRunContext(run, NoWorkspace(), resume_attempt_number=attempt - 1))
            else:
                self.launcher.launch_run(LaunchRunContext(run, NoWorkspace()))
        except Failure:
            raise
        except Exception as e:
            log.exception("launch_run of %s", run.run_id)
            if is_connection(e):
                raise Failure("UNAVAILABLE", f"{type(e).__name__}: {e}") from e
            raise Failure(
                "INVALID_ARGUMENT",
                f"{type(self.launcher).__name__} could not launch the run: {type(e).__name__}: {e}",
            ) from e
        self.instance.add_run_tags(run.run_id, {TAG: f"{attempt} done"})

    def find(self, request):
        """What Launch returned for this request, if it was made; an error if nobody can tell how it went."""
        if (request.id.run, request.id.attempt) in self.calls:
            return None  # Launch joins it
        run = self.run(request.id)
        attempt, _, state = run.tags.get(TAG, "0 ").partition(" ")
        if int(attempt) != request.id.attempt:
            return None
        launched = pb.Launched(handle=worker_name(request.id))
        if state == "done" or run.status not in (
            DagsterRunStatus.STARTING,
            DagsterRunStatus.CANCELING,
        ):
            return launched
        if self.health(run).status in ("Running", "Succeeded", "Failed"):
            return launched
        text = f"launch_run of {type(self.launcher).__name__} began and nobody knows how it ended"
        if time.time() - float(state.partition(" ")[2]) < UNKNOWN_FOR:
            raise Failure("UNAVAILABLE", f"{text}; a worker that it started may still report itself")
        raise Failure(
            "INVALID_ARGUMENT",
            f"{text}; no worker has reported itself within {UNKNOWN_FOR:.0f} s, and it is not called a second time",
        )

    def Find(self, request, context):
        found = self.find(request)
        return pb.FindReply(found=found is not None, launched=found)

    def Terminate(self, request, context):
        id = parse_name(request.handle)
        run = id and self.instance.get_run_by_id(id.run)
        if not run or run.is_finished or not self.of(run, id):
            return pb.TerminateReply(stopped=False)
        # Classes wait for the worker's end; the caller does not.
        call = self.join(("terminate", id.run), lambda: self.launcher.terminate(id.run))
        if call is None:
            return pb.TerminateReply(stopped=True)
        if call.error is not None:
            raise call.error
        return pb.TerminateReply(stopped=bool(call.result))

    def of(self, run, id):
        return run.tags.get(TAG, "").partition(" ")[0] == str(id.attempt)

    def Health(self, request, context):
        id = parse_name(request.handle)
        run = id and self.instance.get_run_by_id(id.run)
        if not run or not self.of(run, id):
            return pb.HealthReply(status="NotFound", message="no run of this storage was launched so")
        health = self.health(run)
        run = self.instance.get_run_by_id(id.run)  # again: what the class says of a worker that ends meanwhile is about an ended run
        if run and run.is_finished:
            ok = run.status == DagsterRunStatus.SUCCESS
            return pb.HealthReply(status="Succeeded" if ok else "Failed", message=f"the run is {run.status.value}")
        return health

    def health(self, run):
        if not self.launcher.supports_check_run_worker_health:
            return pb.HealthReply(status="Unknown", message=f"{type(self.launcher).__name__} cannot check its workers")
        got = self.launcher.check_run_worker_health(run)
        status = {
            WorkerStatus.RUNNING: "Running",
            WorkerStatus.SUCCESS: "Succeeded",
            WorkerStatus.NOT_FOUND: "NotFound",
            WorkerStatus.FAILED: "Unknown" if got.transient else "Failed",
        }.get(got.status, "Unknown")
        reply = pb.HealthReply(status=status, message=got.msg or "", incarnation=got.run_worker_id or "")
        if status == "Failed":
            reply.cause = "unknown"
        return reply

    def Describe(self, request, context):
        id = parse_name(request.handle)
        run = id and self.instance.get_run_by_id(id.run)
        if not run:
            raise Failure("NOT_FOUND", "there is no such run")
        text = self.launcher.get_run_worker_debug_info(run, include_container_logs=request.logs)
        return pb.JSON(json=json.dumps({"debug_info": text}).encode())

    def Check(self, request, context):
        c = self.launcher
        can = [
            what
            for what, ok in (
                ("check its workers", c.supports_check_run_worker_health),
                ("resume runs", c.supports_resume_run),
            )
            if ok
        ]
        reply = pb.CheckReply()
        reply.findings.add(
            ok=True,
            what=f"{type(c).__name__} is loaded with Dagster {dagster.__version__}; it can "
            + (" and ".join(can) or "launch and terminate only"),
        )
        return reply


class Call:
    """A call of the class in a thread of its own: it may last longer than anybody waits."""

    def __init__(self, f):
        self.ended, self.result, self.error = threading.Event(), None, None
        threading.Thread(target=self.make, args=(f,), daemon=True).start()

    def make(self, f):
        try:
            self.result = f()
        except Exception as e:
            self.error = e
        finally:
            self.ended.set()


def problem_of(error):
    """The path of a setting, and what Dagster says is wrong with it."""
    names = [e.field_name for e in error.stack.entries if hasattr(e, "field_name")]
    text, _, _ = error.message.partition("\n\nStack Trace")
    return ".".join(["config", *names]), " ".join(text.split())


def main():
    logging.getLogger("alembic").setLevel(logging.WARNING)  # tells of every store that is opened
    serve(Host())
