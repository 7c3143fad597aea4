"""Answers for all files in workflow/rules: memory, time, threads and nodes of jobs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

from lowrank.config.device_kinds import DEVICE_KINDS
from lowrank.config.training import TrainingSettings
from lowrank.devices import MeasureSettings
from lowrank.errors import UserError
from lowrank.graph.job_costs import JobCosts
from lowrank.graph.names import Wildcards
from lowrank.graph.rules import Rules, with_signature

# Snakemake passes the number of the attempt, from 1.
Amount = Callable[[Wildcards, int], int]

# Option of `sbatch` for a job that shares its node with no other job.
_WHOLE_NODE = "--exclusive"

# Time of a job that decomposes layers, and of each of them. CP of large layers takes minutes.
_MINUTES_OF_DECOMPOSE, _MINUTES_OF_LAYER = 60, 5

# Attempts after the first, for jobs that continue from a saved state.
_RETRIES = 2


class ResourceRules(Rules):
    """Resources of the rules."""

    def memory(self, work: str) -> Amount:
        """Return the memory of jobs in MB, for a kind of work: `JobCosts.<work>_mb`.

        A repeated job gets that much more for each attempt.
        """

        @with_signature
        def megabytes(wildcards: Wildcards, attempt: int) -> int:
            amount: int = getattr(self._costs(wildcards.model), f"{work}_mb")
            return attempt * amount

        return megabytes

    def decomposing_memory(self, wildcards: Wildcards, attempt: int) -> int:
        """Return the memory of a job that decomposes a layer, in MB.

        With `sequential`, it also runs both networks on images.
        """
        work = "analyzing" if self.graph.is_sequential(wildcards) else "decomposing"
        return self.memory(work)(wildcards, attempt)

    def round_memory(self, wildcards: Wildcards, attempt: int) -> int:
        """Return the memory of a job that decomposes all layers of a round, in MB."""
        layers = self.graph.compress.layers_at_once(wildcards)
        return layers * self.decomposing_memory(wildcards, attempt)

    def decomposing_minutes(self, wildcards: Wildcards, attempt: int) -> int:
        """Return the time of a job that decomposes a layer, in minutes."""
        return attempt * (_MINUTES_OF_DECOMPOSE + self._passing_minutes(wildcards))

    def round_minutes(self, wildcards: Wildcards, attempt: int) -> int:
        """Return the time of a job that decomposes all layers of a round, in minutes."""
        of_layer = _MINUTES_OF_LAYER + self._passing_minutes(wildcards)
        return attempt * (_MINUTES_OF_DECOMPOSE + len(self.graph.layers(wildcards)) * of_layer)

    def _passing_minutes(self, wildcards: Wildcards) -> int:
        """Return the time in which both networks run on images for one layer, if sequential."""
        compress = self.graph.compress
        passes = 2 * compress.sequential_images(wildcards)
        threads = compress.threads_of_decompose(wildcards)
        return self._costs(wildcards.model).passing_minutes(passes, threads)

    def minutes(self, work: str, threads: int | Callable[[Wildcards], int]) -> Amount:
        """Return the time of jobs in minutes, for a kind of work: `JobCosts.<work>_minutes`."""

        @with_signature
        def minutes(wildcards: Wildcards, attempt: int) -> int:
            count = threads(wildcards) if callable(threads) else threads
            amount: int = getattr(self._costs(wildcards.model), f"{work}_minutes")(count)
            return attempt * amount

        return minutes

    def training_memory(self, settings: Callable[[Wildcards], TrainingSettings]) -> Amount:
        """Return the memory of jobs that train with `settings`, in MB."""

        @with_signature
        def megabytes(wildcards: Wildcards, attempt: int) -> int:
            return attempt * self._costs(wildcards.model).training_mb(settings(wildcards))

        return megabytes

    def training_minutes(self, settings: Callable[[Wildcards], TrainingSettings]) -> Amount:
        """Return the time of jobs that train with `settings`, in minutes."""

        @with_signature
        def minutes(wildcards: Wildcards, attempt: int) -> int:
            return attempt * self._costs(wildcards.model).training_minutes(settings(wildcards))

        return minutes

    def training_gpu(
        self, settings: Callable[[Wildcards], TrainingSettings]
    ) -> Callable[[Wildcards], int | None]:
        """Return the number of GPUs of jobs that train with `settings`; None for `auto` and `cpu`.

        With `auto`, a job uses a GPU if the cluster gives it one.
        """

        @with_signature
        def gpus(wildcards: Wildcards) -> int | None:
            training = settings(wildcards)
            if training.device in ("auto", "cpu"):
                return None
            return 1 if training.processes == "auto" else training.processes

        return gpus

    def measuring_gpu(
        self, device: Callable[[Wildcards], str]
    ) -> Callable[[Wildcards], int | None]:
        """Return the number of GPUs of jobs that measure on `device`: 1 or, as above, None."""

        @with_signature
        def gpus(wildcards: Wildcards) -> int | None:
            return None if device(wildcards) in ("auto", "cpu") else 1

        return gpus

    @functools.cache  # noqa: B019  (There is one graph per process.)
    def _costs(self, model: str) -> JobCosts:
        return JobCosts.of(self.graph.tables.read(model))

    @property
    def training_retries(self) -> int:
        """How often a training job is repeated: on a cluster, a job may be ended at any time.

        On this machine it is not repeated, because the same error would return.
        """
        return _RETRIES if self.graph.on_cluster else 0

    def measuring_threads(self, cores: int) -> Callable[[Wildcards], int]:
        """Return the threads of a job that measures on `{device}`.

        On this machine these are all `cores`, so that no other job of the run disturbs the
        measurement. On a cluster the job has a node for itself, whatever its number of threads.
        """

        @with_signature
        def threads(wildcards: Wildcards) -> int:
            return self._threads_of_device(wildcards.device) if self.graph.on_cluster else cores

        return threads

    def quantizing_threads(self, cores: int) -> int:
        """Return the threads of a job that quantizes.

        These are all `cores` of this machine if nodes are timed, as in `measuring_threads`.
        """
        settings = self.params.quantize
        return cores if settings.by_time and not self.graph.on_cluster else settings.threads

    def of_device(self, name: str) -> Callable[[Wildcards], str | None]:
        """Return a resource of the jobs that measure on `{device}`; None where it has none."""

        @with_signature
        def resource(wildcards: Wildcards) -> str | None:
            return self._of_nodes(wildcards.device).get(name)

        return resource

    def of_timed_devices(self, name: str) -> Callable[[Wildcards], str | None]:
        """Return a resource of the jobs that time nodes of int8 files on the devices of the matrix.

        None where they have none. Raises UserError for two devices on different nodes.
        """

        @with_signature
        def resource(wildcards: Wildcards) -> str | None:
            if not self.params.quantize.by_time:
                return None
            nodes = {device: self._of_nodes(device) for device in self.params.matrix.devices}
            # Devices behind SSH are reached from any node.
            nodes = {device: resources for device, resources in nodes.items() if resources}
            different = {json.dumps(resources, sort_keys=True) for resources in nodes.values()}
            if self.graph.on_cluster and len(different) > 1:
                raise UserError(
                    f"params.yaml: the devices {', '.join(nodes)} are different nodes of a "
                    "cluster, and one job cannot time an int8 file on all of them. Set "
                    "`quantize.by_time: false`."
                )
            return next(iter(nodes.values()), {}).get(name)

        return resource

    def _of_nodes(self, device: str) -> dict[str, str]:
        """Return the resources of jobs on a device: its nodes, and that each has a whole node."""
        settings = self.params.benchmark[device]
        entries = settings.model_dump(mode="json")
        resources = DEVICE_KINDS.get(settings.kind).job_resources(entries)
        # A job that measures over SSH needs no node for itself.
        measures_on_node = not DEVICE_KINDS.get(settings.kind).sends_files
        return resources | ({"slurm_extra": _WHOLE_NODE} if measures_on_node else {})

    def _threads_of_device(self, device: str) -> int:
        threads = self.params.benchmark[device].model_dump(mode="json").get("threads")
        several = threads if isinstance(threads, list) else [threads or MeasureSettings.threads]
        return max(several)
