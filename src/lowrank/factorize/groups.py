"""Factorization of complete layers: groups, checks and the approximation error."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.errors import UserError
from lowrank.factorize.factorization import Factorization
from lowrank.factorize.moments import (
    BLOCK,
    Moments,
    output_error_squared,
    regularized,
    weighted_factors,
)
from lowrank.factorize.reconstruction import reconstruct


@dataclass(frozen=True)
class Decomposition:
    """The replacement of a layer.

    Parameters
    ----------
    sequence
        The plain layers.
    weights
        Their kernels, float32 and C-contiguous, each with the `weight_shape` of its plain layer.
    bias
        Bias of the last plain layer, float32 of shape (T,), or None.
    relative_error
        ||W - W~|| / ||W|| in the Frobenius norm; 0 for a zero kernel.
    output_error
        Relative error of the layer's outputs around their mean, on the images of the moments; None
        without moments.
    """

    sequence: tuple[PlainLayer, ...]
    weights: tuple[np.ndarray, ...]
    bias: np.ndarray | None
    relative_error: float
    output_error: float | None = None

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Weights and bias by their names in a sequence of layers: `0.weight`, ..."""
        tensors = {f"{index}.weight": weight for index, weight in enumerate(self.weights)}
        if self.bias is not None:
            tensors[f"{len(self.weights) - 1}.bias"] = self.bias
        return tensors


def one_group(layer: PlainLayer) -> PlainLayer:
    """Return the plain layer for a single group of `layer`."""
    return PlainLayer(
        layer.in_channels // layer.groups,
        layer.out_channels // layer.groups,
        kernel=layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        bias=layer.bias,
    )


def kernel_of(layer: PlainLayer, weight: np.ndarray, *, name: str = "") -> np.ndarray:
    """Return the weight as a kernel with the layer's `weight_shape`.

    A linear layer's weight of shape (T, S D_h D_w) is also accepted. S x D_h x D_w is then the map
    that was flattened before the layer, row by row; D_h and D_w are 1 without such a map.

    Raises UserError for another shape, or for values that are not finite; `name` is the layer's
    name for the message.
    """
    subject = f"the weight of layer '{name}'" if name else "the weight"
    kernel = weight
    if weight.shape == (layer.out_channels, prod(layer.weight_shape[1:])):
        kernel = weight.reshape(layer.weight_shape)
    if kernel.shape != layer.weight_shape:
        raise UserError(
            f"{subject} has shape {weight.shape}, but the layer table expects "
            f"{layer.weight_shape}. The checkpoint belongs to another network: correct its path, "
            "or create a new layer table with 'lowrank inspect'."
        )
    if not np.isfinite(kernel).all():
        raise UserError(
            f"{subject} contains NaN or infinity; finite numbers were expected. Its training "
            "diverged: lower the learning rate, or use another checkpoint."
        )
    return kernel


def group_kernels(layer: PlainLayer, kernel: np.ndarray) -> np.ndarray:
    """Reshape (T, S / g, D_h, D_w) to (g, T / g, S / g, D_h, D_w)."""
    return kernel.reshape(layer.groups, -1, *kernel.shape[1:])


def grouped_sequence(
    factorization: Factorization, layer: PlainLayer, ranks: Sequence[int]
) -> tuple[PlainLayer, ...]:
    """Return the plain layers that replace a layer with any number of groups.

    `ranks` are the ranks of one group.
    """
    return tuple(
        replace(
            plain,
            in_channels=plain.in_channels * layer.groups,
            out_channels=plain.out_channels * layer.groups,
            groups=plain.groups * layer.groups,
        )
        for plain in factorization.sequence(one_group(layer), tuple(ranks))
    )


