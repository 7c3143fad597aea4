"""The training loop that pre-training and fine-tuning share."""

import contextlib
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import swa_utils

from lowrank.config.training import TrainingSettings
from lowrank.core.progress import SECONDS_BETWEEN_LINES, Progress, clock_time
from lowrank.data.background import in_background
from lowrank.data.batches import AugmentedBatches
from lowrank.data.datasets import Dataset, require_match
from lowrank.errors import UserError
from lowrank.files import written_whole
from lowrank.tasks.classification import top1_percent
from lowrank.tasks.memory_format import memory_format_of
from lowrank.training.distillation import Teacher
from lowrank.training.freezing import freeze_first
from lowrank.training.hardware import autocast, pick_device, pick_precision
from lowrank.training.maps import WatchedMaps
from lowrank.zoo.registry import NetworkSpec

_SAVE_EVERY_SECONDS = 30.0
# For the running statistics of batch normalisation under averaged weights; no more than steps.
_BATCHES_OF_STATISTICS = 64
# Above so many passes, training on the same images again and again says so.
_EPOCHS_WITHOUT_AUGMENTATION = 10


@dataclass(frozen=True)
class CurvePoint:
    """One row of the training curve: means since the row before it.

    Accuracies are those of the weights as they are at that step, before any averaging.
    """

    step: int
    learning_rate: float
    loss: float
    train_percent: float
    validation_percent: float | None = None


@dataclass(frozen=True)
class TrainingReport:
    """What a run of the loop did. `seconds` counts the loop alone, over all resumed parts."""

    steps: int
    seconds: float
    curve: list[CurvePoint]


def train(
    network: nn.Module,
    spec: NetworkSpec,
    data: Dataset,
    settings: TrainingSettings,
    *,
    teacher: Teacher | None = None,
    state_path: Path | None = None,
    fingerprint: str = "",
    say: Callable[[str], None] = print,
) -> TrainingReport:
    """Train `network` in place by `settings`.

    Parameters
    ----------
    teacher
        A network whose outputs are learnt as well as the labels, or instead of them.
    state_path
        Where the state is kept every half minute; a run that finds the state of the same
        `fingerprint` there goes on from it, to the same final weights. Removed at the end.
    say
        Takes a line of progress about every five seconds.

    Raises
    ------
    UserError
        When the loss is not finite, the network cannot be trained on the dataset (see
        `require_match`), or labels are needed and the training images have none.
    """
    require_match(data, spec)
    with WatchedMaps(network, teacher.layers if teacher else ()) as watched:
        return _train(network, spec, data, settings, teacher, watched, state_path, fingerprint, say)


