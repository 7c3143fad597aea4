"""Training loop for pre-training and fine-tuning."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from lowrank.config.training import TrainingSettings
from lowrank.core.background import in_background
from lowrank.core.progress import SECONDS_BETWEEN_LINES, Progress, clock_time
from lowrank.data.batches import AugmentedBatches, Batch
from lowrank.data.datasets import Dataset
from lowrank.errors import UserError
from lowrank.evaluation.memory_format import memory_format_of, moved
from lowrank.evaluation.network import require_match, value_of
from lowrank.tasks.outputs import mapped, outputs_from
from lowrank.tasks.task import Task
from lowrank.training.curve import CurvePoint, Window
from lowrank.training.distillation import Teacher
from lowrank.training.freezing import freeze_first
from lowrank.training.hardware import autocast, pick_device, pick_precision
from lowrank.training.interruption import Interruption
from lowrank.training.maps import WatchedMaps
from lowrank.training.optimization import create_optimizer, learning_rate_factor
from lowrank.training.several_processes import ONE_PROCESS, Processes
from lowrank.training.state_file import StateFile
from lowrank.zoo.registry import NetworkSpec

_SAVE_EVERY_SECONDS = 30.0
# Number of batches for the running statistics of batch normalization with averaged weights. It is
# limited to the number of steps.
_BATCHES_OF_STATISTICS = 64
# For more epochs than this, training without augmentation prints a note.
_EPOCHS_WITHOUT_AUGMENTATION = 10
# What a process proposes after a step. All processes do the highest of their proposals.
_CONTINUE, _SAVE, _END = range(3)


@dataclass(frozen=True)
class TrainingReport:
    """Result of a training run. `seconds` is the time in the loop, over all resumed parts."""

    steps: int
    seconds: float
    curve: list[CurvePoint]


def train(
    task: Task,
    network: nn.Module,
    spec: NetworkSpec,
    data: Dataset,
    settings: TrainingSettings,
    *,
    teacher: Teacher | None = None,
    state_path: Path | None = None,
    fingerprint: str = "",
    processes: Processes = ONE_PROCESS,
    say: Callable[[str], None] = print,
) -> TrainingReport:
    """Train `network` in place with `settings`.

    Parameters
    ----------
    task
        Task of the network: its loss and its metric.
    network, spec
        Network to train, and the specification of its input.
    data, settings
        Training and validation images, and the settings of the run.
    teacher
        Network whose outputs are used in addition to labels, or instead of them.
    state_path
        File in which the state of the run is saved every 30 s, and when SIGINT or SIGTERM arrives.
        A run that finds a state with the same `fingerprint` there resumes from it and reaches the
        same weights. The file is removed at the end.
    fingerprint
        Hash of everything that determines the result of the run: see `state_file.fingerprint_of`.
    processes
        The processes that share the run, and call this function with the same arguments. Each has
        its part of each batch. Of statistics of batch normalization, those of the first are kept.
    say
        Called with a line of progress about every 5 s.

    Raises
    ------
    UserError
        If the loss is not finite, the network cannot be trained on the dataset (see
        `require_match`), labels are needed and the training images have none, or the task has no
        use for `label_smoothing`.
    """
    require_match(task, data, spec)
    task.require_smoothing(settings.label_smoothing)
    with WatchedMaps(network, teacher.layers if teacher else ()) as watched:
        training = _Training(
            task,
            network,
            spec,
            data,
            settings,
            teacher=teacher,
            watched=watched,
            state=StateFile(state_path, fingerprint),
            processes=processes,
            say=say if processes.is_first else _say_nothing,
        )
        return training.run()


class _Training:
    """One run of the loop: the network, its training data and its progress."""

    def __init__(
        self,
        task: Task,
        network: nn.Module,
        spec: NetworkSpec,
        data: Dataset,
        settings: TrainingSettings,
        *,
        teacher: Teacher | None,
        watched: WatchedMaps,
        state: StateFile,
        processes: Processes,
        say: Callable[[str], None],
    ) -> None:
        self.task, self.network, self.spec = task, network, spec
        self.data, self.settings = data, settings
        self.teacher, self.watched, self.state, self.say = teacher, watched, state, say
        self.processes = processes
        self.device = pick_device(settings.device)
        self.precision = pick_precision(settings.precision, self.device)
        self.memory_format = memory_format_of(network.to(self.device), spec)
        network.to(memory_format=self.memory_format).train()
        if teacher:
            teacher.to(self.device, self.memory_format)
        self.batches = self._batches((processes.index, processes.count))
        if settings.steps is None:
            self.steps = max(1, round((settings.epochs or 0) * self.batches.batches_per_epoch))
        else:
            self.steps = settings.steps
        if self.steps and (teacher is None or teacher.needs_labels):
            task.require_label_loss()
            data.train.require_labels("training with `distill.weight` below 1")
        self.optimizer = create_optimizer(network, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, self.steps, settings)
        )
        self.averaged = swa_utils.AveragedModel(network) if settings.average_last else None
        self.average_from = self.steps - math.ceil(settings.average_last * self.steps)
        freezes = bool(settings.freeze.layers)
        self.freeze_at = round(settings.freeze.after * self.steps) if freezes else self.steps
        self.frozen: list[nn.Parameter] = []
        self.curve: list[CurvePoint] = []
        self.window = Window(self.device, task.metric)
        self.first, self.seconds_before = 0, 0.0

    def _batches(self, part: tuple[int, int]) -> AugmentedBatches:
        settings = self.settings
        return AugmentedBatches(
            self.data.train,
            self.spec,
            batch_size=settings.batch_size,
            augment=settings.augment,
            seed=settings.seed,
            part=part,
        )

    def run(self) -> TrainingReport:
        """Train up to the last step, starting from a saved state if there is one."""
        self._resume()
        self.averaging = self.processes.averaging(self.network, self.device)
        self._announce()
        self.started = self.last_line = self.last_save = time.monotonic()
        remaining = range(self.first, self.steps)
        loaded = in_background(self.batches.__getitem__, remaining, torch.get_num_threads())
        with Interruption(ignores_second=self.processes.count > 1) as interruption:
            for step, batch in zip(remaining, loaded, strict=True):
                learning_rate = self._step(step, batch)
                self._report(step + 1, learning_rate)
                self._save(step + 1, interruption)
        self._finish()
        return TrainingReport(self.steps, self._seconds(time.monotonic()), self.curve)

    def _resume(self) -> None:
        saved = self.state.read()
        if not saved:
            return
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.averaged:
            self.averaged.load_state_dict(saved["averaged"])
        self.first, self.seconds_before = saved["step"], saved["seconds"]
        self.curve = [CurvePoint(**point) for point in saved["curve"]]
        loss, score, images, steps = saved["windows"][self.processes.index]
        self.window = Window(
            self.device, self.task.metric, loss, score, round(images), round(steps)
        )
        self.say(f"resumed from the state saved at step {self.first} of {self.steps}")

    def _announce(self) -> None:
        epochs = self.steps / self.batches.batches_per_epoch
        self.say(
            f"{self.steps} steps of {self.settings.batch_size} images ({epochs:.1f} epochs) on "
            f"{self.device.type}, {str(self.precision).removeprefix('torch.')}, "
            f"{torch.get_num_threads()} threads"
            + (f", each of {self.processes.count} processes" if self.processes.count > 1 else "")
        )
        if epochs > _EPOCHS_WITHOUT_AUGMENTATION and not self.settings.augment.changes:
            self.say(
                f"note: {epochs:.0f} epochs over {len(self.data.train)} images without "
                "augmentation. The network usually gets better with `augment: {pad_pixels: 4, "
                "flip: true}`, together with `distill.maps: 0` or `distill.images: augmented`."
            )

    def _step(self, step: int, batch: Batch) -> float:
        """Run step `step` (from 0) and return its learning rate."""
        settings = self.settings
        if step == max(self.first, self.freeze_at):
            self.frozen = freeze_first(self.network, self.spec, settings.freeze.layers)
            self.averaging = self.processes.averaging(self.network, self.device)
        # Dropout and other random layers depend only on seed and step, so resumed runs are equal.
        # Seeds have at most 32 bits, so those of the other processes do not overlap.
        torch.manual_seed(settings.seed + step + (self.processes.index << 33))
        images = moved(batch[0], self.device, self.memory_format)
        labels = batch[1].to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            loss, outputs, labels = self._loss(step, images, labels)
        loss.backward()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        learning_rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        if self.averaged and step >= self.average_from:
            self.averaged.update_parameters(self.network)
        scores = None
        if self.task.has_scores:
            scores = self.task.scores(mapped(torch.Tensor.detach, outputs), labels)
        self.window.add(loss.detach(), scores)
        return learning_rate

    def _loss(self, step: int, images: Any, labels: Any) -> tuple[Tensor, Any, Any]:
        """Return the loss of a batch, its outputs (N, ...), and the labels for the metric."""
        of_classes = self.data.train.of_classes
        outputs = of_classes(self._outputs(images))
        answers = None
        if self.teacher:
            rows, flipped = self.batches.rows(step), self.batches.flipped(step)
            answers = self.teacher.answers(images, rows, flipped)
            answers = replace(answers, logits=of_classes(answers.logits))
            if self.data.train.unlabelled or not self.task.needs_labels:
                # The metric in the training curve then compares with the teacher.
                labels = self.task.predictions(answers.logits)
        in_float32 = mapped(torch.Tensor.float, outputs)
        loss = self.task.loss(in_float32, labels, label_smoothing=self.settings.label_smoothing)
        if self.teacher and answers is not None:
            maps = self.watched.take()
            loss = self.teacher.combined_loss(self.task, loss, in_float32, maps, answers)
        return loss, outputs, labels

    def _outputs(self, images: Any) -> Any:
        outputs = outputs_from(self.averaging(images))
        if not self.task.accepts(outputs):
            raise UserError(
                f"{type(self.network).__name__} does not return logits (images, classes) in "
                f"training mode, which the task '{self.task.name}' needs. Build the network "
                "without its auxiliary heads (for example `arguments: {aux_logits: false}`)."
            )
        return outputs

    def _report(self, done: int, learning_rate: float) -> None:
        """Add a point to the curve and print a line of progress, if they are due."""
        settings, steps, now, metric = self.settings, self.steps, time.monotonic(), self.task.metric
        on_curve = done % settings.curve_every_steps == 0 or done == steps
        line_due = now - self.last_line > SECONDS_BETWEEN_LINES
        if not (on_curve or line_due):
            return
        # Lines are due at different times in each process, so they have its own means.
        rows = self.processes.gathered(self.window.sums()) if on_curve else None
        loss, value = self.window.means(rows)
        _require_finite(loss, done, learning_rate)
        if on_curve:
            validation, interval = None, settings.validate_every_steps
            is_due = interval and done % interval == 0 and done < steps
            if is_due and self.processes.is_first:
                validation = value_of(self.task, self.network, self.data.validation, self.spec)
                self.say(f"step {done}/{steps}  validation {metric.text(validation)}")
            self.curve.append(CurvePoint(done, learning_rate, loss, value, validation))
            self.window = Window(self.device, self.task.metric)
        if line_due or done == steps:
            seconds_left = (now - self.started) / (done - self.first) * (steps - done)
            measured = "" if value is None else f"  {metric.noun} {metric.text(value, 1)}"
            self.say(
                f"step {done}/{steps}  loss {loss:.4f}{measured}  "
                f"learning rate {learning_rate:.2g}  {clock_time(seconds_left)} left"
            )
            self.last_line = now

    def _save(self, done: int, interruption: Interruption) -> None:
        """Save the state of the run every 30 s, and before a signal ends it."""
        now = time.monotonic()
        due = now - self.last_save > _SAVE_EVERY_SECONDS
        proposed = _END if interruption.arrived else _SAVE if due else _CONTINUE
        agreed = self.processes.highest(proposed)
        if agreed != _CONTINUE and self.state.path and done < self.steps:
            self._write_state(done, now)
            if agreed == _END:
                name = (interruption.arrived or signal.SIGTERM).name
                self.say(f"{name}: saved the state after step {done}")
        if agreed == _END:
            interruption.deliver()

    def _write_state(self, done: int, now: float) -> None:
        self.last_save = time.monotonic()
        windows = self.processes.gathered(self.window.sums())
        if not self.processes.is_first:
            return
        self.state.write(
            {
                "step": done,
                "seconds": self._seconds(now),
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "averaged": self.averaged.state_dict() if self.averaged else None,
                "windows": windows,
                "curve": [asdict(point) for point in self.curve],
            }
        )

    def _finish(self) -> None:
        """Load the final weights into the network and put it into evaluation mode.

        Only the network of the first process is complete.
        """
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        if self.averaged and self.steps:
            self.network.load_state_dict(self.averaged.module.state_dict())
            if self.processes.is_first:
                self._update_statistics()
        self.network.eval()
        if not all(torch.isfinite(parameter).all() for parameter in self.network.parameters()):
            raise _diverged("a weight", self.steps, self.settings.learning_rate)
        if self.processes.is_first:
            self.state.remove()

    def _update_statistics(self) -> None:
        """Measure batch normalization statistics again (Izmailov et al. 2018, section 3.2).

        Averaged weights need their own statistics.
        """
        numbers = range(self.steps, self.steps + min(self.steps, _BATCHES_OF_STATISTICS))
        progress = Progress(len(numbers), "batches for the statistics of batch normalization")
        whole = self.batches if self.processes.count == 1 else self._batches((0, 1))
        loaded = in_background(whole.__getitem__, numbers, torch.get_num_threads())

        def images_only() -> Iterator[Any]:
            for images, _ in loaded:
                yield mapped(
                    lambda tensor: tensor.to(self.device, memory_format=self.memory_format), images
                )
                progress.advance()

        with autocast(self.device, self.precision):
            swa_utils.update_bn(images_only(), self.network)

    def _seconds(self, now: float) -> float:
        return self.seconds_before + now - self.started


def _say_nothing(_: str) -> None:
    pass


def _require_finite(loss: float, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise _diverged("the loss", step, learning_rate)


def _diverged(quantity: str, step: int, learning_rate: float) -> UserError:
    return UserError(
        f"{quantity} is not finite at step {step} (learning rate {learning_rate:.3g}): training "
        "diverged. Lower `learning_rate`, increase `warmup_fraction`, or set `clip_norm` (a common "
        "value is 1.0). Nothing was written."
    )
