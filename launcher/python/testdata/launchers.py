"""RunLauncher classes for the tests of the host. What they were asked stands in the file that their config names."""

import json
import os
import socket
import time

from dagster import Field, IntSource, StringSource
from dagster._core.launcher.base import CheckRunHealthResult, RunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClass


class Recorder(RunLauncher, ConfigurableClass):
    def __init__(self, log, fails="", status="RUNNING", slots=1, inst_data=None):
        self.log, self.fails, self.status, self.slots = log, fails, status, slots
        self._inst_data = inst_data
        super().__init__()

    @property
    def inst_data(self):
        return self._inst_data

    @classmethod
    def config_type(cls):
        return {
            "log": StringSource,
            "fails": Field(str, is_required=False),
            "status": Field(str, is_required=False),
            "slots": Field(IntSource, is_required=False),
        }

    @classmethod
    def from_config_value(cls, inst_data, config_value):
        return cls(inst_data=inst_data, **config_value)

    def wrote(self, **what):
        with open(self.log, "a", encoding="utf-8") as f:
            f.write(json.dumps(what) + "\n")

    def launch_run(self, context):
        run = context.dagster_run
        self.wrote(
            asked="launch",
            run=run.run_id,
            status=run.status.value,
            python=context.job_code_origin.repository_origin.executable_path,
            instance=self._instance.root_directory,
            launcher=type(self._instance.run_launcher).__name__,
        )
        print("launching", run.run_id)
        match self.fails:
            case "user":
                raise ValueError("no such queue")
            case "connection":
                raise ConnectionResetError("the scheduler hung up")
            case "refused":
                with socket.socket() as nobody:
                    nobody.bind(("127.0.0.1", 0))
                    try:
                        socket.create_connection(nobody.getsockname())
                    except OSError as e:
                        raise RuntimeError("no scheduler\n" + 3000 * ".") from e
            case "name":
                raise OSError("no scheduler") from socket.gaierror(-2, "Name or service not known")
            case "socket":
                raise ConnectionError("Connection aborted.", FileNotFoundError(2, "No such file or directory"))
            case "retried":  # the first request was sent; the second was refused
                try:
                    raise ConnectionResetError("the scheduler hung up")
                except ConnectionResetError:
                    raise ConnectionRefusedError("the scheduler is gone")  # noqa: B904
            case "workspace":
                context.workspace.get_code_location("etl")
            case "dies":
                os._exit(9)
            case "slow":
                while not os.path.exists(self.log + ".go"):
                    time.sleep(0.05)

    def resume_run(self, context):
        self.wrote(asked="resume", run=context.dagster_run.run_id, attempt=context.resume_attempt_number)

    def terminate(self, run_id):
        self.wrote(asked="terminate", run=run_id)
        return True

    @property
    def supports_resume_run(self):
        return self.fails != "resume"

    @property
    def supports_check_run_worker_health(self):
        return self.status != ""

    def check_run_worker_health(self, run):
        return CheckRunHealthResult(WorkerStatus[self.status], msg="as told", run_worker_id="w1")

    def get_run_worker_debug_info(self, run, include_container_logs=True):
        return f"run {run.run_id}, logs {include_container_logs}"

    def dispose(self):
        self.wrote(asked="dispose")


class Guided(Recorder):
    """Has the signature of Dagster's guide, and answers with JSON."""

    def get_run_worker_debug_info(self, run):
        return json.dumps({"container_state": "Failed", "events": [{"reason": "Pulled"}]})


class Unwell(Recorder):
    """Launches, but its service cannot be asked about workers."""

    def check_run_worker_health(self, run):
        raise RuntimeError("no scheduler") from ConnectionRefusedError("refused")


class Refuses(Recorder):
    @classmethod
    def from_config_value(cls, inst_data, config_value):
        raise RuntimeError("the licence has ended")


class NotALauncher:
    pass
