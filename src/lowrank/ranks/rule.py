"""Types and helpers that all rank rules share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from lowrank.config.ranks import RankSettings
from lowrank.core.layers import Layer, LayerTable
from lowrank.errors import UserError
from lowrank.factorize import Factorization, get_factorization, one_group
from lowrank.settings.mistakes import described


@dataclass(frozen=True)
class Candidate:
    """A layer whose ranks are to be chosen.

    Parameters
    ----------
    layer
        The layer, as in the layer table.
    kernel
        Shape (T, S / g, D_h, D_w), any float type, finite.
    factorization
        The factorization to use.
    full_ranks
        Largest useful ranks of one group: those of the factorization, or the current ranks of a
        layer that is already factored.
    is_factored
        Whether the kernel is the product of factors that have already replaced the layer.
    """

    layer: Layer
    kernel: np.ndarray
    factorization: Factorization
    full_ranks: tuple[int, ...]
    is_factored: bool = False


# A rule returns the ranks of one group. A rank of 0 means that the layer stays as it is. None means
# that the rule has no ranks for the layer. Ranks that are too high are lowered afterwards.
RankRule = Callable[[Candidate, RankSettings], tuple[int, ...] | None]


def taken_layers(
    table: LayerTable, layers: Mapping[str, str], alternatives: Iterable[str] = ()
) -> Iterator[tuple[Layer, Factorization, tuple[int, ...]]]:
    """Yield each layer with each factorization that applies to it, and its full ranks.

    Parameters
    ----------
    table
        Layers of the network. Layers that it excludes from factorization are skipped.
    layers
        Factorization of each layer, by its name.
    alternatives
        More factorizations, for layers with a kernel larger than 1 x 1.
    """
    for name, first in layers.items():
        layer = table[name]
        others = alternatives if layer.kernel != (1, 1) else ()
        for factorization in dict.fromkeys([first, *others]):
            method = get_factorization(factorization)
            if not (layer.not_factored or method.applies_to(layer)):
                yield layer, method, method.full_ranks(one_group(layer))


def rank_settings(settings: RankSettings | Mapping[str, Any]) -> RankSettings:
    """Return the settings after validation.

    Raises UserError for an unknown setting, or for a value out of range.
    """
    if isinstance(settings, RankSettings):
        return settings
    try:
        return RankSettings.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"ranks: {described(error, RankSettings, settings)}") from error
