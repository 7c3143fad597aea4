"""Factors that keep a layer's outputs on real inputs, rather than its weights.

With a bias that takes up the mean error, the mean squared error of a layer's output is
||(W - W~) C^(1/2)||^2, where C is the covariance of its input patches and W the kernel as a matrix
T x (S D^2). Zhang et al. 2016, "Accelerating very deep convolutional networks for classification
and detection", minimise it for their shape; here every factorization does, through the norm that it
minimises anyway:

1. The kernel is multiplied by a square root of the covariance of the channels, decomposed as usual,
   and the first factor divided by that root: it is linear in the input channels. Where the first
   factor holds the whole window, the covariance of the patches takes that place, which is then the
   optimum.
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
    from lowrank.core.layers import PlainLayer
    from lowrank.factorize.factorization import Factorization

# Added to the diagonal, as a share of its mean: directions that the images never showed count for
# as much as that, so that the weights decide there.
_RIDGE = 1e-4

# Output channels that are multiplied at a time.
BLOCK = 64


@dataclass(frozen=True)
class Moments:
    """The inputs of a layer on real images.

    Parameters
    ----------
    mean
        Shape (g, N): E[x] for each of the layer's g groups. N is S / g D_h D_w, the patch in the
        order of the kernel's (S / g, D_h, D_w); or S / g, the channels alone.
    covariance
        Shape (g, N, N): E[x x^T] - E[x] E[x]^T, any float type.
    samples
        Over how many x. Fewer than N leave directions that only the ridge of `regularised` fills.
    """

    mean: np.ndarray
    covariance: np.ndarray
    samples: int


@dataclass(frozen=True)
class Shift:
    """How a layer's inputs moved when layers before it were decomposed, beside their `Moments` now.

    Parameters
    ----------
    mean
        Shape (g, N): E[x0], the mean in the original network, N as in `Moments`.
    crossed
        Shape (g, N, N): E[x0 x^T] - E[x0] E[x]^T, of the original inputs with those of now.
    """

    mean: np.ndarray
    crossed: np.ndarray


def carried_over(
    kernel: np.ndarray, bias: np.ndarray | None, moments: Moments, shift: Shift
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and the bias that, on inputs as they are now, answer most like the layer did.

    The mean squared error of the outputs is least for W C_0x C_xx^-1 (Zhang et al. 2016, section
    3.2, "asymmetric"), so that a layer makes up for what those before it lost, and errors do not
    pile up. Where the images show nothing, the kernel stays as it was.

    Parameters
    ----------
    kernel
        Shape (T, S / g, D_h, D_w), of the original network.
    bias
        Shape (T,), or None.
    moments, shift
        Of the layer's inputs.

    Returns
    -------
    tuple of np.ndarray
        Of those shapes, float32.
    """
    groups = len(moments.mean)
    found = np.empty(kernel.shape, np.float32)
    added = []
    for number, group in enumerate(np.split(kernel.astype(np.float64), groups)):
        covariance = regularised(moments.covariance[number])
        # C_0x C_xx^-1 - I, by the ridge of C_xx 0 where there is no data.
        change = np.linalg.solve(
            covariance, (shift.crossed[number] - moments.covariance[number]).T
        ).T
        size = len(change)
        by_channel = size == group.shape[1]
        flat = np.moveaxis(group, 1, -1) if by_channel else group
        flat = flat.reshape(-1, size)
        new = flat + flat @ change
        missed = flat @ shift.mean[number] - new @ moments.mean[number]
        added.append(missed.reshape(len(group), -1).sum(1))
        if by_channel:
            new = np.moveaxis(new.reshape(len(group), *group.shape[2:], size), -1, 1)
        rows = slice(number * len(group), (number + 1) * len(group))
        found[rows] = new.reshape(group.shape)
    total = np.concatenate(added) + (0 if bias is None else bias)
    return found, total.astype(np.float32)