def decompose(
    factorization: Factorization,
    layer: PlainLayer,
    weight: np.ndarray,
    bias: np.ndarray | None,
    ranks: Sequence[int],
    moments: Moments | None = None,
) -> Decomposition:
    """Factor every group of a layer at the same ranks.

    With the moments of the layer's inputs, the factors approximate its outputs instead of its
    weights (`lowrank.factorize.moments`). The mean error is then added to the bias; a layer without
    a bias gets one.

    Parameters
    ----------
    factorization
        Factorization for one group.
    layer
        The layer, with any number of groups.
    weight
        Shape (T, S / g, D_h, D_w), or (T, S D_h D_w) for a linear layer; any float type.
    bias
        Shape (T,), or None for a layer without bias.
    ranks
        The ranks of one group, in the order of the factorization's `rank_names`.
    moments
        Moments of each group's inputs.

    Raises
    ------
    UserError
        If the factorization does not apply to the layer, the ranks are out of range, or the weight
        does not fit the layer or is not finite.
    """
    if reason := factorization.applies_to(layer):
        raise UserError(f"{factorization.name} cannot factor this layer: {reason}.")
    ranks = tuple(ranks)
    _check_ranks(factorization, layer, ranks)
    kernel = kernel_of(layer, weight)
    if moments is not None and bias is None:
        bias = np.zeros(layer.out_channels, np.float32)
    layer = replace(layer, bias=bias is not None)
    weights = _factors_of_groups(factorization, layer, kernel, ranks, moments)
    sequence = grouped_sequence(factorization, layer, ranks)
    approximation = reconstruct(sequence, weights)
    output_error = None
    if moments is not None:
        output_error, mean_error = _output_errors(layer, kernel, approximation, moments)
        bias = bias + mean_error
    return Decomposition(
        sequence=sequence,
        weights=weights,
        bias=None if bias is None else np.ascontiguousarray(bias, dtype=np.float32),
        relative_error=_relative_error(kernel, approximation),
        output_error=output_error,
    )


def _factors_of_groups(
    factorization: Factorization,
    layer: PlainLayer,
    kernel: np.ndarray,
    ranks: tuple[int, ...],
    moments: Moments | None,
) -> tuple[np.ndarray, ...]:
    """Return the kernels of the plain layers, float32; the arguments are those of `decompose`."""
    # Groups are consecutive along the output channels, and so are their factors.
    kernels = group_kernels(layer, kernel)
    if moments is None:
        factors_of_groups = [
            factorization.factors(group.astype(np.float64), ranks) for group in kernels
        ]
    else:
        factors_of_groups = [
            weighted_factors(factorization, one_group(layer), group, ranks, regularized(covariance))
            for group, covariance in zip(kernels, moments.covariance, strict=True)
        ]
    return tuple(
        np.ascontiguousarray(np.concatenate(factors), dtype=np.float32)
        for factors in zip(*factors_of_groups, strict=True)
    )


def _relative_error(kernel: np.ndarray, approximation: np.ndarray) -> float:
    error_squared = norm_squared = 0.0
    # One output channel at a time, to avoid a float64 copy of a large kernel.
    for exact, approximate in zip(kernel, approximation, strict=True):
        exact = exact.astype(np.float64)
        difference = exact - approximate
        norm_squared += float(np.vdot(exact, exact))
        error_squared += float(np.vdot(difference, difference))
    return float(np.sqrt(error_squared / norm_squared)) if norm_squared > 0 else 0.0


def _output_errors(
    layer: PlainLayer, kernel: np.ndarray, approximation: np.ndarray, moments: Moments
) -> tuple[float, np.ndarray]:
    """Return the relative error of the outputs around their mean, and their mean error, (T,)."""
    error_squared = norm_squared = 0.0
    mean_errors = []
    for exact, approximate, mean, covariance in zip(
        group_kernels(layer, kernel),
        group_kernels(layer, approximation),
        moments.mean,
        moments.covariance,
        strict=True,
    ):
        # A block of output channels at a time: for a large linear layer, a full copy would take
        # most of the memory.
        for start in range(0, len(exact), BLOCK):
            rows = slice(start, start + BLOCK)
            difference = exact[rows] - approximate[rows]
            error_squared += output_error_squared(difference, covariance)
            norm_squared += output_error_squared(exact[rows], covariance)
            if len(mean) == difference.shape[1]:
                difference = difference.sum(axis=(2, 3))
            mean_errors.append(difference.reshape(len(difference), -1) @ mean)
    error = float(np.sqrt(max(error_squared, 0.0) / norm_squared)) if norm_squared > 0 else 0.0
    return error, np.concatenate(mean_errors)


def _check_ranks(factorization: Factorization, layer: PlainLayer, ranks: tuple[int, ...]) -> None:
    names, full = factorization.rank_names, factorization.full_ranks(one_group(layer))
    if len(ranks) != len(names):
        raise UserError(
            f"ranks: {factorization.name} needs {len(names)} ({', '.join(names)}), "
            f"found {len(ranks)}: {ranks}. Give one number for each."
        )
    for name, rank, largest in zip(names, ranks, full, strict=True):
        if not 1 <= rank <= largest:
            raise UserError(
                f"ranks: the {name} rank of {factorization.name} is {rank}; expected 1 to "
                f"{largest} for this layer. Give a number in that range."
            )
        if rank % factorization.rank_multiple:
            raise UserError(
                f"ranks: the {name} rank of {factorization.name} is {rank}; expected a multiple of "
                f"{factorization.rank_multiple}. Change the rank to such a multiple."
            )
