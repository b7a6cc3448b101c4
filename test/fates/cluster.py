"""Jobs for workers in a Kubernetes cluster."""

import time

import dagster as dg
from dagster_k8s import k8s_job_executor


@dg.op
def eat():
    eaten = []
    while True:
        eaten.append(bytearray(10_000_000))


@dg.job(executor_def=dg.in_process_executor)
def eats():
    eat()


@dg.op
def where():
    with open("/proc/sys/kernel/hostname", encoding="utf-8") as f:
        return f.read()


@dg.op
def there(context, first):
    context.log.info(f"after {first}")


@dg.job(executor_def=k8s_job_executor)
def in_steps():
    there(where())


@dg.op
def for_ever():
    while True:
        time.sleep(0.05)


@dg.job(executor_def=k8s_job_executor)
def step_for_ever():
    for_ever()


defs = dg.Definitions(jobs=[eats, in_steps, step_for_ever])
