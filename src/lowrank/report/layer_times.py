"""Where the time of a network goes, by original layer. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.core.layers import LayerTable
from lowrank.core.plans import Factored

# What belongs to no layer: pooling, changes of memory order.
REST = "rest"


def times_by_layer(
    table: LayerTable,
    factored: Mapping[str, Factored],
    original: Mapping[str, float],
    compressed: Mapping[str, float],
) -> list[dict[str, Any]]:
    """A record for each layer, and one for the rest.

    Parameters
    ----------
    table
        The network.
    factored
        What layers were replaced by, by their names.
    original, compressed
        Milliseconds by plain layer: a layer has its name, the first of its factors `<layer>.0`;
        what else there is counts as rest.

    Returns
    -------
    list of dict
        `layer`; `original_ms` and `compressed_ms`; of the latter `pointwise_ms`, what 1 x 1
        convolutions take (which Kim et al. 2016 found slower than their multiply-accumulates
        tell); and `speedup`, None where a layer takes no time of its own.
    """
    owners = {layer.name: (layer.name, layer) for layer in table.layers}
    for name, each in factored.items():
        owners |= {f"{name}.{index}": (name, plain) for index, plain in enumerate(each.sequence)}
    records = {
        name: {"layer": name, "original_ms": 0.0, "compressed_ms": 0.0, "pointwise_ms": 0.0}
        for name in [*(layer.name for layer in table.layers), REST]
    }
    for plain, milliseconds in original.items():
        name, _ = owners.get(plain, (REST, None))
        records[name]["original_ms"] += milliseconds
    for plain, milliseconds in compressed.items():
        name, layer = owners.get(plain, (REST, None))
        records[name]["compressed_ms"] += milliseconds
        if layer is not None and layer.kernel == (1, 1):
            records[name]["pointwise_ms"] += milliseconds
    return [
        {key: each if key == "layer" else round(each, 6) for key, each in record.items()}
        | {"speedup": _ratio(record["original_ms"], record["compressed_ms"])}
        for record in records.values()
    ]


def _ratio(before: float, after: float) -> float | None:
    return round(before / after, 4) if before and after else None
