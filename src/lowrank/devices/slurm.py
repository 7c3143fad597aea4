"""Measure on a node of a Slurm cluster, in the job that runs the step."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from lowrank.devices.device import DeviceError
from lowrank.devices.kind import DeviceKind
from lowrank.devices.local import LocalDevice
from lowrank.devices.measure_settings import setting

# Slurm sets this variable in every job.
_JOB = "SLURM_JOB_ID"


@dataclasses.dataclass(frozen=True)
class SlurmSettings:
    """Which nodes of a cluster are the device."""

    constraint: str = setting(
        "Feature of the nodes, as for `sbatch --constraint`. All nodes with it must have the same "
        "processor. Empty: any node.",
        default="",
    )
    partition: str = setting(
        "Partition of the nodes. Empty: the partition of all other jobs.", default=""
    )

    def job_resources(self) -> dict[str, str]:
        """Return the resources of a job on these nodes, as the executor for Slurm names them."""
        resources = {"constraint": self.constraint, "slurm_partition": self.partition}
        return {name: value for name, value in resources.items() if value}


class SlurmDevice(LocalDevice):
    """A device that runs models on the node of the current Slurm job.

    It is created as `DeviceKind.create_device` says. Raises DeviceError outside a Slurm job.
    """

    def __init__(self, name: str, settings: dict[str, Any], own: SlurmSettings) -> None:
        if not os.environ.get(_JOB):
            raise DeviceError(
                f"device '{name}' is a node of a Slurm cluster, and this step does not run in a "
                "Slurm job. Run the workflow with `snakemake --profile profiles/slurm`, or set "
                "`kind: local` to measure on this machine."
            )
        super().__init__(name, settings, own)


ENTRIES = (
    DeviceKind(
        "slurm",
        "a node of a Slurm cluster; jobs that measure have the node for themselves.",
        create_device=SlurmDevice,
        settings=SlurmSettings,
    ),
)
