"""Serves a RunLauncher class of Dagster's to Slipway. Launchers of kind python start it as
python -m slipway_launcher.host.
"""

import importlib
import inspect
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

from slipway_launcher import Failure, Launcher, in_one_line, log_traceback, parse_name, pb, serve, worker_name

log = logging.getLogger("slipway_launcher.host")

# A tag on the run that records how far its launch has come. launch_run must not be called twice for
# one attempt, so any host must know that it was called. Dagster's UI hides tags with this prefix.
# The values:
#
#   ATTEMPT begun TIME    launch_run was called at TIME and has not returned
#   ATTEMPT refused KEYS  launch_run failed before it sent anything, so it may be called again
#   ATTEMPT done KEYS     launch_run returned
#
# KEYS is a JSON list of the tags that launch_run put on the run.
TAG = ".dagster/slipway/launch_run"

# How long a call waits for the class, in seconds, before it answers that the class has not returned.
# It waits less if the caller has less time.
WAIT = 20.0


class NoWorkspace:
    """Replaces the workspace, which only Dagster's own processes have."""

    def __getattr__(self, name):
        raise Failure(
            "INVALID_ARGUMENT",
            "the launcher's class asks for the workspace (code servers of workspace.yaml), which only dagster-daemon and webserver have: "
            "it cannot be hosted. For runs on code servers there is the launcher kind codeserver.",
        )


# The next lists name exceptions of Python and of the libraries that launchers use. They are names, so
# that these libraries need not be installed.
# A connection failed: what the target did is unknown.
LOST = {
    "ConnectionError",
    "TimeoutError",
    "Timeout",  # requests
    "MaxRetryError",  # urllib3
    "TransportError",  # httpx
    "ClientConnectionError",  # aiohttp
    "ServiceRequestError",  # azure
    "ServiceResponseError",
    "EndpointConnectionError",  # botocore
}
# No connection was made: nothing was sent.
REFUSED = {
    "ConnectionRefusedError",
    "gaierror",  # the name is not known
    "ConnectTimeout",  # requests, httpx
    "ConnectTimeoutError",  # urllib3
    "NewConnectionError",
    "ConnectError",  # httpx
    "ClientConnectorError",  # aiohttp
    "EndpointConnectionError",  # botocore
}
# A connection was made and broke.
BROKEN = {
    "ConnectionResetError",
    "ConnectionAbortedError",
    "BrokenPipeError",
    "ReadTimeout",  # requests, httpx
    "ReadTimeoutError",  # urllib3
    "ReadError",  # httpx
    "WriteError",
    "RemoteProtocolError",
}


def names(e):
    """Returns the class names of an exception and of its causes.

    It also finds causes that a library stores in its own way.
    """
    todo, seen = [e], []
    while todo:
        e = todo.pop()
        if isinstance(e, BaseException) and not any(e is s for s in seen):
            seen.append(e)
            todo += [e.__cause__, e.__context__, getattr(e, "reason", None), getattr(e, "inner_exception", None), *e.args]
    return {c.__name__ for e in seen for c in type(e).__mro__}


def is_connection(e):
    """Reports whether a connection failed."""
    return bool(LOST & names(e))


def nothing_sent(e):
    """Reports whether an exception proves that nothing reached the target."""
    types = names(e)
    no_socket = "FileNotFoundError" in types and LOST & types  # the socket of a local engine
    return bool(REFUSED & types or no_socket) and not BROKEN & types


