"""Jobs that end in every way a run can end, for the end-to-end tests."""

import inspect
import os
import signal
import subprocess
import time

import dagster as dg
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepDelegatingExecutor, StepHandler


@dg.op
def kill_worker(context):
    os.kill(os.getpid(), signal.SIGKILL)


@dg.job
def kills_itself():
    kill_worker()


@dg.op(config_schema={"file": str})
def first_step(context):
    with open(context.op_config["file"], "a", encoding="utf-8") as f:
        f.write("first ")
    return "made in another process"


@dg.op(config_schema={"file": str})
def second_step(context, made):
    with open(context.op_config["file"], "a", encoding="utf-8") as f:
        f.write("second, with what was " + made)


@dg.op(config_schema={"file": str})
def once(context, made):
    if not os.path.exists(context.op_config["file"] + ".died"):
        open(context.op_config["file"] + ".died", "w", encoding="utf-8").close()
        os.kill(os.getpid(), signal.SIGKILL)


@dg.job
def dies_once():
    once(first_step())


class StepProcesses(StepHandler):
    """Each step in a process that outlives the worker. The worker kills itself after it has launched the second one, once."""

    name = "StepProcesses"

    def launch_step(self, step_handler_context):
        args = step_handler_context.execute_step_args
        died = os.path.join(os.environ["DAGSTER_HOME"], args.run_id + ".died")
        subprocess.Popen(args.get_command_args(), start_new_session=True)
        if args.step_keys_to_execute == ["second_step"] and not os.path.exists(died):
            open(died, "w", encoding="utf-8").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return iter(())

    def check_step_health(self, step_handler_context):
        return CheckStepHealthResult.healthy()

    def terminate_step(self, step_handler_context):
        return iter(())


@dg.executor(requirements=dg.multiple_process_executor_requirements())
def step_processes(context):
    return StepDelegatingExecutor(StepProcesses(), retries=RetryMode.DISABLED, check_step_health_interval_seconds=1)


@dg.job(executor_def=step_processes)
def dies_in_the_middle():
    second_step(first_step())


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c", "d"]))
def waits_for_ever(context):
    while True:
        time.sleep(0.05)


long_rows = dg.define_asset_job("long_rows", selection=[waits_for_ever])


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
    assets=[rows, waits_for_ever],
    jobs=[kills_itself, light, waits, fails, retries, load_rows, dies_in_the_middle, dies_once, long_rows],
    executor=dg.in_process_executor,
)
