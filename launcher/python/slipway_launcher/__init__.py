"""Serves a launcher to Slipway: the contract of proto/launcher/launcher.proto. Needs grpcio and protobuf.

A launcher is a gRPC servicer with the contract's methods. They receive and return its messages:

    from slipway_launcher import Failure, Launcher, pb, serve

    class Mine(Launcher):
        name = "mine"

        def Launch(self, request, context):
            return pb.Launched(handle=...)
        ...

    serve(Mine())

Methods are called from several threads at once. What they print and log appears in Slipway's log.
"""

import atexit
import concurrent.futures
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

log = logging.getLogger("slipway_launcher")

CONTRACT = 1  # the version of the contract
CALLS = 64  # maximum calls at once; Watch, and Logs with follow, each occupy one until they end

_PACKAGE = "slipway.launcher.v1."


def _load():
    """Reads the contract into a separate pool, so that generated code of the same names cannot clash."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    with open(os.path.join(os.path.dirname(__file__), "contract.binpb"), "rb") as f:
        for file in descriptor_pb2.FileDescriptorSet.FromString(f.read()).file:
            pool.AddSerializedFile(file.SerializeToString())
    return pool


_pool = _load()


class _Messages:
    """The contract's messages, as attributes: pb.HealthReply(status="Running")."""

    def __getattr__(self, name):
        try:
            descriptor = _pool.FindMessageTypeByName(_PACKAGE + name)
        except KeyError:
            raise AttributeError(f"the contract has no message {name}") from None
        if hasattr(message_factory, "GetMessageClass"):
            cls = message_factory.GetMessageClass(descriptor)
        else:  # protobuf before 4.22
            cls = message_factory.MessageFactory(_pool).GetPrototype(descriptor)
        setattr(self, name, cls)
        return cls


pb = _Messages()
_service = _pool.FindServiceByName(_PACKAGE + "Launcher")
_streams = {"List", "Watch", "Logs"}  # methods that yield


class Failure(Exception):
    """An error with one of the contract's codes.

    After any other exception the outcome of a Launch is unknown.
    """

    def __init__(self, code, text, cause="", retry_after=0.0, problems=()):
        """code is the name of a gRPC status code. problems are pairs (setting, text), for errors of Open."""
        super().__init__(text)
        self.code = grpc.StatusCode[code]
        self.detail = pb.ErrorDetail(cause=cause, retry_after_us=int(retry_after * 1e6))
        for setting, problem in problems:
            self.detail.problems.add(setting=setting, text=problem)

    def trailer(self):
        status = pb.Status(code=self.code.value[0], message=str(self))
        status.details.add(
            type_url="type.googleapis.com/" + self.detail.DESCRIPTOR.full_name,
            value=self.detail.SerializeToString(),
        )
        return (("grpc-status-details-bin", status.SerializeToString()),)


class Launcher:
    """The base class of a launcher: declares it, and opens it with the settings of slipway.yaml."""

    name = ""
    help = ""
    settings = ()  # pb.Setting; those of another name are refused
    traits = pb.Traits()

    def setup(self, config, folder):
        """Takes the settings as a dict, and the path of a folder for this launcher alone.

        The folder may not exist yet.
        """

    def close(self):
        """Ends the launcher in this process. Workers are not affected."""

    def Declare(self, request, context):
        return pb.Declaration(
            name=self.name,
            help=self.help,
            settings=self.settings,
            traits=self.traits,
            contract=CONTRACT,
        )

    def Open(self, request, context):
        config = json.loads(request.config or b"null") or {}
        known = {s.name for s in self.settings}
        problems = [(name, f"unknown setting; there are {sorted(known)}") for name in config if name not in known]
        problems += [(s.name, "a value is needed") for s in self.settings if s.required and s.name not in config]
        if problems:
            raise Failure("INVALID_ARGUMENT", "the settings are wrong", problems=problems)
        for s in self.settings:
            if s.default_value:
                config.setdefault(s.name, s.default_value)
        self.setup(config, request.dir)
        optional = {
            "Find": "find",
            "List": "list",
            "Watch": "watch",
            "HealthOf": "batch",
            "Remove": "remove",
            "Logs": "logs",
            "Describe": "describe",
            "Preview": "preview",
            "Check": "check",
            "Free": "capacity",
            "Adopt": "adopt",
        }
        return pb.OpenReply(
            abilities=[a for method, a in optional.items() if hasattr(self, method)],
            traits=self.traits,
        )


