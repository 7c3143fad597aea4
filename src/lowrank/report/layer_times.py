"""Sum the time of a network by original layer. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.core.layers import REST, LayerTable, PlainLayer
from lowrank.core.plans import Factored


def times_by_layer(
    table: LayerTable,
    factored: Mapping[str, Factored],
    original: Mapping[str, float],
    compressed: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Return a record for each layer, and one for the rest.

    Parameters
    ----------
    table
        The layers of the network.
    factored
        The factorization of each replaced layer, by the layer's name.
    original, compressed
        Milliseconds by name of a plain layer. A dense layer has its own name, and its factors have
        the names `<layer>.0`, `<layer>.1` and so on. All other names count as the rest.

    Returns
    -------
    list of dict
        `layer`; `original_ms` and `compressed_ms`; `pointwise_ms`, the part of `compressed_ms` in
        1 x 1 convolutions, which are slower than their MACs suggest (Kim et al. 2016); `speedup`,
        or None if the layer takes no time of its own.
    """
    owners: dict[str, tuple[str, PlainLayer | None]] = {
        layer.name: (layer.name, layer) for layer in table.layers
    }
    for name, factors in factored.items():
        owners |= {f"{name}.{index}": (name, plain) for index, plain in enumerate(factors.sequence)}
    times = {
        name: {"original_ms": 0.0, "compressed_ms": 0.0, "pointwise_ms": 0.0}
        for name in [*(layer.name for layer in table.layers), REST]
    }
    for plain, milliseconds in original.items():
        name, _ = owners.get(plain, (REST, None))
        times[name]["original_ms"] += milliseconds
    for plain, milliseconds in compressed.items():
        name, layer = owners.get(plain, (REST, None))
        times[name]["compressed_ms"] += milliseconds
        if layer is not None and layer.kernel == (1, 1):
            times[name]["pointwise_ms"] += milliseconds
    return [
        {"layer": name}
        | {key: round(value, 6) for key, value in record.items()}
        | {"speedup": _ratio(record["original_ms"], record["compressed_ms"])}
        for name, record in times.items()
    ]


def _ratio(before: float, after: float) -> float | None:
    return round(before / after, 4) if before and after else None
