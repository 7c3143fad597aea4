"""Train in several processes, each with its part of each batch.

Gradients are averaged by PyTorch's DistributedDataParallel, and its elastic launcher, which is also
behind `torchrun`, starts and watches the processes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lowrank.config.training import TrainingSettings
from lowrank.core.copies import copy_count
from lowrank.errors import UserError
from lowrank.training.gpu_claim import GPUS_VARIABLE, claimed_gpu, claimed_gpus
from lowrank.training.hardware import device_type

# The first process may measure the network on a large split while the others wait for it. The
# launcher notices a process that has ended, so a wait needs no short limit.
_LONGEST_WAIT = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """The processes of a training run, seen from one of them: its `index` from 0, and `count`."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """True in the process that measures the network and writes files."""
        return self.index == 0

    def averaging(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose backward pass averages the gradients over all processes.

        It shares its parameters with `network`. Call this again after parameters were frozen.
        """
        if self.count == 1:
            return network
        # A different memory layout of small gradients costs little and changes no result.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Some networks have parameters that do not affect their outputs.
        return DistributedDataParallel(
            network,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=True,
        )

    def highest(self, number: int) -> int:
        """Return the largest `number` of all processes."""
        if self.count == 1:
            return number
        # On the CPU, so that this does not wait for the steps that a GPU still computes.
        value = torch.tensor(number)
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return int(value)

    def gathered(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the `numbers` of each process, in the order of the processes."""
        if self.count == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.count)]
        distributed.all_gather(rows, mine)
        return [row.tolist() for row in rows]


ONE_PROCESS = Processes()


def process_count(settings: TrainingSettings) -> int:
    """Return the number of processes that `settings` ask for; 1 without training.

    `auto` is one for each GPU that this process can see, as far as they divide the batch evenly,
    and 1 without a GPU. Raises UserError if there are fewer GPUs than processes.
    """
    if not settings.trains:
        return 1
    gpus = torch.cuda.device_count() if device_type(settings.device) == "cuda" else 0
    if settings.processes == "auto":
        return max((n for n in range(1, gpus + 1) if settings.batch_size % n == 0), default=1)
    if 0 < gpus < settings.processes:
        raise UserError(
            f"`processes` is {settings.processes}, but this job sees {gpus} GPUs, and each process "
            "needs one. Lower `processes`, set it to `auto`, or ask for more GPUs."
        )
    return settings.processes


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the other copies of this process, if there are any, until the end of the block.

    `device` is the setting of that name.
    """
    if copy_count() == 1:
        yield ONE_PROCESS
        return
    backend = "gloo"
    if device_type(device) == "cuda":
        torch.cuda.set_device(claimed_gpu())
        # Each kind of memory has its own backend.
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def run_copies(command: Sequence[str], count: int, device: str) -> None:
    """Run `command` in `count` processes, which find each other with `joined`.

    If one of them fails, or this process receives a signal, all end.

    Raises
    ------
    UserError
        If a process was killed.
    SystemExit
        If a process failed, with its status, or after a signal. That process has printed why.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if device_type(device) == "cuda":
        os.environ[GPUS_VARIABLE] = ",".join(map(str, claimed_gpus(count)))
    _silence_launcher()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        # The name of the machine may not resolve.
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except SignalException:
        sys.exit(130)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        _fail(number, failure.exitcode, count)


def _fail(number: int, status: int, count: int) -> NoReturn:
    if status > 0:
        sys.exit(status)
    raise UserError(
        f"process {number + 1} of {count} was ended by {signal.Signals(-status).name}, often "
        "because the machine has too little memory. Lower `processes` or `batch_size`, or run the "
        "same command again to continue from the saved state."
    )


def _silence_launcher() -> None:
    """Hide the launcher's own report of a failure: the process that failed has reported it."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
