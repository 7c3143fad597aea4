"""The samples on which the change of outputs is measured for each layer at several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from lowrank.core.layers import Layer
from lowrank.core.tensors import length, pieces
from lowrank.onnx_networks.model_run import Feed

# Work that the samples may take: their number, times the MACs of the network, times the number of
# layers that are decomposed alone. PaddleOCR's orientation network (16 M MACs, one answer for a
# sample) gets all of 256: at 0.7 of the MACs, the divergence on other samples is 0.44 with 16, 0.36
# with 64, 0.34 with 256. Its recognition network (702 M MACs, 40 answers for a sample) gets the
# usual number.
_WORK = 750e9

# Number of samples for a large network. If they would take more than `_LARGE_WORK`, the network
# gets fewer.
_USUAL, _LARGE_WORK = 64, 4e12
_FEWEST = 32

# Number of samples from which on a part is kept for the losses.
_FEWEST_TO_DIVIDE = 16


def enough(layers: Sequence[Layer]) -> int:
    """Return on how many samples to measure losses, for a network with these layers."""
    tried = sum(not layer.not_factored for layer in layers)
    work_of_sample = max(tried * sum(layer.dense_macs for layer in layers), 1)
    usual = min(_USUAL, int(_LARGE_WORK / work_of_sample))
    return max(int(_WORK / work_of_sample), usual, _FEWEST)


def spread(batches: Sequence[Feed], count: int, *, multiple: int = 1) -> list[Feed]:
    """Return `count` samples that are spread evenly over the batches, or all if there are fewer.

    Samples of the same shape are joined to batches as large as before.

    Parameters
    ----------
    batches
        Inputs by name.
    count
        Number of samples.
    multiple
        Size of a batch for a network that takes no other. `count` is rounded up to a multiple.
    """
    lengths = [length(batch) for batch in batches]
    count = -(-count // multiple) * multiple
    if sum(lengths) <= count:
        return list(batches)
    taken = [
        {name: array[rows] for name, array in batch.items()}
        for batch, (rows, _) in zip(batches, divided(lengths, count), strict=True)
    ]
    spread_pieces: list[Feed] = []
    for _, alike in groupby(filter(length, taken), _shapes):
        parts = list(alike)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        spread_pieces += pieces(joined, max(lengths))
    return spread_pieces


def divided(
    lengths: Sequence[int], count: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return for each batch which of its samples are among `count` spread samples, and the others.

    Parameters
    ----------
    lengths
        Number of samples of each batch.
    count
        Number of samples of all batches to take, at most all.
    """
    is_taken = np.zeros(sum(lengths), bool)
    is_taken[np.linspace(0, sum(lengths) - 1, count).astype(int)] = True
    parts = np.split(is_taken, np.cumsum(lengths)[:-1])
    return [(np.flatnonzero(part), np.flatnonzero(~part)) for part in parts]


def held_out(layers: Sequence[Layer], samples: int) -> int:
    """Return how many samples to keep for losses, which factors are not fitted to; 0 for none.

    Factors that were fitted to a sample lose less on it than on others. Behind a global mean, where
    an image gives one sample, the loss is a hundredth of that on other images, so such layers would
    get too low ranks. With 32 of 256 samples for losses that were also fitted to, a text
    recognition network reads 83 % of the lines after compression, with 64 other ones 90 %.
    """
    return min(enough(layers), samples // 4) if samples >= _FEWEST_TO_DIVIDE else 0


def _shapes(batch: Feed) -> dict[str, tuple[int, ...]]:
    """Return the shape of one sample of each input."""
    return {name: array.shape[1:] for name, array in batch.items()}
