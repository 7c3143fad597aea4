"""What a network keeps of its accuracy at chosen ranks, before any fine-tuning: by trying it."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from math import prod

import torch
from torch import Tensor, nn

from lowrank.core.layers import Layer, LayerTable
from lowrank.core.plans import Expected, PlannedLayer
from lowrank.factorize import Decomposition, get_factorization
from lowrank.surgery.states import replaced
from lowrank.zoo.forward import evaluation_mode

# A decomposition without a closed form takes about this many multiplications of its kernel in a
# few seconds. Where a round needs more, it would take as long as the round itself.
_CHEAP = 1e8


def is_cheap(table: LayerTable, planned: Iterable[PlannedLayer]) -> bool:
    """Whether all layers of a round can be decomposed in a few seconds, once more than needed."""
    return sum(_work(table[each.name], each) for each in planned if not each.is_dense) <= _CHEAP


def _work(layer: Layer, planned: PlannedLayer) -> float:
    """Elements of the kernel, times the ranks, where terms are found one after the other."""
    method = get_factorization(planned.factorization)
    if method.is_closed_form:
        return 0.0
    return float(prod(layer.weight_shape)) * max(planned.ranks)


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


def sentence(expected: Expected) -> str:
    """What is expected, for a user."""
    what = "accuracy" if expected.of_labels else "agreement with the original"
    return (
        f"expected before any fine-tuning: {what} {expected.before:.2f} % -> "
        f"{expected.after:.2f} % on {expected.images} images (chance {expected.chance:.1f} %)"
    )
