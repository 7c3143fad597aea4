"""Store input moments in a file, and read those of one layer with NumPy only."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowrank.core.stored import read_header, read_tensor, write_tensors
from lowrank.errors import UserError
from lowrank.factorize import Moments


def write_moments(path: Path, moments: Mapping[str, Moments]) -> None:
    """Write moments by layer name, in float32.

    This precision is sufficient: decompositions add a ridge of 1e-4 of the mean of the diagonal.
    """
    tensors = {
        f"{name}.{part}": getattr(measured, part).astype(np.float32, copy=False)
        for name, measured in moments.items()
        for part in ("mean", "covariance")
    }
    samples = {name: measured.samples for name, measured in moments.items()}
    write_tensors(path, tensors, samples)


def layer_moments(path: Path, name: str) -> Moments:
    """Read the moments of one layer. Raises UserError if the file does not contain them."""
    mean, covariance = (read_tensor(path, f"{name}.{part}") for part in ("mean", "covariance"))
    if mean is None or covariance is None:
        raise UserError(
            f"{path}: holds no moments of layer '{name}'. Delete the file and run the same command "
            "again."
        )
    return Moments(mean, covariance, read_header(path)[name])
