"""Measure the accuracy of a network at chosen ranks, before fine-tuning."""

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
    """Return the result of `measure` with all these layers replaced, then restore the network."""
    with ExitStack() as stack:
        for name, factors in replacements:
            stack.enter_context(replaced(network, name, factors))
        return measure()


@torch.no_grad()
def predicted_classes(network: nn.Module, images: Sequence[Tensor]) -> Tensor | None:
    """Return the predicted class of each image in some batches, (N,).

    Returns None if the outputs of the network are not logits (N, classes), or without images.
    """
    predictions = []
    with evaluation_mode(network):
        for batch in images:
            outputs = network(batch)
            if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
                return None
            predictions.append(outputs.argmax(1))
    return torch.cat(predictions) if predictions else None


def percent_equal(classes: Tensor, expected: Tensor) -> float:
    """Return the share of positions at which two lists of classes agree, in percent."""
    return 100.0 * float((classes == expected).double().mean())
