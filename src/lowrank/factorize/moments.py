"""Factors that approximate a layer's outputs on real inputs instead of its weights.

If the bias absorbs the mean error, the mean squared error of a layer's output is
||(W - W~) C^(1/2)||^2, where C is the covariance of its input patches and W is the kernel as a
matrix T x (S D^2). Zhang et al. 2016, "Accelerating very deep convolutional networks for
classification and detection", minimize it for their factorization. Here, every factorization
minimizes it, in two steps:

1. Multiply the kernel by a square root of the covariance of the channels, decompose the product as
   usual, and divide the first factor by the root. This is possible because the first factor is
   linear in the input channels. If the first factor contains the full window, the covariance of the
   patches is used instead, which gives the optimum.
2. The layers behind the first layer receive patches that it has encoded. Their best kernel solves a
   linear least-squares problem. If these layers form a factorization themselves (`tail`), this
   kernel is decomposed in the norm of the encoded patches, which again gives the optimum. Otherwise
   only the last factor is replaced by its least-squares solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

from lowrank.factorize.reconstruction import reconstruct
from lowrank.factorize.tensor_algebra import mode_dot, unfold

if TYPE_CHECKING:
    from lowrank.core.layers import PlainLayer
    from lowrank.factorize.factorization import Factorization

# Share of the diagonal's mean that is added to the diagonal. Directions that do not occur in the
# images get this weight, so the approximation follows the weights there.
_RIDGE = 1e-4

# Number of output channels that are multiplied at a time.
BLOCK = 64


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a layer's inputs on real images.

    Parameters
    ----------
    mean
        Shape (g, N): E[x] for each of the layer's g groups. N is S / g D_h D_w for patches in the
        order of the kernel's (S / g, D_h, D_w), or S / g for channels only.
    covariance
        Shape (g, N, N): E[x x^T] - E[x] E[x]^T, any float type.
    samples
        Number of vectors x. If it is below N, only the ridge of `regularized` covers some
        directions.
    """

    mean: np.ndarray
    covariance: np.ndarray
    samples: int


@dataclass(frozen=True)
class Shift:
    """Change of a layer's inputs caused by decomposing earlier layers; it complements `Moments`.

    Parameters
    ----------
    mean
        Shape (g, N): E[x0], the mean in the original network, with N as in `Moments`.
    crossed
        Shape (g, N, N): E[x0 x^T] - E[x0] E[x]^T, between the original and the current inputs.
    """

    mean: np.ndarray
    crossed: np.ndarray


