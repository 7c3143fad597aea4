"""Compare two networks on images without labels. This module needs no dataset and no Pillow."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowrank.core.metric import AGREEMENT
from lowrank.core.plans import Expected
from lowrank.tasks.task import Task
from lowrank.zoo.forward import evaluation_mode


@torch.no_grad()
def agreement(
    task: Task, network: nn.Module, compressed: nn.Module, images: Sequence[Tensor]
) -> Expected | None:
    """Compare the answers of two networks without labels.

    Returns None without images, or if the outputs of a network are not outputs of the task.

    Parameters
    ----------
    task
        Task that says which answers are the same.
    network, compressed
        The networks.
    images
        Batches as the networks expect them, (N, C, H, W).
    """
    answers, same = [], []
    with evaluation_mode(network), evaluation_mode(compressed):
        for batch in images:
            before, after = network(batch), compressed(batch)
            if not (task.accepts(before) and task.accepts(after)):
                return None
            answers.append(task.predictions(before))
            same.append(task.same(after, before))
    if not answers:
        return None
    share = float(torch.cat(same).double().mean())
    # A network that always gives the most frequent answer agrees that often.
    counts = torch.unique(torch.cat(answers), dim=0, return_counts=True)[1]
    chance = float(counts.max() / counts.sum())
    count = sum(map(len, same))
    return Expected(count, 100.0, 100.0 * share, 100.0 * chance, of_labels=False, metric=AGREEMENT)