def serve(launcher):
    """Serves a launcher to the Slipway that started this program.

    Returns when Slipway is gone or asks for it.
    """
    if os.environ.get("SLIPWAY_LAUNCHER") != "contract":
        sys.exit("This program is a launcher for Slipway, which starts it; to try it: slipway launchers test --no-mtls -- COMMAND")
    if os.environ.get("PLUGIN_CLIENT_CERT"):
        sys.exit("mtls: false is needed in slipway.yaml: this program does not know go-plugin's certificates")
    _log_to_slipway()
    folder = tempfile.mkdtemp(prefix="slipway-", dir=os.environ.get("PLUGIN_UNIX_SOCKET_DIR") or None)
    atexit.register(shutil.rmtree, folder, True)
    ended = threading.Event()
    # Streams without a reader must not block other calls.
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(CALLS),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(_service.full_name, {m.name: _handler(launcher, m) for m in _service.methods}),
            # go-plugin sends messages without fields, and expects the answer "serving".
            grpc.method_handlers_generic_handler(
                "grpc.health.v1.Health",
                {"Check": grpc.unary_unary_rpc_method_handler(lambda r, c: b"\x08\x01")},
            ),
            grpc.method_handlers_generic_handler(
                "plugin.GRPCController",
                {"Shutdown": grpc.unary_unary_rpc_method_handler(lambda r, c: ended.set() or b"")},
            ),
        )
    )
    path = os.path.join(folder, "socket")
    server.add_insecure_port("unix:" + path)
    server.start()
    os.write(1, f"{CONTRACT}|{CONTRACT}|unix|{path}|grpc\n".encode())
    os.dup2(2, 1)  # whatever prints, prints to the log
    sys.stdout.reconfigure(line_buffering=True)
    parent = os.getppid()
    while os.getppid() == parent and not ended.wait(1):
        pass
    server.stop(grace=1).wait()
    launcher.close()


def _handler(launcher, method):
    f = getattr(launcher, method.name, None)
    stream = method.name in _streams

    def call(request, context):
        if f is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"this launcher has no {method.name}")
        try:
            return f(request, context)
        except Exception as e:
            _fail(context, e)

    def calls(request, context):
        try:
            yield from call(request, context)
        except Exception as e:
            _fail(context, e)

    kind = grpc.unary_stream_rpc_method_handler if stream else grpc.unary_unary_rpc_method_handler
    request = getattr(pb, method.input_type.name)
    return kind(
        calls if stream else call,
        request_deserializer=request.FromString,
        response_serializer=lambda m: m.SerializeToString(),
    )


def _fail(context, e):
    if context.code() is not None:  # aborted already
        raise e
    if isinstance(e, Failure):
        context.set_trailing_metadata(e.trailer())
        context.abort(e.code, str(e))
    log_traceback(e)
    context.abort(grpc.StatusCode.UNKNOWN, in_one_line(e))


MAX_LINE = 1000  # characters


def in_one_line(e):
    """Returns an exception, as type and text, or a text, in one line of limited length.

    It leaves out the stack that Dagster appends.
    """
    text = f"{type(e).__name__}: {e}" if isinstance(e, BaseException) else str(e)
    text = " ".join(re.split(r"\s*Stack Trace:\s", text, maxsplit=1)[0].split())
    return text if len(text) <= MAX_LINE else text[:MAX_LINE] + "…"


_logged = set()  # tracebacks, each as the exception's type and its lines of code


def log_traceback(e):
    """Logs once, at debug level, where an exception comes from. Slipway logs its text each time."""
    where = type(e), tuple((f.filename, f.lineno) for f in traceback.extract_tb(e.__traceback__))
    if where not in _logged:
        _logged.add(where)
        log.debug("%s", "".join(traceback.format_exception(type(e), e, e.__traceback__)).rstrip())


class _Lines(logging.Formatter):
    """Formats records as JSON lines, so that Slipway reads their level."""

    def format(self, record):
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        level = {"WARNING": "warn", "CRITICAL": "error"}.get(record.levelname, record.levelname.lower())
        return json.dumps({"@level": level, "@message": text, "logger": record.name})


def _log_to_slipway():
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    log.setLevel(logging.DEBUG)


def check(request):
    """Refuses a request that no launcher could accept."""
    if not re.fullmatch("[a-z0-9]([-a-z0-9]{0,43}[a-z0-9])?", request.id.run) or not 1 <= request.id.attempt <= 9999:
        raise Failure("INVALID_ARGUMENT", f"run ID {request.id.run!r} with attempt {request.id.attempt} cannot name a worker")
    if not request.command or not request.instance:
        raise Failure("INVALID_ARGUMENT", f"the request for {worker_name(request.id)} has no command or no instance")


_ID = re.compile(r"dagster-run-(.+)-(\d+)")


def worker_name(id):
    """Returns the default name of a worker on its target. parse_name parses it."""
    return f"dagster-run-{id.run}-{id.attempt}"


def parse_name(name):
    """Returns the ID in a name that worker_name made, or None."""
    m = _ID.fullmatch(name)
    return pb.ID(run=m[1], attempt=int(m[2])) if m else None


def micros(seconds):
    """Converts seconds to the contract's microseconds."""
    return int(seconds * 1_000_000)


def now():
    return micros(time.time())
