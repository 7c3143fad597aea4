"""Decompose convolutions with FasterAI, by each of its ways to choose ranks that fits a target."""

import functools

from fasterai.misc.conv_decomposer import Conv_Decomposer
from peer import Work, largest_within, timed
from torch import nn


def main() -> None:
    work = Work()

    def decomposed(setting: float, method: str, rule: str, iterations: int) -> nn.Module:
        # One is no valid share to remove.
        value = 1 - setting if rule == "percent_removed" else max(setting, 1e-6)
        return Conv_Decomposer().decompose(
            work.copy(), method=method, n_iter=iterations, **{rule: min(value, 1 - 1e-6)}
        )

    def within(method: str, rule: str) -> nn.Module:
        # Ranks do not depend on the iterations of Tucker.
        counted = functools.partial(decomposed, method=method, rule=rule, iterations=0)
        return decomposed(largest_within(work.limit, counted), method, rule, iterations=10)

    # Its methods `spatial` and `cp` average over input channels: with one percent removed, they
    # already change the output of a convolution by 0.99 of its norm.
    work.keep_best(
        [
            timed(f"{method}, {rule}", functools.partial(within, method, rule))
            for method in ("tucker", "svd")
            for rule in ("percent_removed", "energy_threshold")
        ]
    )


if __name__ == "__main__":
    main()
