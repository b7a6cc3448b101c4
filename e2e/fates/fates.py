"""Jobs that end in every way a run can end, for the end-to-end tests."""

import inspect
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


@dg.op
def fail():
    raise ValueError("as it should")


@dg.job
def fails():
    fail()


@dg.op(retry_policy=dg.RetryPolicy(max_retries=1))
def flaky(context):
    if context.retry_number == 0:
        raise ValueError("not yet")


@dg.job
def retries():
    flaky()


# Pools were called concurrency keys before Dagster 1.10.
POOL = {"pool": "warehouse"} if "pool" in inspect.signature(dg.asset).parameters else {"op_tags": {"dagster/concurrency_key": "warehouse"}}


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]), **POOL)
def rows():
    time.sleep(0.2)


load_rows = dg.define_asset_job("load_rows", selection=[rows])

defs = dg.Definitions(
    assets=[rows],
    jobs=[kills_itself, light, waits, fails, retries, load_rows],
    executor=dg.in_process_executor,
)
