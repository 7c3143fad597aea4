"""Channel removal: the layer reads some of its input channels, with a kernel solved for these."""

import hashlib
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
from scipy import linalg

from lowrank.core.layers import Layer, PlainLayer
from lowrank.factorize.factorization import Factorization, windowed
from lowrank.factorize.moments import channel_covariance

# The matrices of all channels are updated after this share of the channels was removed, and among
# how many times as many of the cheapest channels the removed ones are searched.
_UPDATES = 64
_CANDIDATES = 4


class RemoveChannels(Factorization):
    """Removal of input channels, with the least-squares kernel for those that stay.

    The layers that feed this layer lose the same channels, so no node is added. Which channels stay
    is decided one channel at a time: the next one to go is the one whose loss the others compensate
    best (optimal brain surgeon, Hassibi & Stork 1993, for whole channels; a similar selection is
    the interpolative decomposition of Chee et al., NeurIPS 2022). The kernel for the rest solves
    the least-squares problem of He et al. 2017, "Channel pruning for accelerating very deep neural
    networks". Without moments, the channels with the smallest weights are removed, and the other
    weights stay as they are.
    """

    name: ClassVar[str] = "remove_channels"
    rank_names: ClassVar[tuple[str, ...]] = ("channels",)
    layer_kinds: ClassVar[tuple[str, ...]] = ("window", "matrix")
    removes_channels: ClassVar[bool] = True

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Return why channels cannot be removed from the input of a layer, or None."""
        if layer.groups > 1:
            return "remove_channels: the layer has several groups"
        if isinstance(layer, Layer) and layer.fed_by is None:
            return "remove_channels: its input channels do not come from one layer for it alone"
        return None

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return (S,)."""
        return (layer.in_channels,)

    def kept(self, kernel: np.ndarray) -> np.ndarray:
        """Return the squared norm of the r input channels with the largest weights, for each r."""
        norms = _norms(kernel)
        kept: np.ndarray = np.cumsum(norms[np.argsort(-norms, kind="stable")])
        return kept

    def kept_of_outputs(self, kernel: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """Return the squared norm of the outputs that is kept, for each number of channels."""
        return _eliminated(kernel, covariance).kept

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: a selection (S to R), D_h x D_w (R to T)."""
        (rank,) = ranks
        rest = windowed(layer, rank, layer.out_channels)
        return (
            PlainLayer(layer.in_channels, rank, selects=True),
            PlainLayer(
                rest.in_channels,
                rest.out_channels,
                rest.kernel,
                rest.stride,
                rest.padding,
                rest.dilation,
                bias=layer.bias,
            ),
        )

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return the selection, (R, S, 1, 1), and the kernel for it, (T, R, D_h, D_w)."""
        (rank,) = ranks
        stay = np.sort(np.argsort(-_norms(kernel), kind="stable")[:rank])
        return _selection(stay, kernel.shape[1]), np.ascontiguousarray(kernel[:, stay])

    def factors_for_outputs(
        self, kernel: np.ndarray, ranks: tuple[int, ...], covariance: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the factors in the shapes of `factors`, for the smallest error of the outputs."""
        (rank,) = ranks
        channels = kernel.shape[1]
        stay = _eliminated(kernel, covariance).stay(rank)
        flat = np.moveaxis(kernel, 1, -1) if len(covariance) == channels else kernel
        flat = flat.reshape(-1, len(covariance)).astype(np.float64)
        rows = _rows(stay, channels, covariance)
        solved = linalg.solve(
            covariance[np.ix_(rows, rows)], covariance[rows] @ flat.T, assume_a="pos"
        ).T
        if len(covariance) == channels:
            by_tap = solved.reshape(len(kernel), *kernel.shape[2:], rank)
            return _selection(stay, channels), np.ascontiguousarray(np.moveaxis(by_tap, -1, 1))
        return _selection(stay, channels), solved.reshape(len(kernel), rank, *kernel.shape[2:])


def covariance_of_channels_that_stay(selection: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return the part of a covariance for the channels that a selection copies.

    Parameters
    ----------
    selection
        Kernel of the selection, (R, S, 1, 1).
    covariance
        Covariance of the patches, (S D_h D_w, S D_h D_w), or of the channels, (S, S).
    """
    rows = _rows(selection[:, :, 0, 0].argmax(1), selection.shape[1], covariance)
    part: np.ndarray = covariance[np.ix_(rows, rows)]
    return part


def _rows(stay: np.ndarray, channels: int, covariance: np.ndarray) -> np.ndarray:
    """Return the rows of a covariance, of patches or of channels, for some channels."""
    taps = len(covariance) // channels
    rows: np.ndarray = (stay[:, None] * taps + np.arange(taps)).ravel()
    return rows


@dataclass(frozen=True)
class _Elimination:
    """The order in which channels are removed.

    Parameters
    ----------
    order
        All channels, (S,), the first to be removed first.
    kept
        Shape (S,): entry r - 1 is the squared norm of the outputs with r channels.
    """

    order: np.ndarray
    kept: np.ndarray

    def stay(self, rank: int) -> np.ndarray:
        """Return the channels that stay, in ascending order."""
        stay: np.ndarray = np.sort(self.order[len(self.order) - rank :])
        return stay


# The last eliminations, by the digest of their inputs. An elimination serves all ranks of a layer,
# and takes most of a minute for 4,096 channels.
_eliminations: dict[bytes, _Elimination] = {}
_KEPT_ELIMINATIONS = 32


def _eliminated(kernel: np.ndarray, covariance: np.ndarray) -> _Elimination:
    """Return the order in which channels are removed, from an earlier call if there was one."""
    digest = hashlib.blake2b(repr((kernel.shape, kernel.dtype.str)).encode())
    for array in (kernel, covariance):
        digest.update(np.ascontiguousarray(array).data)
    key = digest.digest()
    if (known := _eliminations.get(key)) is None:
        known = _eliminations[key] = _eliminate(kernel, covariance)
        while len(_eliminations) > _KEPT_ELIMINATIONS:
            _eliminations.pop(next(iter(_eliminations)), None)
    return known


def _eliminate(kernel: np.ndarray, covariance: np.ndarray) -> _Elimination:
    """Remove one channel after another, by the covariance of the channels.

    Removing channel j costs (W^T W)_jj / (C^-1)_jj if the kernels of the others are solved again.
    Both matrices are updated after removals: W^T W for the solved kernels, and the inverse of C for
    the channels that are left. The taps are treated as uncorrelated.
    """
    channels, taps = kernel.shape[1], prod(kernel.shape[2:])
    if len(covariance) > channels:
        covariance = channel_covariance(covariance, taps)
    by_channel = np.moveaxis(kernel, 1, -1).reshape(-1, channels).astype(np.float64)
    gram, inverse = by_channel.T @ by_channel, linalg.inv(covariance)
    whole = float(np.vdot(gram, covariance))
    left, order, costs = np.arange(channels), [], []
    while len(left):
        # Of many channels, several are removed before the matrices of the others are updated.
        count = max(len(left) // _UPDATES, 1)
        losses = np.diag(gram) / np.diag(inverse)
        cheapest = np.argsort(losses, kind="stable")[: _CANDIDATES * count]
        within = np.ix_(cheapest, cheapest)
        removed, block_costs = _cheapest(gram[within], inverse[within], count)
        gone = cheapest[removed]
        order += left[gone].tolist()
        costs += block_costs
        others = np.setdiff1d(np.arange(len(left)), gone)
        gram, inverse = _without(gram, inverse, gone, others)
        left = left[others]
    # Entry r - 1: the norm without the costs of the first S - r removals.
    lost = np.concatenate([np.cumsum(costs)[-2::-1], [0.0]])
    return _Elimination(np.array(order), np.maximum(whole - lost, 0.0))


def _cheapest(gram: np.ndarray, inverse: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    """Remove the cheapest channel several times; return the channels and what each one costs."""
    left, removed, costs = np.arange(len(gram)), [], []
    for _ in range(count):
        losses = np.diag(gram) / np.diag(inverse)
        index = int(losses.argmin())
        removed.append(int(left[index]))
        costs.append(float(losses[index]))
        others = np.delete(np.arange(len(left)), index)
        gram, inverse = _without(gram, inverse, np.array([index]), others)
        left = left[others]
    return removed, costs


def _without(
    gram: np.ndarray, inverse: np.ndarray, gone: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return both matrices for the other channels after some channels are removed."""
    # The kernels of the others become W_q - W_d X.
    change = linalg.solve(inverse[np.ix_(gone, gone)], inverse[np.ix_(gone, others)])
    crossed = change.T @ (gram[np.ix_(gone, others)] - 0.5 * gram[np.ix_(gone, gone)] @ change)
    kept = np.ix_(others, others)
    return (
        gram[kept] - crossed - crossed.T,
        inverse[kept] - inverse[np.ix_(others, gone)] @ change,
    )


def _norms(kernel: np.ndarray) -> np.ndarray:
    """Return the squared norm of the weights of each input channel, (S,)."""
    norms: np.ndarray = np.square(kernel, dtype=np.float64).sum((0, 2, 3))
    return norms


def _selection(stay: np.ndarray, channels: int) -> np.ndarray:
    selection = np.zeros((len(stay), channels, 1, 1))
    selection[np.arange(len(stay)), stay] = 1.0
    return selection


ENTRIES = (RemoveChannels(),)
