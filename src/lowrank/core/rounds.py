"""Rounds of a schedule: the layers of each round and their factorizations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from lowrank.core.layers import Layer, LayerTable


def rounds_of(
    layers: Sequence[Layer],
    *,
    kind: str = "one_shot",
    group: int = 1,
    order: str | Sequence[str] = "network",
    stages: int = 1,
) -> list[list[str]]:
    """Return the names of the layers of each round.

    Parameters
    ----------
    layers
        Layers of the method, in network order.
    kind
        `one_shot`: one round with all layers (Kim et al. 2016). `iterative`: one round for every
        `group` layers (Astrid & Lee 2017). `hybrid`: convolutions as in `iterative`, then all
        linear layers in one round (our reading of Astrid & Lee 2018). `multi_stage`: `stages`
        rounds, each with all layers (Gusak et al. 2019).
    group
        Number of layers in one round of `iterative` and `hybrid`.
    order
        `network`: first to last. `reverse`: last to first. A sequence of names: these layers come
        first, in this order; the others follow in network order.
    stages
        Number of rounds of `multi_stage`.
    """
    ordered = _ordered(layers, order)
    names = [layer.name for layer in ordered]
    match kind:
        case "one_shot":
            return [names]
        case "multi_stage":
            return [names] * stages
        case "iterative":
            return _in_groups(names, group)
    linear = [layer.name for layer in ordered if layer.kind == "linear"]
    convolutions = [name for name in names if name not in linear]
    return _in_groups(convolutions, group) + ([linear] if linear else [])


def _ordered(layers: Sequence[Layer], order: str | Sequence[str]) -> list[Layer]:
    if order == "network":
        return list(layers)
    if order == "reverse":
        return list(reversed(layers))
    position = {name: index for index, name in enumerate(order)}
    return sorted(layers, key=lambda layer: position.get(layer.name, len(position)))


def _in_groups(names: Sequence[str], group: int) -> list[list[str]]:
    return [list(names[start : start + group]) for start in range(0, len(names), group)]


def assign_factorizations(
    table: LayerTable,
    factorize: Mapping[str, str | None],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> dict[str, str]:
    """Return the factorization of each layer of a method, by layer name, in network order.

    `factorize` maps a kind of layer (`first_conv`, `conv`, `pointwise_conv`, `flattened_linear`,
    `linear`) to the name of a factorization. None leaves that kind dense. If `flattened_linear` is
    None, a linear layer behind a flattened map counts as `linear`.

    Three groups of layers are left out: layers that no factorization can replace
    (`Layer.not_factored`), layers whose name matches no pattern of `include`, and layers whose name
    matches a pattern of `exclude`. Patterns are shell patterns: `*`, `?` and `[...]`.
    """
    assigned = {}
    first_conv = next((layer.name for layer in table.layers if layer.kind == "conv"), None)
    for layer in table.layers:
        if layer.not_factored or not fits(layer.name, include) or fits(layer.name, exclude):
            continue
        pointwise = layer.kernel == (1, 1)
        if layer.kind == "linear":
            kinds = ["linear"] if pointwise else ["flattened_linear", "linear"]
        elif layer.name == first_conv:
            kinds = ["first_conv"]
        else:
            kinds = ["pointwise_conv"] if pointwise else ["conv"]
        if factorization := next(filter(None, map(factorize.get, kinds)), None):
            assigned[layer.name] = factorization
    return assigned


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a layer's name matches at least one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
