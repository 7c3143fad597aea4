"""Measure a network at chosen ranks, before fine-tuning."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TypeVar

from torch import nn

from lowrank.factorize import Decomposition
from lowrank.surgery.states import replaced

Result = TypeVar("Result")


def with_factors(
    network: nn.Module,
    replacements: Iterable[tuple[str, Decomposition]],
    measure: Callable[[], Result],
) -> Result:
    """Return the result of `measure` with all these layers replaced, then restore the network."""
    with ExitStack() as stack:
        for name, factors in replacements:
            stack.enter_context(replaced(network, name, factors))
        return measure()
