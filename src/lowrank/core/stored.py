"""Arrays with a JSON header in safetensors files: how weights and factors are stored.

NumPy alone, so that a step that needs no PyTorch does not wait for it.
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

# One key, because safetensors writes several in an order of its own, different every time.
_HEADER = "lowrank"


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, NDArray], header: dict[str, Any] | None = None
) -> None:
    """Write arrays and a header, whole or not at all; equal contents give equal bytes."""
    metadata = {_HEADER: json.dumps(header, sort_keys=True)} if header is not None else None
    # safetensors writes the memory of an array as it lies there, whatever its strides.
    plain = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with written_whole(path) as partial:
        save_file(plain, partial, metadata)


def read_tensors(path: str | os.PathLike, framework: str = "np") -> dict[str, Any]:
    """All arrays of a file by name. Raises UserError when it is missing or truncated.

    With `framework="pt"` they are PyTorch's tensors, which have types that NumPy lacks (bfloat16).
    """
    with _opened(path, framework) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_tensor(path: str | os.PathLike, name: str) -> NDArray | None:
    """One array of a file, None where it has none of that name; the rest is not read."""
    with _opened(path) as file:
        return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON header of a file. Raises UserError when it is not one that `lowrank` wrote."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if _HEADER not in metadata:
        raise UserError(
            f"{path}: a safetensors file, but not one of a network or of factors that lowrank "
            "wrote. Delete it and run the same command again."
        )
    return json.loads(metadata[_HEADER])


@contextmanager
def _opened(path: str | os.PathLike, framework: str = "np") -> Iterator[Any]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({path.stat().st_size} bytes; {error}). It was "
            "probably cut off while it was copied: fetch or build it again."
        ) from error
