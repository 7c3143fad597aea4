"""How much a network loses by the decomposition of one layer alone."""

from collections.abc import Callable, Iterable

from torch import nn

from lowrank.data.datasets import Split
from lowrank.factorize import Decomposition
from lowrank.surgery.states import replaced
from lowrank.tasks.classification import mean_loss
from lowrank.zoo.registry import NetworkSpec


def losses_by_layer(
    network: nn.Module,
    spec: NetworkSpec,
    images: Split,
    replacements: Iterable[tuple[str, Decomposition]],
    *,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Mean cross-entropy with one layer at a time replaced, by the name of that layer.

    The network is left as it was. `replacements` are a layer's name and its factors; an iterator
    that makes them one after the other saves memory.
    """
    losses = {}
    for name, factors in replacements:
        with replaced(network, name, factors):
            losses[name] = mean_loss(network, images, spec)
        say(f"{name} alone: loss {losses[name]:.4f}")
    return losses