def _train(
    network: nn.Module,
    spec: NetworkSpec,
    data: Dataset,
    settings: TrainingSettings,
    teacher: Teacher | None,
    watched: WatchedMaps,
    state_path: Path | None,
    fingerprint: str,
    say: Callable[[str], None],
) -> TrainingReport:
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    memory_format = memory_format_of(network.to(device), spec)
    network.to(memory_format=memory_format).train()
    if teacher:
        teacher.to(device, memory_format)
    batches = AugmentedBatches(
        data.train,
        spec,
        batch_size=settings.batch_size,
        augment=settings.augment,
        seed=settings.seed,
    )
    steps = settings.steps
    if steps is None:
        steps = max(1, round(settings.epochs * batches.batches_per_epoch))
    if steps and (teacher is None or teacher.needs_labels):
        data.train.require_labels("training with `distill.weight` below 1")
    optimizer = _optimizer(network, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, settings)
    )
    averaged = swa_utils.AveragedModel(network) if settings.average_last else None
    average_from = steps - math.ceil(settings.average_last * steps)
    freeze_at = round(settings.freeze.after * steps) if settings.freeze.layers else steps
    frozen: list[nn.Parameter] = []
    curve: list[CurvePoint] = []
    first, seconds_before = 0, 0.0
    saved = _saved_state(state_path, fingerprint)
    if saved:
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        if averaged:
            averaged.load_state_dict(saved["averaged"])
        first, seconds_before = saved["step"], saved["seconds"]
        curve = [CurvePoint(**point) for point in saved["curve"]]
        say(f"resumed from the state saved at step {first} of {steps}")

    say(
        f"{steps} steps of {settings.batch_size} images "
        f"({steps / batches.batches_per_epoch:.1f} epochs) on {device.type}, "
        f"{str(precision).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    )
    epochs = steps / batches.batches_per_epoch
    if epochs > _EPOCHS_WITHOUT_AUGMENTATION and not settings.augment.changes:
        say(
            f"note: {epochs:.0f} passes over {len(data.train)} images that are never augmented. A "
            "network learns more from `augment: {pad_pixels: 4, flip: true}`, with `distill.maps: "
            "0` or `distill.images: augmented`."
        )
    started = said = kept = time.monotonic()
    window = _Window(device) if not saved else _Window(device, *saved["window"])
    remaining = range(first, steps)
    for step, batch in zip(
        remaining,
        in_background(batches.__getitem__, remaining, torch.get_num_threads()),
        strict=True,
    ):
        if step == max(first, freeze_at):
            frozen = freeze_first(network, spec, settings.freeze.layers)
        # Dropout and its like, too, depend on seed and step alone: a resumed run repeats them.
        torch.manual_seed(settings.seed + step)
        images, labels = (part.to(device, non_blocking=True) for part in batch)
        images = images.contiguous(memory_format=memory_format)
        with autocast(device, precision):
            logits = data.train.of_classes(_logits(network, images))
            if teacher:
                answers = teacher.answers(images, batches.rows(step), batches.flipped(step))
                answers = replace(answers, logits=data.train.of_classes(answers.logits))
            if data.train.unlabelled:
                # The accuracy of the curve is then the agreement with the teacher.
                labels = answers.logits.argmax(1)
            loss = functional.cross_entropy(
                logits.float(), labels, label_smoothing=settings.label_smoothing
            )
            if teacher:
                loss = teacher.mixed(loss, logits.float(), watched.take(), answers)
        loss.backward()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        learning_rate = schedule.get_last_lr()[0]
        schedule.step()
        if averaged and step >= average_from:
            averaged.update_parameters(network)
        window.add(loss.detach(), logits.detach(), labels)
        done, now = step + 1, time.monotonic()

        if done % settings.curve_every_steps == 0 or done == steps:
            loss_mean, train_percent = _finite(window.means(), done, learning_rate)
            validation = None
            every = settings.validate_every_steps
            if every and done % every == 0 and done < steps:
                validation = top1_percent(network, data.validation, spec)
                say(f"step {done}/{steps}  validation {validation:.2f} %")
            curve.append(CurvePoint(done, learning_rate, loss_mean, train_percent, validation))
            window = _Window(device)
        elif now - said > SECONDS_BETWEEN_LINES:
            loss_mean, train_percent = _finite(window.means(), done, learning_rate)
        if now - said > SECONDS_BETWEEN_LINES or done == steps:
            left = (now - started) / (done - first) * (steps - done)
            say(
                f"step {done}/{steps}  loss {loss_mean:.4f}  accuracy {train_percent:.1f} %  "
                f"learning rate {learning_rate:.2g}  {clock_time(left)} left"
            )
            said = now
        if state_path and now - kept > _SAVE_EVERY_SECONDS and done < steps:
            state = {
                "fingerprint": fingerprint,
                "step": done,
                "seconds": seconds_before + now - started,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "averaged": averaged.state_dict() if averaged else None,
                "window": window.sums(),
                "curve": [asdict(point) for point in curve],
            }
            # By way of memory: torch.save itself tells of a full disk as a RuntimeError.
            buffer = io.BytesIO()
            torch.save(state, buffer)
            with written_whole(state_path) as partial:
                partial.write_bytes(buffer.getbuffer())
            kept = time.monotonic()
    for parameter in frozen:
        parameter.requires_grad_(True)
    if averaged and steps:
        network.load_state_dict(averaged.module.state_dict())
        # Other weights, other statistics (Izmailov et al. 2018, section 3.2).
        more = range(steps, steps + min(steps, _BATCHES_OF_STATISTICS))
        progress = Progress(len(more), "batches for the statistics of batch normalization")

        def images_only() -> Iterator[Tensor]:
            for images, _ in in_background(batches.__getitem__, more, torch.get_num_threads()):
                yield images.to(device, memory_format=memory_format)
                progress.advance()

        with autocast(device, precision):
            swa_utils.update_bn(images_only(), network)
    network.eval()
    if not all(torch.isfinite(p).all() for p in network.parameters()):
        raise _diverged("a weight", steps, settings.learning_rate)
    if state_path:
        state_path.unlink(missing_ok=True)
    return TrainingReport(steps, seconds_before + time.monotonic() - started, curve)


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    output = network(images)
    if not isinstance(output, Tensor):
        raise UserError(
            f"{type(network).__name__} returns {type(output).__name__} in training mode, where "
            "logits (images, classes) were expected. Build it without its auxiliary heads "
            "(`arguments: {aux_logits: false}`, for instance)."
        )
    return output


def fingerprint_of(*inputs: object) -> str:
    """A hash of all that decides a run's outcome; a saved state is used only under the same one."""
    text = "\n".join(
        item.model_dump_json() if isinstance(item, TrainingSettings) else str(item)
        for item in inputs
    )
    return hashlib.sha256(text.encode()).hexdigest()


def learning_rate_factor(step: int, steps: int, settings: TrainingSettings) -> float:
    """Learning rate at `step` (from 0) over its peak: linear warm-up, then the schedule."""
    warmup = round(settings.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    match settings.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "step":
            return settings.step_factor ** sum(
                step / max(1, steps) >= at for at in settings.step_at
            )


def _optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    # Weight decay on matrices and kernels alone: on biases and batch normalisation it only
    # shrinks what has no scale to lose.
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


class _Window:
    """Sums of loss and hits, kept on the device so that no step waits for it."""

    def __init__(
        self,
        device: torch.device,
        loss: float = 0.0,
        hits: int = 0,
        images: int = 0,
        steps: int = 0,
    ) -> None:
        self._loss = torch.tensor(loss, dtype=torch.float64, device=device)
        self._hits = torch.tensor(hits, device=device)
        self._images, self._steps = images, steps

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self._loss += loss
        self._hits += (logits.argmax(1) == labels).sum()
        self._images += len(labels)
        self._steps += 1

    def sums(self) -> tuple[float, int, int, int]:
        return float(self._loss), int(self._hits), self._images, self._steps

    def means(self) -> tuple[float, float]:
        """Mean loss, and accuracy in percent."""
        loss, hits, images, steps = self.sums()
        return loss / steps, 100.0 * hits / images


def _finite(means: tuple[float, float], step: int, learning_rate: float) -> tuple[float, float]:
    if not math.isfinite(means[0]):
        raise _diverged("the loss", step, learning_rate)
    return means


def _diverged(what: str, step: int, learning_rate: float) -> UserError:
    return UserError(
        f"{what} is not finite at step {step} (learning rate {learning_rate:.3g}): training "
        "diverged. Lower `learning_rate`, lengthen `warmup_fraction`, or set `clip_norm` (1.0 "
        "is a usual value). Nothing was written."
    )


def _saved_state(state_path: Path | None, fingerprint: str) -> dict[str, Any] | None:
    """The state of an earlier run with the same inputs; None when there is none of use."""
    if state_path is None or not state_path.exists():
        return None
    with contextlib.suppress(Exception):  # A damaged state costs time, not correctness.
        state = torch.load(state_path, weights_only=True)
        if state["fingerprint"] == fingerprint:
            return state
    return None
