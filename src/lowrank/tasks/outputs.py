"""The outputs of a network: one tensor, or several tensors by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lowrank.core.tensors import by_name, mapped

if TYPE_CHECKING:
    from torch import Tensor

    # Each tensor has the shape (N, ...).
    Outputs = Tensor | dict[str, Tensor]

__all__ = ["by_name", "float_pairs", "joined", "mapped", "outputs_from"]


def outputs_from(value: Any) -> Outputs:
    """Return what a network returned as one tensor, or as tensors by name.

    Entries of lists and tuples are named `output0`, `output1`, ...; nested names are joined by a
    dot. Values that are no tensors are left out.

    Raises TypeError if there is no tensor.
    """
    from torch import Tensor

    if isinstance(value, Tensor):
        return value
    tensors = dict(_named_tensors(value, ""))
    if not tensors:
        raise TypeError(f"the network returns {type(value).__name__} without a tensor")
    return tensors


def _named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    from torch import Tensor

    if isinstance(value, Tensor):
        yield name, value
        return
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        parts = ((f"output{index}", part) for index, part in enumerate(value))
    for key, part in parts:
        yield from _named_tensors(part, f"{name}.{key}" if name else str(key))


def float_pairs(outputs: Outputs, expected: Outputs) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each floating-point output beside the expected one, by name.

    Other outputs, such as indices and counts, are left out. An output of another shape than
    expected, such as another number of detections, is replaced by zeros.
    """
    actual, pairs = by_name(outputs), {}
    for name, reference in by_name(expected).items():
        if reference.is_floating_point() and reference.numel():
            is_comparable = actual[name].shape == reference.shape
            pairs[name] = (
                actual[name] if is_comparable else reference.new_zeros(()).expand_as(reference),
                reference,
            )
    return pairs


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Return the outputs of several batches as those of one batch."""
    import torch

    first = parts[0]
    if isinstance(first, dict):
        return {name: torch.cat([by_name(part)[name] for part in parts]) for name in first}
    return torch.cat([by_name(part)[""] for part in parts])
