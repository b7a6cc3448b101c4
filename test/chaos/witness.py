"""The job of Dagster's own workers within chaos: it writes down when it begins and ends, and whether another worker is at it."""

import os
import time

import dagster as dg


def alive(pid):
    """Whether a process runs, as far as one of the same machine can see."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return b"execute_run" in f.read()
    except OSError:
        return False


@dg.op(config_schema={"file": str, "seconds": float})
def only(context):
    file = context.op_config["file"]
    if os.path.exists(file):
        with open(file, encoding="utf-8") as f:
            last = f.read().split("\n")[-2].split()
        # In a container, where processes are numbered anew, an earlier worker may have had this number.
        if last[0] == "begin" and int(last[1]) != os.getpid() and alive(int(last[1])):
            with open(file, "a", encoding="utf-8") as f:
                f.write(f"beside {last[1]}\n")
    with open(file, "a", encoding="utf-8") as f:
        f.write(f"begin {os.getpid()}\n")
    time.sleep(context.op_config["seconds"])
    with open(file, "a", encoding="utf-8") as f:
        f.write("end\n")


@dg.job(executor_def=dg.in_process_executor)
def command_job():
    only()
