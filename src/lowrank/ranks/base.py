"""What the ways of choosing ranks share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from lowrank.errors import UserError
from lowrank.factorize import Factorization
from lowrank.params import RankSettings, described
from lowrank.plan import Layer


@dataclass(frozen=True)
class Candidate:
    """A layer whose ranks are to be chosen.

    Parameters
    ----------
    layer
        As the layer table holds it.
    kernel
        Shape (T, S / g, D_h, D_w), any float type, finite.
    factorization
        What it is to be factored by.
    full_ranks
        The largest ranks of one group that are of use: those of the factorization, or, of a layer
        that is factored already, the ranks that it has.
    is_factored
        Whether the kernel is the product of factors that the layer has been replaced by.
    """

    layer: Layer
    kernel: np.ndarray
    factorization: Factorization
    full_ranks: tuple[int, ...]
    is_factored: bool = False


# To the ranks of one group. A rank of 0 leaves the layer as it is; None where the rule has no
# ranks for it. Ranks too high are seen to afterwards.
RankRule = Callable[[Candidate, RankSettings], tuple[int, ...] | None]


def rank_settings(settings: RankSettings | Mapping[str, Any]) -> RankSettings:
    """The settings, checked. Raises UserError for an unknown one, or one out of its range."""
    if isinstance(settings, RankSettings):
        return settings
    try:
        return RankSettings.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"ranks: {described(error, RankSettings)}") from error
