"""Time two models in alternating turns, and estimate the uncertainty of their ratio."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from lowrank.devices.runtime import NANOSECONDS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RESAMPLES = 2000
_COVERED_PERCENT = 95


def nanoseconds_in_turns(
    original: Callable[[], object],
    compressed: Callable[[], object],
    *,
    runs: int,
    repeats: int,
    seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> np.ndarray:
    """Time two models in alternating turns.

    A turn is a series of runs of one model. A pair of turns is one turn of each model, close
    together in time, so anything that slows the machine for a while slows both. The model that
    starts a pair alternates and the number of pairs is even, so neither gains from going first.

    The first run of a turn is not counted, because the processor's caches still hold the other
    model. An application would not run the other model in between. If a turn has only one run,
    that run is counted.

    Parameters
    ----------
    original, compressed : callable
        Functions that run one model once.
    runs : int
        Number of runs in a turn.
    repeats : int
        Minimum number of counted runs of each model.
    seconds : float
        Minimum total time of the counted runs of both models.
    clock : callable
        Function that returns the time in ns.

    Returns
    -------
    array of int64, (pairs, 2, counted runs)
        Duration of each counted run in ns. The second axis is original, compressed.
    """
    models = (original, compressed)
    minimum_total = seconds * NANOSECONDS_PER_SECOND
    total = 0
    counted = max(runs - 1, 1)
    pairs: list[list[list[int]]] = []
    while len(pairs) * counted < repeats or total < minimum_total or len(pairs) % 2:
        pair: list[list[int]] = [[], []]
        for index in (0, 1) if len(pairs) % 2 == 0 else (1, 0):
            for _ in range(runs):
                start = clock()
                models[index]()
                # At least 1 ns: a coarse clock must not lead to a ratio of zeros.
                pair[index].append(max(clock() - start, 1))
            pair[index] = pair[index][-counted:]
            total += sum(pair[index])
        pairs.append(pair)
    return np.array(pairs, dtype=np.int64)


def ratio_and_interval(sittings: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Return the median ratio original / compressed and the bounds of its 95 % interval.

    The interval comes from a bootstrap (Efron 1979) in two stages, over sittings and over the pairs
    of turns in each sitting. Within one sitting a model keeps its place in memory, which affects
    all its runs. An interval from pairs alone would be far narrower than the difference to the next
    measurement.

    Parameters
    ----------
    sittings : sequence of array
        The result of `nanoseconds_in_turns` for each sitting.

    Returns
    -------
    tuple of float
        The median ratio, the lower bound and the upper bound.
    """
    ratios = []
    for sitting in sittings:
        turn_medians = np.median(sitting, axis=2)
        ratios.append(turn_medians[:, 0] / turn_medians[:, 1])
    generator = np.random.default_rng(0)
    medians = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        chosen_sittings = generator.integers(len(ratios), size=len(ratios))
        drawn_ratios = [
            generator.choice(ratios[index], len(ratios[index])) for index in chosen_sittings
        ]
        medians[resample] = np.median(np.concatenate(drawn_ratios))
    tail_percent = (100 - _COVERED_PERCENT) / 2
    low, high = np.percentile(medians, [tail_percent, 100 - tail_percent])
    return float(np.median(np.concatenate(ratios))), float(low), float(high)
