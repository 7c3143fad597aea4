"""Two models turn about, and how sure their ratio is."""

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
    """Time two models turn about.

    A turn is some runs of one model, and a pair of turns is one of each, close together, so that
    whatever slows the machine for a while slows both. Which goes first alternates, and the number
    of pairs is even, so that going first is no advantage to either.

    The first run of a turn is not counted: it finds the processor's caches full of the other
    model, which no application runs in between. In turns of one run it is counted.

    Parameters
    ----------
    original, compressed : callable
        Run one model once.
    runs : int
        Runs in a turn.
    repeats : int
        Counted runs of each model at least.
    seconds : float
        Time that the counted runs of both models take together at least.
    clock : callable
        The time in ns.

    Returns
    -------
    array of int64, (pairs, 2, counted runs)
        How long each counted run took, in ns: of the original, of the compressed.
    """
    models = (original, compressed)
    least_total = seconds * NANOSECONDS_PER_SECOND
    total = 0
    counted = max(runs - 1, 1)
    pairs: list[list[list[int]]] = []
    while len(pairs) * counted < repeats or total < least_total or len(pairs) % 2:
        pair: list[list[int]] = [[], []]
        for which in (0, 1) if len(pairs) % 2 == 0 else (1, 0):
            for _ in range(runs):
                start = clock()
                models[which]()
                # A clock too coarse for the run would otherwise make a ratio of zeros.
                pair[which].append(max(clock() - start, 1))
            pair[which] = pair[which][-counted:]
            total += sum(pair[which])
        pairs.append(pair)
    return np.array(pairs, dtype=np.int64)


def ratio_and_interval(sittings: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The median ratio of original to compressed, and the bounds that hold it 95 times in 100.

    By bootstrap (Efron 1979) in two stages: of sittings, and of the pairs of turns in each. Within
    one sitting a model keeps its place in memory, and so its luck: pairs alone would tell an
    interval far narrower than the next measurement's distance.

    Parameters
    ----------
    sittings
        Of each what `nanoseconds_in_turns` returned.
    """
    ratios = []
    for sitting in sittings:
        of_turns = np.median(sitting, axis=2)
        ratios.append(of_turns[:, 0] / of_turns[:, 1])
    generator = np.random.default_rng(0)
    found = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        chosen = generator.integers(len(ratios), size=len(ratios))
        drawn = [generator.choice(ratios[index], len(ratios[index])) for index in chosen]
        found[resample] = np.median(np.concatenate(drawn))
    beyond = (100 - _COVERED_PERCENT) / 2
    low, high = np.percentile(found, [beyond, 100 - beyond])
    return float(np.median(np.concatenate(ratios))), float(low), float(high)
