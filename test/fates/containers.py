"""Jobs for workers in containers."""

import dagster as dg
from dagster_docker import docker_executor


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


@dg.job(executor_def=docker_executor)
def in_steps():
    there(where())


defs = dg.Definitions(jobs=[eats, in_steps])