class Host(Launcher):
    name = "python"
    help = "A RunLauncher class of Dagster's."
    settings = (
        pb.Setting(name="module", type="text", required=True),
        pb.Setting(name="class", type="text", required=True),
        pb.Setting(name="config", type="any"),
        pb.Setting(name="python", type="text"),  # Slipway uses these four to start this program
        pb.Setting(name="path", type="list"),
        pb.Setting(name="pass_env", type="list"),
        pb.Setting(name="env", type="map"),
    )
    traits = pb.Traits(own_command=True, writes_storage=True, strong_read=True)

    def setup(self, config, folder):
        home = os.environ["DAGSTER_HOME"]
        module, name = config["module"], config["class"]
        # The log of the class is shown. The libraries that it uses log every request, so only their
        # warnings are shown.
        logging.getLogger().setLevel(logging.WARNING)
        for logger in ("dagster", module.partition(".")[0]):
            logging.getLogger(logger).setLevel(logging.INFO)
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
                problems=[("class", f"{module}.{name} is not a dagster RunLauncher")],
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
        self.instance, self.name_of_class, self.making = DagsterInstance.from_ref(ref), name, threading.Lock()
        try:
            _ = self.launcher
        except DagsterInvalidConfigError as e:
            raise Failure("INVALID_ARGUMENT", str(e), problems=[problem_of(x) for x in e.errors]) from e
        except Exception as e:
            if not is_connection(e):
                raise Failure(
                    "INVALID_ARGUMENT",
                    str(e),
                    problems=[("config", f"{name} refuses its config: {in_one_line(e)}")],
                ) from e
            log_traceback(e)
            log.warning("%s cannot reach its service and is made later: %s", name, in_one_line(e))
        self.lock = threading.Lock()
        self.calls = {}  # calls of the class, by their subject, until their result was read
        # How long a worker may take to report itself if nothing is known about it.
        self.start_timeout = self.instance.run_monitoring_start_timeout_seconds
        log.info("hosting %s.%s with Dagster %s", module, name, dagster.__version__)

    @property
    def launcher(self):
        """The instance of the class.

        It may connect to its service when it is made, and the service may be down.
        """
        with self.making:
            return self.instance.run_launcher

    def close(self):
        if hasattr(self, "instance"):
            self.instance.dispose()  # also disposes of the launcher

    def run(self, id):
        run = self.instance.get_run_by_id(id.run)
        if run is None:
            raise Failure("NOT_FOUND", f"there is no run {id.run} in the storage")
        return run

    def join(self, about, f, context, repeat=True):
        """Calls f in a new thread, or joins a running call with the same subject, and waits a while.

        Returns None if the call is still running then. If an earlier call ended and its result was not
        read, f is called again only if repeat is set.
        """
        with self.lock:
            call = self.calls.get(about)
            if call is None or repeat and call.ended.is_set():
                call = self.calls[about] = Call(f)
        left = context.time_remaining()
        if not call.ended.wait(WAIT if left is None else min(WAIT, left * 2 / 3)):
            return None
        with self.lock:
            if self.calls.get(about) is call:
                del self.calls[about]
        return call

    def ask(self, method, run, context, **args):
        """Returns the answer of a method of the class about a run."""
        call = self.join((method, run.run_id), lambda: getattr(self.made(), method)(run, **args), context)
        if call is None:
            raise Failure("UNAVAILABLE", f"{method} of {self.name_of_class} has not returned yet")
        if call.error is not None:
            raise call.error
        return call.result

    def Launch(self, request, context):
        if not request.instance or not request.id.attempt or not request.run:
            raise Failure("INVALID_ARGUMENT", "the request names no instance, attempt or run")
        call = self.calls.get(launch_of(request))
        if call is None or not call.ended.is_set():
            found = self.find(request, context)
            if found is not None:
                return found
        call = self.join(launch_of(request), lambda: self.launch(request), context, repeat=False)
        if call is None:
            raise self.not_returned()
        if call.error is not None:
            raise call.error
        return call.result

    def goes_on(self, request):
        call = self.calls.get(launch_of(request))
        return call is not None and not call.ended.is_set()

    def not_returned(self):
        return Failure("UNAVAILABLE", f"launch_run of {self.name_of_class} has not returned yet")

    def made(self):
        """Returns the instance of the class.

        An error says why it does not exist yet. Then nothing was sent to the service.
        """
        try:
            return self.launcher
        except Exception as e:
            log_traceback(e)
            raise Failure("UNAVAILABLE", f"{self.name_of_class} cannot reach its service, and nothing was sent: {in_one_line(e)}") from e

    def mark(self, request, state):
        self.instance.add_run_tags(request.id.run, {TAG: f"{request.id.attempt} {state}"})

    def launch(self, request):
        run, name, launcher = self.run(request.id), self.name_of_class, self.made()
        if request.resume and not launcher.supports_resume_run:
            raise Failure("INVALID_ARGUMENT", f"{name} cannot resume a run")
        had = {k: v for k, v in run.tags.items() if k not in keys_in(run.tags.get(TAG, ""))}

        def put():
            return json.dumps([k for k, v in self.run(request.id).tags.items() if had.get(k) != v and not k.startswith(".dagster/")])

        self.mark(request, f"begun {time.time():.0f}")
        try:
            if request.resume:
                launcher.resume_run(ResumeRunContext(run, NoWorkspace(), resume_attempt_number=request.id.attempt - 1))
            else:
                launcher.launch_run(LaunchRunContext(run, NoWorkspace()))
        except Failure:
            raise
        except Exception as e:
            log_traceback(e)
            if nothing_sent(e):
                self.mark(request, f"refused {put()}")
                raise Failure("UNAVAILABLE", f"{name} cannot reach its service, and nothing was sent: {in_one_line(e)}") from e
            if is_connection(e):
                raise Failure("UNAVAILABLE", f"{name} lost the connection to its service: {in_one_line(e)}") from e
            raise Failure("INVALID_ARGUMENT", f"{name} could not launch the run: {in_one_line(e)}") from e
        self.mark(request, f"done {put()}")
        return self.launched(request)

    def launched(self, request):
        tags = self.run(request.id).tags
        return pb.Launched(handle=worker_name(request.id), tags={k: tags[k] for k in keys_in(tags.get(TAG, "")) if k in tags})

    def find(self, request, context):
        """Returns what Launch returned for this request, or None if the request has no worker.

        Also returns None while launch_run is running; then Launch joins that call. Raises an error if
        the outcome of launch_run is unknown.
        """
        run, name = self.run(request.id), self.name_of_class
        attempt, _, state = run.tags.get(TAG, "0 ").partition(" ")
        if int(attempt) != request.id.attempt:
            return None
        state, _, rest = state.partition(" ")
        if state == "done":
            return self.launched(request)
        waits = run.status in (DagsterRunStatus.STARTING, DagsterRunStatus.CANCELING) or state == "refused" and request.resume
        if not waits:
            return self.launched(request)
        goes_on = self.goes_on(request)
        if not goes_on and self.sees(run, context):
            return self.launched(request)
        if state == "refused":
            return None
        late = time.time() - float(rest) >= self.start_timeout
        if goes_on and late:
            raise GivenUp(f"launch_run of {name} has not returned within {self.start_timeout} s")
        if goes_on:
            return None
        text = f"launch_run of {name} began, and it is not known how it ended"
        if late:
            raise GivenUp(f"{text}; no worker has reported itself within {self.start_timeout} s, and it is not called a second time")
        raise Failure("UNAVAILABLE", f"{text}; a worker that it started may still report itself")

    def sees(self, run, context):
        """Reports whether the class knows a worker of the run. False if the class cannot be asked."""
        try:
            return self.health(run, context).status in ("Running", "Succeeded", "Failed")
        except Exception as e:
            log_traceback(e)
            return False

    def Find(self, request, context):
        try:
            found = self.find(request, context)
        except GivenUp:
            found = None  # launch_run will not be called again, so a run that was canceled may end
        else:
            if found is None and self.goes_on(request):
                raise self.not_returned()
        return pb.FindReply(found=found is not None, launched=found)

    def Terminate(self, request, context):
        id = parse_name(request.handle)
        run = id and self.instance.get_run_by_id(id.run)
        if not run or run.is_finished or not self.of(run, id):
            return pb.TerminateReply(stopped=False)
        # Classes wait for the worker's end, but the caller must not wait.
        call = self.join(("terminate", id.run), lambda: self.made().terminate(id.run), context)
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
        health = self.health(run, context)
        # Read the run again: if the worker ended during the check, the answer is about an ended run.
        run = self.instance.get_run_by_id(id.run)
        if run and run.is_finished:
            ok = run.status == DagsterRunStatus.SUCCESS
            return pb.HealthReply(status="Succeeded" if ok else "Failed", message=f"the run is {run.status.value}")
        if run and run.status == DagsterRunStatus.STARTING and health.status == "Unknown":
            # Classes answer UNKNOWN about a worker that waits: the start timeout applies, as in Dagster.
            health.status = "Starting"
        return health

    def health(self, run, context):
        if not self.made().supports_check_run_worker_health:
            return pb.HealthReply(status="Unknown", message=f"{self.name_of_class} cannot check its workers")
        got = self.ask("check_run_worker_health", run, context)
        status = {
            WorkerStatus.RUNNING: "Running",
            WorkerStatus.SUCCESS: "Succeeded",
            WorkerStatus.NOT_FOUND: "NotFound",
            WorkerStatus.FAILED: "Unknown" if got.transient else "Failed",
        }.get(got.status, "Unknown")
        reply = pb.HealthReply(status=status, message=in_one_line(got.msg or ""), incarnation=got.run_worker_id or "")
        if status == "Failed":
            reply.cause = "unknown"
        return reply

    def Describe(self, request, context):
        id = parse_name(request.handle)
        run = id and self.instance.get_run_by_id(id.run)
        if not run:
            raise Failure("NOT_FOUND", "there is no such run")
        method, logs = "get_run_worker_debug_info", "include_container_logs"
        takes = inspect.signature(getattr(self.made(), method)).parameters
        info = self.ask(method, run, context, **({logs: request.logs} if logs in takes else {}))
        try:
            info = json.loads(info)
        except (TypeError, ValueError):
            pass  # a text for people, or not a text at all
        if not isinstance(info, dict):
            info = {"debug_info": info}
        return pb.JSON(json=json.dumps(info, default=str).encode())

    def Check(self, request, context):
        reply = pb.CheckReply()
        try:
            c = self.made()
        except Failure as e:
            reply.findings.add(what=str(e), fix="start the service, or mend the settings that say where it is")
            return reply
        can = [
            what
            for what, ok in (
                ("check its workers", c.supports_check_run_worker_health),
                ("resume runs", c.supports_resume_run),
            )
            if ok
        ]
        reply.findings.add(
            ok=True,
            what=f"{type(c).__name__} is loaded with Dagster {dagster.__version__}; it can "
            + (" and ".join(can) or "launch and terminate only"),
        )
        return reply


class GivenUp(Failure):
    """The outcome of a launch is unknown, and its time has expired."""

    def __init__(self, text):
        super().__init__("INVALID_ARGUMENT", text)


def keys_in(mark):
    """Returns the tags that launch_run put on the run, from a value of TAG."""
    _, _, keys = mark.partition("[")
    return json.loads("[" + keys) if keys else []


def launch_of(request):
    """Returns the subject of a call of launch_run."""
    return "launch_run", request.id.run, request.id.attempt


class Call:
    """A call of the class in its own thread, because it may last longer than the callers wait."""

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
    """Returns the path of a setting, and Dagster's description of the problem."""
    names = [e.field_name for e in error.stack.entries if hasattr(e, "field_name")]
    return ".".join(["config", *names]), in_one_line(error.message)


def main():
    serve(Host())
