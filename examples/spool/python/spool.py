"""A launcher for Slipway. Its target is the program spool beside it, a small batch system that keeps
each worker in a separate folder.

To try it: slipway launchers test --no-mtls --config settings.yaml -- python3 spool.py
"""

import json
import os
import subprocess
from datetime import datetime

from slipway_launcher import Failure, Launcher, check, micros, parse_name, pb, serve, worker_name

# The meaning of the program's exit codes for Slipway. With any other code the outcome is unknown:
# Slipway asks again with the same name.
EXITS = {64: "INVALID_ARGUMENT", 66: "NOT_FOUND", 73: "RESOURCE_EXHAUSTED", 75: "UNAVAILABLE", 77: "PERMISSION_DENIED"}


class Spool(Launcher):
    name = "spool"
    help = "Run workers as processes that a spool folder keeps."
    settings = (
        pb.Setting(name="program", type="text", help="The program; default: the one beside this file."),
        pb.Setting(name="folder", type="text", required=True, help="The spool folder."),
    )
    # The promises of the target, which the kit tests.
    traits = pb.Traits(unique=True, strong_read=True, local_files=True, signals_worker=True, gate=True)

    def setup(self, config, folder):
        self.program = config.get("program") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "spool")
        self.folder = config["folder"]
        if not os.access(self.program, os.X_OK):
            raise Failure("INVALID_ARGUMENT", "no program", problems=[("program", f"{self.program} is not a program")])

    def spool(self, *args, env=(), cwd=None):
        """Runs the program and returns its decoded output."""
        env = {**os.environ, **dict(env), "SPOOL": self.folder}
        done = subprocess.run([self.program, *args], env=env, cwd=cwd, capture_output=True, text=True)
        if done.returncode in EXITS:
            raise Failure(EXITS[done.returncode], done.stderr.strip())
        if done.returncode:
            raise RuntimeError(f"spool: exit code {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout or "null")

    def Launch(self, request, context):
        check(request)
        name = worker_name(request.id)
        labels = [f"{k}={v}" for k, v in request.labels.items()]
        env = [(e.name, e.value) for e in request.env]
        self.spool("launch", name, request.instance, *labels, "--", *request.command, env=env, cwd=request.dir or None)
        return pb.Launched(handle=name)

    def Terminate(self, request, context):
        try:
            out = self.spool("terminate", request.handle, str(request.grace_us / 1e6))
        except Failure as e:
            if e.code.name != "NOT_FOUND":
                raise
            return pb.TerminateReply(stopped=False)
        return pb.TerminateReply(stopped=(out or {}).get("stopped", True))

    def Health(self, request, context):
        try:
            return health(self.spool("health", request.handle))
        except Failure as e:
            if e.code.name != "NOT_FOUND":
                raise
            return pb.HealthReply(status="NotFound")

    def List(self, request, context):
        for worker in self.spool("list", request.instance):
            id = parse_name(worker.pop("name"))
            if id and (request.all_runs or id.run in request.runs):
                yield pb.Worker(id=id, instance=request.instance, handle=worker_name(id), health=health(worker))

    def Logs(self, request, context):
        self.spool("health", request.handle)  # raises if there is no such worker
        args = [self.program, "logs", request.handle, str(request.tail), "true" if request.follow else "false"]
        process = subprocess.Popen(args, env={**os.environ, "SPOOL": self.folder}, stdout=subprocess.PIPE)
        context.add_callback(process.kill)  # when the caller stops reading
        with process:
            while data := process.stdout.read1(65536):
                yield pb.LogsChunk(data=data)

    def Remove(self, request, context):
        try:
            self.spool("remove", request.handle)
        except Failure as e:
            if e.code.name != "NOT_FOUND":
                raise
        return pb.RemoveReply()


def health(said):
    """The contract's health of what the program says."""
    for key in ("started", "ended"):
        if key in said:
            at = datetime.fromisoformat(said.pop(key).replace("Z", "+00:00"))
            said[key + "_us"] = micros(at.timestamp())
    return pb.HealthReply(**said)


if __name__ == "__main__":
    serve(Spool())
