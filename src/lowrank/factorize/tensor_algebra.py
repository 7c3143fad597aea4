"""Unfoldings and mode products of NumPy arrays, computed by TensorLy.

Modes are numbered from 0, as in TensorLy. A kernel (T, S, D_h, D_w) has the modes output channels,
input channels, height and width.

A process that imports `lowrank` may use TensorLy with another backend: `tl.set_backend("pytorch")`,
or the environment variable TENSORLY_BACKEND. The functions below select the NumPy backend for their
own thread while they run, and restore the choice afterwards. They call the functions of
`core_tenalg` directly, so that TENSORLY_TENALG_BACKEND does not change the results.

The first call imports TensorLy, which takes longer than the import of all factorizations together.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lowrank.errors import UserError


def unfold(tensor: np.ndarray, mode: int) -> np.ndarray:
    """Return the unfolding of a tensor, (I_mode, product of the other sizes), other modes in order.

    The result is a view of the tensor if its memory allows this, otherwise a copy.
    """
    with _numpy_backend():
        from tensorly import base

        unfolding: np.ndarray = base.unfold(tensor, mode)
    return unfolding


def matricize(
    tensor: np.ndarray, row_modes: Sequence[int], column_modes: Sequence[int]
) -> np.ndarray:
    """Return the tensor as a matrix, with these modes as its rows and columns, in this order."""
    with _numpy_backend():
        from tensorly import base

        matrix: np.ndarray = base.matricize(tensor, row_modes, column_modes)
    return matrix


def mode_dot(
    tensor: np.ndarray, matrix: np.ndarray, mode: int, *, transpose: bool = False
) -> np.ndarray:
    """Return the mode product: the matrix (J, I_mode) times the fibers along that mode.

    Parameters
    ----------
    tensor
        Shape (..., I_mode, ...).
    matrix
        Shape (J, I_mode), or (I_mode, J) with `transpose`.
    mode
        The mode that the product replaces.
    transpose
        Multiply by the transpose of the matrix.

    Returns
    -------
    np.ndarray
        Shape (..., J, ...). The mode is the slowest in memory.
    """
    with _numpy_backend():
        from tensorly.tenalg import core_tenalg

        product: np.ndarray = core_tenalg.mode_dot(tensor, matrix, mode, transpose=transpose)
    return product


@contextmanager
def _numpy_backend() -> Iterator[None]:
    """Select TensorLy's NumPy backend for this thread only.

    TensorLy's own `backend_context` restores the former backend for all threads, not only for its
    own.
    """
    manager = _backend_manager()
    chosen = manager.current_backend()
    if chosen.backend_name == "numpy":
        yield
        return
    manager.set_backend("numpy", local_threadsafe=True)
    try:
        yield
    finally:
        manager.set_backend(chosen, local_threadsafe=True)


def _backend_manager() -> Any:
    """Return TensorLy's manager of backends. Raises UserError if TENSORLY_BACKEND is missing."""
    try:
        from tensorly.backend import BackendManager
    except ImportError as error:
        name = os.environ.get("TENSORLY_BACKEND", "numpy")
        if name == "numpy":
            raise
        raise UserError(
            f"TensorLy cannot load the backend '{name}', which the environment variable "
            f"TENSORLY_BACKEND names: {error}. Expected an installed backend: unset the variable, "
            f"or install '{name}'."
        ) from error
    return BackendManager
