"""Arrays with a JSON header in safetensors files: the storage format of weights and factors.

This module needs only NumPy, so steps that do not use PyTorch need not load it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lowrank.errors import UserError
from lowrank.files import written_whole

# A single key, because safetensors writes several keys in a random order.
_HEADER = "lowrank"


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    header: dict[str, Any] | None = None,
) -> None:
    """Write arrays and a header, completely or not at all; equal contents give equal bytes."""
    metadata = {_HEADER: json.dumps(header, sort_keys=True)} if header is not None else None
    # safetensors writes the memory of an array as is and ignores its strides.
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with written_whole(path) as partial:
        save_file(contiguous, partial, metadata)


def read_tensors(path: str | os.PathLike[str], framework: str = "np") -> dict[str, Any]:
    """Read all arrays of a file, by name. Raises UserError for a missing or truncated file.

    With `framework="pt"` they are PyTorch tensors, which support types that NumPy lacks (bfloat16).
    """
    with _opened(path, framework) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_tensor(path: str | os.PathLike[str], name: str) -> NDArray[Any] | None:
    """Read one array of a file without the rest; return None if the file has no such array."""
    with _opened(path) as file:
        return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON header of a file. Raises UserError if `lowrank` did not write the file."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if _HEADER not in metadata:
        raise UserError(
            f"{path}: a safetensors file, but lowrank did not write it: it has no header of a "
            "network or of factors. Delete it and run the same command again."
        )
    header: dict[str, Any] = json.loads(metadata[_HEADER])
    return header


@contextmanager
def _opened(path: str | os.PathLike[str], framework: str = "np") -> Iterator[Any]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a complete safetensors file ({path.stat().st_size} bytes; {error}). It "
            "was probably truncated while it was copied. Download or build it again."
        ) from error