def carried_over(
    kernel: np.ndarray,
    bias: np.ndarray | None,
    moments: Moments,
    shift: Shift,
    *,
    positions: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel and bias that best reproduce the original outputs from the current inputs.

    The mean squared error of the outputs is smallest for W C_0x C_xx^-1 (Zhang et al. 2016, section
    3.2, "asymmetric"). A layer thus compensates for the errors of earlier layers, and errors do not
    accumulate. In directions that do not occur in the images, the kernel does not change. With few
    images, it changes less in all directions, because it would fit their errors (`_with_ridge`).

    Parameters
    ----------
    kernel
        Shape (T, S / g, D_h, D_w), from the original network.
    bias
        Shape (T,), or None.
    moments, shift
        Statistics of the layer's inputs.
    positions
        Number of positions at which the layer is applied in one image. Inputs at different
        positions of an image are similar, so they count as fewer samples.

    Returns
    -------
    tuple of np.ndarray
        Kernel and bias, of the same shapes, float32.
    """
    groups = len(moments.mean)
    kernels = np.empty(kernel.shape, np.float32)
    bias_changes = []
    for number, group in enumerate(np.split(kernel.astype(np.float64), groups)):
        covariance = _with_ridge(moments.covariance[number], moments.samples / positions**0.5)
        size = len(covariance)
        by_channel = size == group.shape[1]
        flat = np.moveaxis(group, 1, -1) if by_channel else group
        flat = flat.reshape(-1, size)
        # W (C_0x - C_xx) C_xx^-1. The ridge of C_xx makes it 0 in directions without data.
        change = flat @ (shift.crossed[number] - moments.covariance[number])
        new_flat = flat + linalg.solve(covariance, change.T, assume_a="pos").T
        mean_error = flat @ shift.mean[number] - new_flat @ moments.mean[number]
        bias_changes.append(mean_error.reshape(len(group), -1).sum(1))
        if by_channel:
            new_flat = np.moveaxis(new_flat.reshape(len(group), *group.shape[2:], size), -1, 1)
        rows = slice(number * len(group), (number + 1) * len(group))
        kernels[rows] = new_flat.reshape(group.shape)
    new_bias = np.concatenate(bias_changes) + (0 if bias is None else bias)
    return kernels, new_bias.astype(np.float32)


def weighted_factors(
    factorization: Factorization,
    layer: PlainLayer,
    kernel: np.ndarray,
    ranks: tuple[int, ...],
    covariance: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Return the factors of one group that approximate its outputs, in the shapes of `factors`.

    Parameters
    ----------
    factorization
        The factorization.
    layer
        The layer, with one group.
    kernel
        Shape (T, S, D_h, D_w), any float type.
    ranks
        The ranks, in the order of the factorization's `rank_names`.
    covariance
        Covariance of the patches, (S D_h D_w, S D_h D_w), or of the channels, (S, S); positive
        definite, as returned by `regularized`.
    """
    if (own := factorization.factors_for_outputs(kernel, ranks, covariance)) is not None:
        return own
    # Scale by a power of 4, whose root is exact, so that the scale of the inputs does not enter the
    # factors.
    covariance = covariance / 4.0 ** round(np.log2(np.trace(covariance) / len(covariance)) / 2)
    kernel_whitened, root = whitened(factorization, layer, kernel, covariance)
    head, *rest = factorization.factors(kernel_whitened, ranks)
    # For a large linear layer, this array needs more memory than everything below.
    del kernel_whitened
    if len(root) > kernel.shape[1]:
        # Each entry of the patch counts as a channel, because the first factor contains the full
        # window.
        head = _divided_by(head.reshape(len(head), -1), root).reshape(head.shape)
        return head, *rest
    head = _channels_divided_by(head, root)
    tail = factorization.tail(layer, ranks)
    if tail:
        head, mixing = _with_orthonormal_rows(head)
    if len(covariance) > kernel.shape[1]:
        return head, *_refitted(factorization, layer, kernel, ranks, covariance, [head, *rest])
    if tail:
        # Equal to `mode_dot(rest[0], mixing, 1)`, which gives zeros of the other sign for a
        # kernel of zeros.
        rest[0] = np.einsum("trkl,sr->tskl", rest[0], mixing, optimize=True)
    return head, *rest


def _channels_divided_by(head: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Return the first factor, (R, S, E_h, E_w), with its input channels divided by the root."""
    rank, channels, *window = head.shape
    by_channel = np.moveaxis(head.reshape(rank, channels, -1), 1, 2)
    by_channel = _divided_by(by_channel.reshape(-1, channels), root)
    by_channel = by_channel.reshape(rank, -1, channels)
    return np.ascontiguousarray(np.moveaxis(by_channel, 2, 1)).reshape(rank, -1, *window)


def _with_orthonormal_rows(head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an orthonormal basis of the rows of the first factor, and the mixing to restore it.

    Any basis of the space that the first factor keeps gives the same result. An orthonormal basis,
    as without moments, trains well. After the division by the root, the first factor has condition
    numbers of up to 100.
    """
    basis, mixing = np.linalg.qr(head.reshape(len(head), -1).T)  # head^T = basis mixing
    return np.ascontiguousarray(basis.T).reshape(head.shape), mixing


def _refitted(
    factorization: Factorization,
    layer: PlainLayer,
    kernel: np.ndarray,
    ranks: tuple[int, ...],
    covariance: np.ndarray,
    factors: list[np.ndarray],
) -> tuple[np.ndarray, ...]:
    """Return all factors but the first, fitted to the encoded patches that they receive.

    `factors` are all factors so far; the others are the arguments of `weighted_factors`, with the
    covariance of the patches.
    """
    first, *others = factorization.sequence(layer, ranks)
    head, *rest = factors
    if tail := factorization.tail(layer, ranks):
        method, tail_layer, tail_ranks = tail
        before = reconstruct([first], [head])
        target, encoded, _ = _least_squares(kernel, covariance, before, tail_layer.kernel)
        target = target.reshape(len(kernel), len(head), *tail_layer.kernel)
        return weighted_factors(method, tail_layer, target, tail_ranks, encoded)
    before = reconstruct([first, *others[:-1]], [head, *rest[:-1]])
    last, _, silent = _least_squares(kernel, covariance, before, others[-1].kernel)
    # Channels that are always 0, as for a zero kernel, have no effect. The last factor keeps its
    # values for them, because two consecutive factors of 0 would never train.
    last[:, silent] = rest[-1].reshape(last.shape)[:, silent]
    return *rest[:-1], last.reshape(rest[-1].shape)


def whitened(
    factorization: Factorization, layer: PlainLayer, kernel: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel times a root of the covariance; its norm is then the norm of the outputs.

    The covariance of the patches is used if the factorization's first layer contains the full
    window. Otherwise the covariance of the channels is used, as if the taps were uncorrelated. The
    arguments are those of `weighted_factors`.

    Returns
    -------
    tuple of np.ndarray
        The kernel, in its shape and C-contiguous, and the root, which is lower triangular of shape
        (S D^2, S D^2) or (S, S).
    """
    first, *_ = factorization.sequence(layer, factorization.full_ranks(layer))
    taps = prod(layer.kernel)
    if len(covariance) == kernel.shape[1] * taps:
        if first.kernel == layer.kernel:
            root = np.linalg.cholesky(covariance)
            return (unfold(kernel, 0) @ root).reshape(kernel.shape), root
        covariance = channel_covariance(covariance, taps)
    root = np.linalg.cholesky(covariance)
    product = np.empty(kernel.shape)
    # A block of output channels at a time, because the kernel of a linear layer can take as much
    # memory as everything else.
    for start in range(0, len(kernel), BLOCK):
        block = kernel[start : start + BLOCK].astype(np.float64)
        product[start : start + BLOCK] = mode_dot(block, root, 1, transpose=True)
    return product, root


def output_error_squared(difference: np.ndarray, covariance: np.ndarray) -> float:
    """Return E||D (x - E[x])||^2 for a kernel D, (T, S, D_h, D_w).

    `covariance` is that of the patches or of the channels only.
    """
    if len(covariance) == difference.shape[1]:
        # The taps are treated as uncorrelated, so their errors add up.
        flat = difference.swapaxes(1, -1).reshape(-1, len(covariance))
    else:
        flat = difference.reshape(len(difference), -1)
    return float(np.vdot(flat @ covariance, flat))


def regularized(covariance: np.ndarray) -> np.ndarray:
    """Return the covariance in float64, with a ridge that makes it positive definite."""
    covariance = covariance.astype(np.float64)
    mean = float(np.trace(covariance)) / len(covariance)
    # If the input is constant, the norm is that of the weights.
    covariance.flat[:: len(covariance) + 1] += _RIDGE * mean if mean > 0 else 1.0
    return covariance


def _with_ridge(covariance: np.ndarray, samples: float) -> np.ndarray:
    """Return the covariance in float64 with the ridge of a regression on some samples.

    For n samples of N entries, N / (4 n) of the diagonal's mean is added to the diagonal. A
    regression on few samples fits their errors. The factor of a quarter is near the best one for
    few samples, and costs next to nothing for many.
    """
    size, covariance = len(covariance), covariance.astype(np.float64)
    mean = float(np.trace(covariance)) / size
    covariance.flat[:: size + 1] += size / (4 * samples) * mean
    return regularized(covariance)


def channel_covariance(covariance: np.ndarray, taps: int) -> np.ndarray:
    """Return the covariance of the channels, the mean over the taps: (S D^2, S D^2) -> (S, S)."""
    channels = len(covariance) // taps
    by_tap = covariance.reshape(channels, taps, channels, taps)
    covariance_of_channels: np.ndarray = np.einsum("skuk->su", by_tap) / taps
    return covariance_of_channels


def _divided_by(matrix: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Return X with X L = `matrix` for the lower triangular matrix L = `root`."""
    quotient: np.ndarray = linalg.solve_triangular(root, matrix.T, lower=True, trans="T").T
    return quotient


def _least_squares(
    kernel: np.ndarray, covariance: np.ndarray, before: np.ndarray, window: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best kernel behind an encoder, and its input statistics.

    Returns
    -------
    tuple of np.ndarray
        The kernel, of shape (T, R E^2): B = W C G^T (G C G^T)^-1 for the encoder G, as in
        `_encoded`. The covariance of its inputs, G C G^T, of shape (R E^2, R E^2). Which inputs are
        always 0, so that B has no effect there, of shape (R E^2,).
    """
    # C G^T, because C is symmetric: (S D^2, R E^2)
    cross_covariance = _encoded(covariance, before, window).T
    encoded = _encoded(cross_covariance, before, window)
    target = kernel.reshape(len(kernel), -1) @ cross_covariance  # (T, R E^2)
    # Some encoded directions can be almost 0, for example at a rank above the kernel's rank, or all
    # of them can be 0.
    silent = np.diag(encoded) == 0
    encoded.flat[:: len(encoded) + 1] += 1e-10 * np.trace(encoded) / len(encoded) or 1.0
    return linalg.solve(encoded, target.T, assume_a="pos").T, encoded, silent


def _encoded(columns: np.ndarray, before: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Encode patches of the full layer, (S D_h D_w, n), for its last layer, (R E_h E_w, n).

    Parameters
    ----------
    columns
        One patch in each column.
    before
        Kernel of the layers before the last one, (R, S, C_h, C_w). On each axis D = C E, where C or
        E is 1.
    window
        Window of the last layer, (E_h, E_w).
    """
    size = tuple(c * e for c, e in zip(before.shape[2:], window, strict=True))
    by_tap = columns.reshape(before.shape[1], *size, -1)
    encoded = np.empty((len(before), *window, by_tap.shape[-1]))
    for row, column in np.ndindex(*window):
        rows = slice(row, row + 1) if window[0] > 1 else slice(None)
        along = slice(column, column + 1) if window[1] > 1 else slice(None)
        encoded[:, row, column] = np.tensordot(before, by_tap[:, rows, along], 3)
    return encoded.reshape(-1, by_tap.shape[-1])
