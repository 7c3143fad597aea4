"""Reading one layer out of a network's state with NumPy alone."""

from pathlib import Path

from numpy.typing import NDArray

from lowrank.core.plans import Factored
from lowrank.core.stored import read_header, read_tensor
from lowrank.errors import UserError
from lowrank.factorize import reconstruct


def layer_factored(state: Path, name: str) -> Factored | None:
    """What a layer has been replaced by; None where it is dense."""
    document = read_header(state)["factored"].get(name)
    return document and Factored.from_json(document)


def layer_weight(state: Path, name: str) -> NDArray:
    """The kernel (T, S / groups, D_h, D_w) or matrix (T, S) of a layer.

    Of a layer that has been replaced by factors, the kernel that they amount to.
    """
    factored = layer_factored(state, name)
    if not factored:
        return _tensor(state, f"{name}.weight")
    sequence = factored.sequence
    # The factors of a linear layer are stored as matrices.
    weights = [
        _tensor(state, f"{name}.{index}.weight").reshape(plain.weight_shape)
        for index, plain in enumerate(sequence)
    ]
    return reconstruct(sequence, weights)


def layer_bias(state: Path, name: str) -> NDArray | None:
    """The bias (T,) of a layer, factored or not; None where it has none."""
    factored = layer_factored(state, name)
    holder = f"{name}.{len(factored.sequence) - 1}" if factored else name
    return read_tensor(state, f"{holder}.bias")


def _tensor(state: Path, name: str) -> NDArray:
    if (tensor := read_tensor(state, name)) is None:
        raise UserError(f"{state}: holds no tensor '{name}'. Delete it and run the command again.")
    return tensor
