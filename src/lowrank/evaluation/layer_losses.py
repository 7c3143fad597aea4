"""Measure the loss of a network with a single layer decomposed."""

from collections.abc import Callable, Iterable

from torch import nn

from lowrank.data.datasets import Split
from lowrank.evaluation.network import mean_loss
from lowrank.factorize import Decomposition
from lowrank.surgery.states import replaced
from lowrank.tasks.task import Task
from lowrank.zoo.registry import NetworkSpec


def losses_by_layer(
    task: Task,
    network: nn.Module,
    spec: NetworkSpec,
    images: Split,
    replacements: Iterable[tuple[str, Decomposition]],
    *,
    say: Callable[[str], object],
) -> dict[str, float]:
    """Return the mean loss with a single layer replaced, by the name of that layer.

    `replacements` holds the name and the factors of each layer. An iterator that creates them one
    by one saves memory. The network is not changed.
    """
    losses = {}
    for name, factors in replacements:
        with replaced(network, name, factors):
            losses[name] = mean_loss(task, network, images, spec)
        say(f"only {name} replaced: loss {losses[name]:.4f}")
    return losses
