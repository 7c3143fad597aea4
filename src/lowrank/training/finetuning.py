"""One round of fine-tuning: insert the factors, measure the network, train it, measure it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lowrank.config.finetune import RoundSettings
from lowrank.config.network_source import NetworkSource
from lowrank.data.datasets import Dataset, open_dataset
from lowrank.errors import UserError
from lowrank.evaluation.network import measure_splits, text_by_split, values_by_split
from lowrank.evaluation.reference import with_reference
from lowrank.evaluation.trying import Trying
from lowrank.onnx_networks.graph_module import GraphModule
from lowrank.ranks.milder import ruined
from lowrank.surgery.states import State, put_stored_factors, read_state
from lowrank.tasks import get_task
from lowrank.tasks.task import Task
from lowrank.training.distillation import AugmentedTeacher, PlainTeacher, Teacher, read_outputs
from lowrank.training.hardware import pick_device
from lowrank.training.loop import TrainingReport, train
from lowrank.training.maps import layers_to_watch
from lowrank.training.several_processes import ONE_PROCESS, Processes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Round:
    """A network in a round, with everything that trains and measures it.

    Parameters
    ----------
    task
        Task of the network.
    compressed
        The network, with its layers replaced so far. It is changed in place.
    data
        Images in splits.
    settings
        Training settings of the round.
    say
        Called with lines of progress.
    processes
        The processes that share the training. Only the first one measures the network.
    """

    task: Task
    compressed: State
    data: Dataset
    settings: RoundSettings
    say: Say
    processes: Processes = ONE_PROCESS

    @classmethod
    def load(
        cls,
        task: str,
        previous: Path,
        source: NetworkSource,
        images: tuple[Path, Path | None, Path | None],
        settings: RoundSettings,
        number: int,
        say: Say,
        processes: Processes,
    ) -> Round:
        """Read the network before round `number`, and its data.

        `images` are the folders of the dataset and of the splits, and the original network for a
        task that compares with it.
        """
        dataset, splits, reference = images
        trained_task, compressed = get_task(task), read_state(previous, source)
        data = with_reference(open_dataset(dataset, splits), trained_task, reference, source)
        settings = settings_of_round(settings, number, compressed, say)
        return cls(trained_task, compressed, data, settings, say, processes)

    def insert(self, factors: Sequence[Path], *, largest_drop: float, where: str) -> None:
        """Insert the factors of the round's layers.

        Parameters
        ----------
        factors
            Files that the step `decompose` wrote.
        largest_drop
            Largest share of the metric above chance that the factors may cost; 1 measures nothing.
        where
            Section of params.yaml that the error message names.

        Raises
        ------
        UserError
            If the factors cost more.
        """
        if largest_drop >= 1 or not self.processes.is_first:
            put_stored_factors(self.compressed, factors)
            return
        network = self.compressed.network
        trying = Trying(self.task, self.data.validation, self.compressed.spec)
        before = trying.measure(network)
        put_stored_factors(self.compressed, factors)
        expected = trying.expected(before, trying.measure(network))
        self.say(expected.sentence())
        if expected.exceeds(largest_drop):
            raise UserError(ruined(expected, largest_drop, where, "Choose milder settings"))

    def train(
        self, teacher: Teacher | None, *, state_path: Path, fingerprint: str, test: bool
    ) -> tuple[dict[str, dict[str, float]], TrainingReport]:
        """Train the network and measure it before (`decomposed`) and after (`finetuned`).

        Nothing is measured in other processes than the first.

        Parameters
        ----------
        teacher
            Original network, or None to train on labels only.
        state_path, fingerprint
            See `lowrank.training.loop.train`.
        test
            Whether the network is also measured on the test split.
        """
        self.compressed.network.to(pick_device(self.settings.device))
        decomposed = self._measured("decomposed", test=test)
        report = train(
            self.task,
            self.compressed.network,
            self.compressed.spec,
            self.data,
            self.settings,
            teacher=teacher,
            state_path=state_path,
            fingerprint=fingerprint,
            processes=self.processes,
            say=self.say,
        )
        if not self.processes.is_first:
            return {}, report
        finetuned = self._measured("fine-tuned", test=test)
        lost = self.task.metric.loss(decomposed["validation"], finetuned["validation"])
        if report.steps and lost > 0:
            self.say(
                f"warning: training made the network worse, by {self.task.metric.difference(lost)} "
                "on the validation images. Lower `finetune.learning_rate`, or set "
                "`precision: float32`."
            )
        return {"decomposed": decomposed, "finetuned": finetuned}, report

    def _measured(self, label: str, *, test: bool) -> dict[str, float]:
        if not self.processes.is_first:
            return {}
        splits = ("validation", "test") if test else ("validation",)
        network, spec = self.compressed.network, self.compressed.spec
        measured = measure_splits(self.task, network, self.data, spec, splits)
        values = values_by_split(self.task, measured)
        self.say(f"{label}: {text_by_split(self.task, values)}")
        return values


def settings_of_round(
    settings: RoundSettings, number: int, compressed: State, say: Say
) -> RoundSettings:
    """Return the settings with a seed for this round, so that the order of images differs.

    They have no steps if the network comes from an ONNX file with operators that cannot be trained;
    `say` is called with the reason.
    """
    settings = settings.model_copy(update={"seed": settings.seed + number - 1})
    network = compressed.network
    if not (isinstance(network, GraphModule) and network.obstacle and settings.trains):
        return settings
    say(f"warning: not trained, because PyTorch cannot run all of the file: {network.obstacle}")
    return settings.model_copy(update={"steps": 0, "epochs": None})


def require_teacher_for(settings: RoundSettings, teacher: Path | None) -> None:
    """Raise UserError if a teacher is missing, or if there is one that is not used."""
    if bool(teacher) != bool(settings.distill.weight and settings.trains):
        raise UserError(
            f"`distill.weight` is {settings.distill.weight:g} and --teacher is "
            f"'{teacher or ''}', for a round with{'' if settings.trains else 'out'} steps. Give "
            "--teacher if and only if the weight is above 0 and the round has steps."
        )


def read_teacher(
    path: Path | None, source: NetworkSource, settings: RoundSettings, data: Dataset
) -> Teacher | None:
    """Read the stored outputs of the original, or the original itself for augmented images."""
    if path is None:
        return None
    distill = settings.distill
    if distill.images == "plain":
        return PlainTeacher(read_outputs(path, data.train), distill, len(data.train))
    original = read_state(path, source)
    layers = layers_to_watch(original.network, original.spec)
    return AugmentedTeacher(original.network, distill, layers)


def use_deterministic_torch(threads: int) -> None:
    """Set the threads of PyTorch and choose deterministic algorithms where it has them."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # By default, deterministic mode also fills new memory, which only helps code with errors.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
