"""The layers that a method may factor, with the factorizations that they may get."""

from collections.abc import Iterable, Iterator, Mapping

from lowrank.core.layers import Layer, LayerTable
from lowrank.factorize import Factorization, get_factorization, one_group


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
        More factorizations. Layers with a kernel of 1 x 1 get those that fit their kind.
    """
    for name, first in layers.items():
        layer = table[name]
        kind = "matrix" if layer.kernel == (1, 1) else "window"
        for factorization in dict.fromkeys([first, *alternatives]):
            method = get_factorization(factorization)
            if factorization != first and kind not in method.layer_kinds:
                continue
            if not (layer.not_factored or method.applies_to(layer)):
                yield layer, method, method.full_ranks(one_group(layer))