def weighted_factors(
    factorization: Factorization,
    layer: PlainLayer,
    kernel: np.ndarray,
    ranks: tuple[int, ...],
    covariance: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """The factors of one group that keep its outputs, of the shapes that `factors` gives.

    Parameters
    ----------
    factorization
        Whose shape the factors have.
    layer
        The layer, of one group.
    kernel
        Shape (T, S, D_h, D_w), any float type.
    ranks
        In the order of the factorization's `rank_names`.
    covariance
        Shape (S D_h D_w, S D_h D_w), the patches', or (S, S), the channels'; positive definite, as
        `regularised` makes it.
    """
    first, *others = factorization.sequence(layer, ranks)
    # A power of 4, whose root is exact: the scale of the inputs must not end up in the factors.
    covariance = covariance / 4.0 ** round(np.log2(np.trace(covariance) / len(covariance)) / 2)
    kernel_whitened, root = whitened(factorization, layer, kernel, covariance)
    head, *rest = factorization.factors(kernel_whitened, ranks)
    # Of a large linear layer it takes more than all that follows.
    del kernel_whitened
    if len(root) > kernel.shape[1]:
        # One "channel" for each entry of the patch: the window went along.
        head = _divided(head.reshape(len(head), -1), root).reshape(head.shape)
        return head, *rest
    knows_patches = len(covariance) > kernel.shape[1]
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
        before = reconstruct([first], [head])
        target, encoded, _ = _least_squares(kernel, covariance, before, its_layer.kernel)
        target = target.reshape(len(kernel), len(head), *its_layer.kernel)
        return head, *weighted_factors(method, its_layer, target, its_ranks, encoded)
    before = reconstruct([first, *others[:-1]], [head, *rest[:-1]])
    last, _, silent = _least_squares(kernel, covariance, before, others[-1].kernel)
    # Channels that let nothing through, as of a kernel of zeros, decide nothing. What the last
    # factor had for them stays: two factors of 0 in a row would never train.
    last[:, silent] = rest[-1].reshape(last.shape)[:, silent]
    return head, *rest[:-1], last.reshape(rest[-1].shape)


def whitened(
    factorization: Factorization, layer: PlainLayer, kernel: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel times a root of the covariance: its norm is that of its outputs.

    By the patches where the factorization's first layer holds the whole window, else by the
    channels, as if the taps had nothing to do with each other. Arguments as for
    `weighted_factors`.

    Returns
    -------
    tuple of np.ndarray
        The kernel, of its shape, C-contiguous, and the root: lower triangular, (S D^2, S D^2) or
        (S, S).
    """
    first, *_ = factorization.sequence(layer, factorization.full_ranks(layer))
    taps = prod(layer.kernel)
    if len(covariance) == kernel.shape[1] * taps:
        if first.kernel == layer.kernel:
            root = np.linalg.cholesky(covariance)
            return (kernel.reshape(len(kernel), -1) @ root).reshape(kernel.shape), root
        covariance = _of_channels(covariance, taps)
    root = np.linalg.cholesky(covariance)
    product = np.empty(kernel.shape)
    # Some output channels at a time: a linear layer's kernel may take as much as all else.
    for start in range(0, len(kernel), BLOCK):
        block = kernel[start : start + BLOCK].astype(np.float64)
        # (T, S, D_h, D_w) x (S, S) -> (T, D_h, D_w, S)
        product[start : start + BLOCK] = np.moveaxis(np.tensordot(block, root, (1, 0)), -1, 1)
    return product, root


def output_error_squared(difference: np.ndarray, covariance: np.ndarray) -> float:
    """E||D (x - E[x])||^2 for a kernel D, (T, S, D_h, D_w).

    By the covariance of the patches or of the channels alone.
    """
    if len(covariance) == difference.shape[1]:
        # Taps as if they had nothing to do with each other: their errors add up.
        flat = difference.swapaxes(1, -1).reshape(-1, len(covariance))
    else:
        flat = difference.reshape(len(difference), -1)
    return float(np.vdot(flat @ covariance, flat))


def regularised(covariance: np.ndarray) -> np.ndarray:
    """The covariance, safely positive definite, in float64."""
    covariance = covariance.astype(np.float64)
    mean = float(np.trace(covariance)) / len(covariance)
    # An input that never changes says nothing: the norm is then that of the weights.
    covariance.flat[:: len(covariance) + 1] += _RIDGE * mean if mean > 0 else 1.0
    return covariance


def _of_channels(covariance: np.ndarray, taps: int) -> np.ndarray:
    """(S D^2, S D^2) -> (S, S): the covariance of the channels, the mean over the taps."""
    channels = len(covariance) // taps
    return np.einsum("skuk->su", covariance.reshape(channels, taps, channels, taps)) / taps


def _divided(matrix: np.ndarray, root: np.ndarray) -> np.ndarray:
    """X with X L = `matrix`, for the lower triangular L."""
    return np.linalg.solve(root.T, matrix.T).T


def _least_squares(
    kernel: np.ndarray, covariance: np.ndarray, before: np.ndarray, window: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kernel behind an encoder that keeps the outputs best, and the covariance that it sees.

    B = W C E^T (E C E^T)^-1 for the encoder E, as in `_encoded`: shapes (T, R E^2) and
    (R E^2, R E^2). And which encoded values are always 0, so that B does not matter there.
    """
    seen = _encoded(covariance, before, window).T  # C E^T, as C is symmetric: (S D^2, R E^2)
    encoded = _encoded(seen, before, window)
    crossed = kernel.reshape(len(kernel), -1) @ seen  # (T, R E^2)
    # Encoded directions of next to nothing, as of a rank beyond the kernel's; or nothing at all.
    silent = np.diag(encoded) == 0
    encoded.flat[:: len(encoded) + 1] += 1e-10 * np.trace(encoded) / len(encoded) or 1.0
    return np.linalg.solve(encoded, crossed.T).T, encoded, silent


def _encoded(columns: np.ndarray, before: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Patches of the whole layer, (S D_h D_w, n), as the last layer sees them, (R E_h E_w, n).

    Parameters
    ----------
    columns
        A patch in each.
    before
        The kernel of what is before that layer: (R, S, C_h, C_w); D = C E, one of them 1 on each
        axis.
    window
        Of that layer: (E_h, E_w).
    """
    size = tuple(c * e for c, e in zip(before.shape[2:], window, strict=True))
    by_tap = columns.reshape(before.shape[1], *size, -1)
    found = np.empty((len(before), *window, by_tap.shape[-1]))
    for row, column in np.ndindex(*window):
        rows = slice(row, row + 1) if window[0] > 1 else slice(None)
        along = slice(column, column + 1) if window[1] > 1 else slice(None)
        found[:, row, column] = np.tensordot(before, by_tap[:, rows, along], 3)
    return found.reshape(-1, by_tap.shape[-1])
