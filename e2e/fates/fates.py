"""Jobs that end in every way a run can end, for the end-to-end tests."""

import os
import signal
import time

import dagster as dg


@dg.op
def kill_worker(context):
    os.kill(os.getpid(), signal.SIGKILL)


@dg.job
def kills_itself():
    kill_worker()


@dg.op
def quick(context):
    context.log.info("done")


@dg.job
def light():
    quick()


@dg.op(config_schema={"file": str})
def wait_for_file(context):
    while not os.path.exists(context.op_config["file"]):
        time.sleep(0.05)


@dg.job
def waits():
    wait_for_file()


defs = dg.Definitions(jobs=[kills_itself, light, waits], executor=dg.in_process_executor)
