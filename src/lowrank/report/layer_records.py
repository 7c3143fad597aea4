"""A record of each layer: its ranks, its costs, and the reason why it stays dense."""

from typing import Any

from lowrank.core.layers import Layer, LayerTable, sequence_macs, sequence_parameters
from lowrank.core.plans import Factored, PlannedLayer
from lowrank.factorize import get_factorization, one_group


def layer_records(
    table: LayerTable,
    planned: dict[str, PlannedLayer],
    factored: dict[str, Factored],
) -> list[dict[str, Any]]:
    """Return a record for each layer of the network, with the same scalar columns.

    Parameters
    ----------
    table
        The layers of the original.
    planned
        The last plan of each layer that a method takes.
    factored
        What layers have been replaced by.
    """
    return [
        _layer_record(layer, planned.get(layer.name), factored.get(layer.name))
        for layer in table.layers
    ]


def _layer_record(
    layer: Layer, planned: PlannedLayer | None, factored: Factored | None
) -> dict[str, Any]:
    """One row of the layer table: the same scalar columns for every layer, dense or not."""
    if planned is None:
        because = layer.not_factored or "the method leaves this layer dense"
    else:
        because = planned.dense_because
    parameters, macs = layer.parameters, layer.dense_macs
    if factored:
        parameters = sequence_parameters(factored.sequence)
        macs = sequence_macs(factored.sequence, layer.input_map)
    return {
        "layer": layer.name,
        "form": factored.factorization if factored else "dense",
        **_ranks(layer, factored),
        "parameters_original": layer.parameters,
        "parameters_compressed": parameters,
        "macs_original": layer.dense_macs,
        "macs_compressed": macs,
        "macs_ratio": round(layer.dense_macs / macs, 4),
        "relative_error": round(factored.relative_error, 6) if factored else 0.0,
        "notes": "; ".join([*([because] if because else []), *(planned.notes if planned else ())]),
    }


def _ranks(layer: Layer, factored: Factored | None) -> dict[str, str]:
    """The ranks of a layer, their names, and the largest that there could be; empty if dense."""
    if factored is None:
        return {"ranks": "", "rank_names": "", "full_ranks": ""}
    method = get_factorization(factored.factorization)
    listed = {
        "ranks": factored.ranks,
        "rank_names": method.rank_names,
        "full_ranks": method.full_ranks(one_group(layer)),
    }
    return {key: " x ".join(map(str, each)) for key, each in listed.items()}
