"""What the ways of choosing ranks share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from lowrank.config.mistakes import described
from lowrank.config.ranks import RankSettings
from lowrank.core.layers import Layer, LayerTable
from lowrank.errors import UserError
from lowrank.factorize import Factorization, get_factorization, one_group


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


def taken_layers(
    table: LayerTable, layers: Mapping[str, str], alternatives: Iterable[str] = ()
) -> Iterator[tuple[Layer, Factorization, tuple[int, ...]]]:
    """Each layer with each factorization that takes it, and its full ranks.

    Parameters
    ----------
    table
        Layers that it marks as not to be factored are left out.
    layers
        The factorization of each layer, by its name.
    alternatives
        Further ones, for layers with a window.
    """
    for name, first in layers.items():
        layer = table[name]
        others = alternatives if layer.kernel != (1, 1) else ()
        for factorization in dict.fromkeys([first, *others]):
            method = get_factorization(factorization)
            if not (layer.not_factored or method.applies_to(layer)):
                yield layer, method, method.full_ranks(one_group(layer))


def rank_settings(settings: RankSettings | Mapping[str, Any]) -> RankSettings:
    """The settings, checked. Raises UserError for an unknown one, or one out of its range."""
    if isinstance(settings, RankSettings):
        return settings
    try:
        return RankSettings.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"ranks: {described(error, RankSettings, settings)}") from error
