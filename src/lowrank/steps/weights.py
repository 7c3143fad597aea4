"""Reading one layer out of a network's state with NumPy alone."""

from pathlib import Path

from numpy.typing import NDArray

from lowrank.errors import UserError
from lowrank.stored import read_tensor


def layer_weight(state: Path, name: str) -> NDArray:
    """The kernel (T, S / groups, D_h, D_w) or matrix (T, S) of a dense layer."""
    weight = read_tensor(state, f"{name}.weight")
    if weight is None:
        raise UserError(f"{state}: holds no weights of a dense layer '{name}'.")
    return weight


def layer_bias(state: Path, name: str) -> NDArray | None:
    """The bias (T,) of a dense layer; None where it has none."""
    return read_tensor(state, f"{name}.bias")
