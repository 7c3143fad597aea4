"""Moments of layers' inputs in a file: one layer is read without the others, with NumPy alone."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowrank.core.stored import read_header, read_tensor, write_tensors
from lowrank.errors import UserError
from lowrank.factorize import Moments


def write_moments(path: Path, moments: Mapping[str, Moments]) -> None:
    """Store moments by the name of their layer, in float32.

    That is exact enough: the ridge that decompositions add is 1e-4 of the mean of the diagonal.
    """
    tensors = {
        f"{name}.{part}": getattr(each, part).astype(np.float32, copy=False)
        for name, each in moments.items()
        for part in ("mean", "covariance")
    }
    write_tensors(path, tensors, {name: each.samples for name, each in moments.items()})


def layer_moments(path: Path, name: str) -> Moments:
    """The moments of one layer. Raises UserError where the file has none of it."""
    mean, covariance = (read_tensor(path, f"{name}.{part}") for part in ("mean", "covariance"))
    if mean is None or covariance is None:
        raise UserError(
            f"{path}: holds no moments of layer '{name}'. Delete it and run the same command again."
        )
    return Moments(mean, covariance, read_header(path)[name])
