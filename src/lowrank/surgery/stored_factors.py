"""Read one layer from a state file with NumPy only."""

from pathlib import Path

from numpy.typing import NDArray

from lowrank.core.plans import Factored
from lowrank.core.stored import read_header, read_tensor
from lowrank.errors import UserError
from lowrank.factorize import reconstruct


def layer_factored(state: Path, name: str) -> Factored | None:
    """Return what a layer was replaced by, or None if it is dense."""
    document = read_header(state)["factored"].get(name)
    return document and Factored.from_json(document)


def layer_weight(state: Path, name: str) -> NDArray:
    """Return the kernel (T, S / groups, D_h, D_w) or matrix (T, S) of a layer.

    If the layer was replaced by factors, return the kernel reconstructed from them.
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
    """Return the bias (T,) of a dense or factored layer, or None if it has no bias."""
    factored = layer_factored(state, name)
    module = f"{name}.{len(factored.sequence) - 1}" if factored else name
    return read_tensor(state, f"{module}.bias")


def _tensor(state: Path, name: str) -> NDArray:
    if (tensor := read_tensor(state, name)) is None:
        raise UserError(
            f"{state}: has no tensor '{name}'. Delete the file and run the same command again."
        )
    return tensor
