"""The inputs or the outputs of a network for a batch: one tensor, or several tensors by name.

Each tensor has the shape (N, ...). The functions take tensors of PyTorch and arrays of NumPy.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


def mapped(function: Callable[[Any], Any], tensors: Any) -> Any:
    """Return the tensors with a function applied to each."""
    if isinstance(tensors, Mapping):
        return {name: function(tensor) for name, tensor in tensors.items()}
    return function(tensors)


def by_name(tensors: Any) -> dict[str, Any]:
    """Return the tensors by name; a single tensor has an empty name."""
    return dict(tensors) if isinstance(tensors, Mapping) else {"": tensors}


def length(tensors: Any) -> int:
    """Return the number of samples, N."""
    return max((len(tensor) for tensor in by_name(tensors).values()), default=0)


def pieces(tensors: Any, size: int) -> Iterator[Any]:
    """Yield the tensors in pieces of at most `size` samples."""
    for start in range(0, length(tensors), size):
        rows = slice(start, start + size)
        yield mapped(operator.itemgetter(rows), tensors)


def filled_up(tensors: Any, size: int) -> Any:
    """Return the tensors with `size` samples: the last sample is repeated."""
    last = length(tensors) - 1
    if last + 1 == size:
        return tensors
    rows = [min(row, last) for row in range(size)]
    return mapped(lambda tensor: tensor[rows], tensors)


def for_inputs(names: Sequence[str], tensors: Any) -> dict[str, Any]:
    """Return the tensors by the names of a network's inputs; a single one is for the only input."""
    named = by_name(tensors)
    if len(names) == 1 and len(named) == 1:
        return {names[0]: next(iter(named.values()))}
    return {name: named[name] for name in names}
