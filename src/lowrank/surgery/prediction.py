"""What a network keeps of its accuracy at chosen ranks, before any fine-tuning: by trying it."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from lowrank.factorize import Decomposition
from lowrank.surgery.states import replaced
from lowrank.zoo.forward import evaluation_mode


def with_factors(
    network: nn.Module,
    replacements: Iterable[tuple[str, Decomposition]],
    measure: Callable[[], float],
) -> float:
    """What is measured of a network with all of these layers replaced; it is left as it was."""
    with ExitStack() as stack:
        for name, factors in replacements:
            stack.enter_context(replaced(network, name, factors))
        return measure()


@torch.no_grad()
def answers(network: nn.Module, images: Sequence[Tensor]) -> Tensor | None:
    """The class that the network gives each image of some batches: (N,).

    None for a network whose outputs are not logits, (N, classes).
    """
    found = []
    with evaluation_mode(network):
        for batch in images:
            outputs = network(batch)
            if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
                return None
            found.append(outputs.argmax(1))
    return torch.cat(found) if found else None


def percent_equal(found: Tensor, expected: Tensor) -> float:
    """Return the share of positions at which two lists of classes agree, in percent."""
    return 100.0 * float((found == expected).double().mean())
