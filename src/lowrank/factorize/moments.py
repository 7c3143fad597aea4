"""Factors that keep a layer's outputs on real inputs, rather than its weights.

With the second moment M = E[x x^T] of a layer's input patches x, the mean squared error of its
output is ||(W - W~) M^(1/2)||^2, where W is the kernel as a matrix T x (S D^2). Zhang et al. 2016,
"Accelerating very deep convolutional networks for classification and detection", minimise it for
their shape; here every factorization does, through the norm that it minimises anyway:

1. The kernel is multiplied by a square root of the moment of the channels, decomposed as usual, and
   the first factor divided by that root: it is linear in the input channels. Where the first factor
   holds the whole window, the moment of the patches takes that place, which is then the optimum.
2. The layers behind the first one see patches that it has encoded. Their best kernel for these is a
   linear least-squares problem, and where they are a factorization themselves (`tail`), they are
   decomposed in the norm of the encoded patches, which is the optimum again. Otherwise the last
   factor alone is replaced by its least-squares solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from lowrank.factorize.reconstruction import reconstruct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank.factorize.base import Factorization
    from lowrank.plan import PlainLayer

# Added to the diagonal, as a share of its mean: directions that the images never showed count for
# as much as that, so that the weights decide there.
_RIDGE = 1e-4


@dataclass(frozen=True)
class Moments:
    """The inputs of a layer on real images.

    Parameters
    ----------
    mean
        Shape (g, N): E[x] for each of the layer's g groups. N is S / g D_h D_w, the patch in the
        order of the kernel's (S / g, D_h, D_w); or S / g, the channels alone.
    second
        Shape (g, N, N): E[x x^T], any float type.
    samples
        Over how many x. Fewer than N leave directions that only the ridge of `regularised` fills.
    """

    mean: np.ndarray
    second: np.ndarray
    samples: int


def weighted_factors(
    factorization: Factorization,
    layer: PlainLayer,
    kernel: np.ndarray,
    ranks: tuple[int, ...],
    second: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """The factors of one group that keep its outputs, of the shapes that `factors` gives.

    Parameters
    ----------
    factorization
        Whose shape the factors have.
    layer
        The layer, of one group.
    kernel
        Shape (T, S, D_h, D_w), float64.
    ranks
        In the order of the factorization's `rank_names`.
    second
        Shape (S D_h D_w, S D_h D_w), the patches' second moment, or (S, S), the channels'; positive
        definite, as `regularised` makes it.
    """
    first, *others = factorization.sequence(layer, ranks)
    taps = prod(layer.kernel)
    knows_patches = len(second) == kernel.shape[1] * taps
    if knows_patches and first.kernel == layer.kernel:
        # One "channel" for each entry of the patch: the window goes along.
        root = np.linalg.cholesky(second)
        whitened = (kernel.reshape(len(kernel), -1) @ root).reshape(kernel.shape)
        head, *rest = factorization.factors(whitened, ranks)
        head = _divided(head.reshape(len(head), -1), root).reshape(head.shape)
        return head, *rest
    channels = _of_channels(second, taps) if knows_patches else second
    root = np.linalg.cholesky(channels)
    # (T, S, D^2) x (S, S) -> (T, S, D^2)
    whitened = np.einsum("tsk,su->tuk", kernel.reshape(*kernel.shape[:2], -1), root, optimize=True)
    head, *rest = factorization.factors(np.ascontiguousarray(whitened).reshape(kernel.shape), ranks)
    window = head.shape[2:]
    by_channel = np.moveaxis(head.reshape(len(head), kernel.shape[1], -1), 1, 2)
    by_channel = _divided(by_channel.reshape(-1, kernel.shape[1]), root)
    by_channel = by_channel.reshape(len(head), -1, kernel.shape[1])
    head = np.ascontiguousarray(np.moveaxis(by_channel, 2, 1)).reshape(len(head), -1, *window)
    tail = factorization.tail(layer, ranks)
    if tail:
        # Any basis of what the head keeps will do. An orthonormal one, as the weights alone give,
        # suits training: divided by the root, the head has condition numbers of up to a hundred.
        basis, mixing = np.linalg.qr(head.reshape(len(head), -1).T)  # head^T = basis mixing
        head = np.ascontiguousarray(basis.T).reshape(head.shape)
    if not knows_patches:
        if tail:
            rest[0] = np.einsum("trkl,sr->tskl", rest[0], mixing, optimize=True)
        return head, *rest
    if tail:
        method, its_layer, its_ranks = tail
        encoder = _encoder([head], [first], its_layer.kernel)
        target, encoded = _least_squares(kernel, second, encoder)
        target = target.reshape(len(kernel), len(head), *layer.kernel)
        return head, *weighted_factors(method, its_layer, target, its_ranks, encoded)
    encoder = _encoder([head, *rest[:-1]], [first, *others[:-1]], others[-1].kernel)
    last, _ = _least_squares(kernel, second, encoder)
    return head, *rest[:-1], last.reshape(rest[-1].shape)


def output_error_squared(difference: np.ndarray, second: np.ndarray) -> float:
    """E||D x||^2 for a kernel D, (T, S, D_h, D_w), and the second moment of patches or channels."""
    if len(second) == difference.shape[1]:
        # Taps as if they had nothing to do with each other: their errors add up.
        flat = difference.swapaxes(1, -1).reshape(-1, len(second))
    else:
        flat = difference.reshape(len(difference), -1)
    return float(np.vdot(flat @ second, flat))


def regularised(second: np.ndarray) -> np.ndarray:
    """The moment, symmetric and safely positive definite, in float64."""
    second = second.astype(np.float64)
    mean = float(np.trace(second)) / len(second)
    # An input that is always 0 says nothing: the norm is then that of the weights.
    second.flat[:: len(second) + 1] += _RIDGE * mean if mean > 0 else 1.0
    return second


def _of_channels(second: np.ndarray, taps: int) -> np.ndarray:
    """(S D^2, S D^2) -> (S, S): the moment of the channels, the mean over the taps."""
    channels = len(second) // taps
    return np.einsum("skuk->su", second.reshape(channels, taps, channels, taps)) / taps


def _divided(matrix: np.ndarray, root: np.ndarray) -> np.ndarray:
    """X with X L = `matrix`, for the lower triangular L."""
    return np.linalg.solve(root.T, matrix.T).T


def _encoder(
    weights: Sequence[np.ndarray], layers: Sequence[PlainLayer], window: tuple[int, int]
) -> np.ndarray:
    """The matrix from a patch of the whole layer to the patch that the next layer sees.

    Parameters
    ----------
    weights, layers
        The plain layers before the next one.
    window
        The next one's: (E_h, E_w).

    Returns
    -------
    np.ndarray
        Shape (R E_h E_w, S D_h D_w), R channels between.
    """
    before = reconstruct(layers, weights)  # (R, S, C_h, C_w); D = C E, one of them 1 on each axis
    size = tuple(c * e for c, e in zip(before.shape[2:], window, strict=True))
    encoder = np.zeros((len(before), *window, before.shape[1], *size))
    for row, column in np.ndindex(*window):
        rows = slice(row, row + 1) if window[0] > 1 else slice(None)
        columns = slice(column, column + 1) if window[1] > 1 else slice(None)
        encoder[:, row, column, :, rows, columns] = before
    return encoder.reshape(len(before) * prod(window), -1)


def _least_squares(
    kernel: np.ndarray, second: np.ndarray, encoder: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel behind an encoder that keeps the outputs best, and the moment that it sees.

    B = W M E^T (E M E^T)^-1 for the encoder E: shapes (T, R E^2) and (R E^2, R E^2).
    """
    seen = second @ encoder.T  # (S D^2, S D^2) x (S D^2, R E^2)
    encoded = encoder @ seen
    # Encoded directions of next to nothing, as of a rank beyond the kernel's.
    encoded.flat[:: len(encoded) + 1] += 1e-10 * np.trace(encoded) / len(encoded)
    crossed = kernel.reshape(len(kernel), -1) @ seen  # (T, R E^2)
    return np.linalg.solve(encoded, crossed.T).T, encoded
