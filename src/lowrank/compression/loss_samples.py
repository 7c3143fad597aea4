"""The samples on which the change of outputs is measured for each layer at several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from lowrank.core.layers import Layer
from lowrank.core.tensors import length, pieces
from lowrank.onnx_networks.model_run import Feed

# Work that the samples may take: their number, times the MACs of the network, times the number of
# layers that are decomposed alone. On PaddleOCR's text recognition network (702 M MACs, 40 answers
# for a sample) this allows 32 samples, which take 40 s of processor time; 8, 16 and 32 samples give
# equally good ranks. Its orientation network (16 M MACs, one answer for a sample) gets all of 256:
# at 0.7 of the MACs, the divergence on other samples is 0.44 with 16, 0.36 with 64, 0.34 with 256.
_WORK = 750e9

# Smallest number of samples for a large network.
_FEWEST = 32


def enough(layers: Sequence[Layer]) -> int:
    """Return on how many samples to measure losses, for a network with these layers."""
    tried = sum(not layer.not_factored for layer in layers)
    return max(int(_WORK / max(tried * sum(layer.dense_macs for layer in layers), 1)), _FEWEST)


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
    numbers = np.linspace(0, sum(lengths) - 1, count).astype(int)
    starts = np.cumsum([0, *lengths])
    taken = [
        {
            name: array[numbers[(numbers >= start) & (numbers < end)] - start]
            for name, array in batch.items()
        }
        for batch, start, end in zip(batches, starts[:-1], starts[1:], strict=True)
    ]
    spread_pieces: list[Feed] = []
    for _, alike in groupby(filter(length, taken), _shapes):
        parts = list(alike)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        spread_pieces += pieces(joined, max(lengths))
    return spread_pieces


def _shapes(batch: Feed) -> dict[str, tuple[int, ...]]:
    """Return the shape of one sample of each input."""
    return {name: array.shape[1:] for name, array in batch.items()}
