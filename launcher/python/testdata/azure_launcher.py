"""A launcher such as guides to run launchers show one: container groups by Azure's SDK, with its credential from the environment."""

import json
import logging

from azure.core.exceptions import ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from azure.mgmt.containerinstance import ContainerInstanceManagementClient
from azure.mgmt.containerinstance.models import (
    Container,
    ContainerGroup,
    EnvironmentVariable,
    ResourceRequests,
    ResourceRequirements,
)
from dagster import Field, Float, Map, StringSource
from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.launcher.base import CheckRunHealthResult, RunLauncher, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass


class AzureContainerInstanceRunLauncher(RunLauncher, ConfigurableClass):
    def __init__(self, resource_group, subscription_id, image, cpu=1.0, memory=1.0, environment_variables=None, inst_data=None):
        self.resource_group, self.image, self.cpu, self.memory = resource_group, image, cpu, memory
        self.environment_variables = environment_variables or {}
        self._inst_data = inst_data
        self._logger = logging.getLogger(__name__)
        self.client = ContainerInstanceManagementClient(DefaultAzureCredential(), subscription_id)
        super().__init__()

    @property
    def inst_data(self):
        return self._inst_data

    @classmethod
    def config_type(cls):
        return {
            "resource_group": StringSource,
            "subscription_id": StringSource,
            "image": StringSource,
            "cpu": Field(Float, default_value=1.0),
            "memory": Field(Float, default_value=1.0),
            "environment_variables": Field(Map(str, str), is_required=False),
        }

    @classmethod
    def from_config_value(cls, inst_data, config_value):
        return cls(inst_data=inst_data, **config_value)

    def launch_run(self, context):
        run = context.dagster_run
        name = f"dagster-run-{run.run_id}"
        args = ExecuteRunArgs(job_origin=context.job_code_origin, run_id=run.run_id, instance_ref=self._instance.get_ref())
        group = ContainerGroup(
            location="eastus",
            containers=[
                Container(
                    name=name,
                    image=self.image,
                    command=args.get_command_args(),
                    resources=ResourceRequirements(requests=ResourceRequests(cpu=self.cpu, memory_in_gb=self.memory)),
                    environment_variables=[EnvironmentVariable(name=k, value=v) for k, v in self.environment_variables.items()],
                )
            ],
            os_type="Linux",
            restart_policy="Never",
            tags={"dagster-run-id": run.run_id},
        )
        try:
            self.client.container_groups.begin_create_or_update(self.resource_group, name, group)
        except Exception as e:
            raise DagsterLaunchFailedError(f"Failed to launch run {run.run_id}: {e}") from e
        self._logger.info("Launched run %s in container group %s", run.run_id, name)

    def terminate(self, run_id):
        name = f"dagster-run-{run_id}"
        try:
            group = self.client.container_groups.get(self.resource_group, name)
        except ResourceNotFoundError:
            return False
        if group.instance_view.state in ("Succeeded", "Failed", "Stopped"):
            return False
        self.client.container_groups.begin_delete(self.resource_group, name)
        return True

    @property
    def supports_check_run_worker_health(self):
        return True

    def check_run_worker_health(self, run):
        try:
            group = self.client.container_groups.get(self.resource_group, f"dagster-run-{run.run_id}")
        except ResourceNotFoundError:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND)
        status = {
            "Running": WorkerStatus.RUNNING,
            "Succeeded": WorkerStatus.SUCCESS,
            "Failed": WorkerStatus.FAILED,
        }.get(group.instance_view.state, WorkerStatus.UNKNOWN)
        return CheckRunHealthResult(status, msg=f"the container group is {group.instance_view.state}")

    def get_run_worker_debug_info(self, run):
        group = self.client.container_groups.get(self.resource_group, f"dagster-run-{run.run_id}")
        return json.dumps({"container_state": group.instance_view.state})
