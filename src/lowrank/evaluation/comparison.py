"""Compare two networks on images without labels. This module needs no dataset and no Pillow."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.core.metric import AGREEMENT, OUTPUT_ERROR
from lowrank.core.output_change import (
    LostAccuracy,
    OutputChange,
    OutputSums,
    ReferenceOutputs,
)
from lowrank.core.plans import Expected
from lowrank.tasks.outputs import by_name, outputs_from
from lowrank.tasks.task import Task
from lowrank.zoo.forward import evaluation_mode


@torch.no_grad()
def agreement(
    task: Task, network: nn.Module, compressed: nn.Module, images: Sequence[Tensor]
) -> Expected | None:
    """Compare the answers of two networks without labels; None without images.

    For outputs of the task, it is the share of equal answers, else `change_of_outputs`.

    Parameters
    ----------
    task
        Task that says which answers are the same.
    network, compressed
        The networks.
    images
        Batches as the networks expect them, (N, C, H, W).
    """
    answers, same, lost = [], [], LostAccuracy()
    sums, count = OutputSums(), 0
    with evaluation_mode(network), evaluation_mode(compressed):
        for batch in images:
            before, after = outputs_from(network(batch)), outputs_from(compressed(batch))
            count += len(batch)
            if task.needs_labels and task.accepts(before) and task.accepts(after):
                answers.append(task.predictions(before))
                same.append(task.same(after, before))
                lost.add(*_confidences(task, before, after))
            else:
                sums.add(_arrays(after), ReferenceOutputs(_arrays(before)))
    if not answers:
        return change_of_outputs(sums.changes(), count) if count else None
    share = float(torch.cat(same).double().mean())
    # A network that always gives the most frequent answer agrees that often.
    counts = torch.unique(torch.cat(answers), dim=0, return_counts=True)[1]
    chance = float(counts.max() / counts.sum())
    return Expected(
        count,
        100.0,
        100.0 * share,
        100.0 * chance,
        of_labels=False,
        metric=AGREEMENT,
        accuracy_drop=lost.points,
        drop_error=lost.error,
    )


def _confidences(task: Task, before: Any, after: Any) -> list[Any]:
    """Return the original's probabilities of its own answers and of the other's; else nothing."""
    probabilities = [
        task.probabilities(before, task.predictions(outputs)) for outputs in (before, after)
    ]
    return [tensor.cpu().numpy() for tensor in probabilities if tensor is not None]


def change_of_outputs(changes: Mapping[str, OutputChange], count: int) -> Expected:
    """Return the change of the outputs of a network over `count` samples as one number.

    If all outputs are distributions, it is the share of equal answers, otherwise the error of the
    outputs. Of several outputs, the one that changes most counts.
    """
    shares = [
        (change.same_percent, change.chance_percent, change.lost_percent, change.lost_error)
        for change in changes.values()
        if change.same_percent is not None and change.chance_percent is not None
    ]
    if shares and len(shares) == len(changes):
        same, chance, lost, error = min(shares)
        return Expected(
            count,
            100.0,
            same,
            chance,
            of_labels=False,
            metric=AGREEMENT,
            accuracy_drop=lost,
            drop_error=error,
        )
    error = 100.0 * max((change.relative_error for change in changes.values()), default=0.0)
    return Expected(
        count, 0.0, error, 100.0, of_labels=False, metric=OUTPUT_ERROR, standard_error=0.0
    )


def _arrays(outputs: Any) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in by_name(outputs).items()}
