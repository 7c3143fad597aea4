"""Build the record of each layer: its ranks, its costs, and the reason why it stays dense."""

from typing import Any

from lowrank.core.layers import Layer, LayerTable, sequence_macs, sequence_parameters
from lowrank.core.plans import Factored, PlannedLayer
from lowrank.factorize import get_factorization, one_group


def layer_records(
    table: LayerTable,
    planned: dict[str, PlannedLayer],
    factored: dict[str, Factored],
) -> list[dict[str, Any]]:
    """Return a record for each layer of the network. All records have the same scalar columns.

    Parameters
    ----------
    table
        The layers of the original.
    planned
        The last plan of each layer that the method may replace, by the layer's name.
    factored
        The factorization of each replaced layer, by the layer's name.
    """
    return [
        _layer_record(layer, planned.get(layer.name), factored.get(layer.name))
        for layer in table.layers
    ]


def _layer_record(
    layer: Layer, planned: PlannedLayer | None, factored: Factored | None
) -> dict[str, Any]:
    """Return one row of the layer table. Dense and factored layers have the same columns."""
    dense_reason: str | None
    if planned is None:
        dense_reason = layer.not_factored or "the method leaves this layer dense"
    else:
        dense_reason = planned.dense_because
    parameters, macs = layer.parameters, layer.dense_macs
    if factored:
        parameters = sequence_parameters(factored.sequence)
        macs = sequence_macs(factored.sequence, layer.input_map)
    if planned and (planned.is_dense or factored):
        # The plan also knows which output channels nothing reads any more.
        parameters, macs = planned.parameters[1], planned.macs[1]
    return {
        "layer": layer.name,
        "form": factored.factorization if factored else "dense",
        **_ranks(layer, factored),
        "parameters_original": layer.parameters,
        "parameters_compressed": parameters,
        "macs_original": layer.dense_macs,
        "macs_compressed": macs,
        "macs_ratio": round(layer.dense_macs / macs, 4) if macs else None,
        "relative_error": round(factored.relative_error, 6) if factored else 0.0,
        "notes": "; ".join(
            [*([dense_reason] if dense_reason else []), *(planned.notes if planned else ())]
        ),
    }


def _ranks(layer: Layer, factored: Factored | None) -> dict[str, str]:
    """Return the ranks of a layer, their names and their upper bounds. Empty texts if dense."""
    if factored is None:
        return {"ranks": "", "rank_names": "", "full_ranks": ""}
    method = get_factorization(factored.factorization)
    values_by_key = {
        "ranks": factored.ranks,
        "rank_names": method.rank_names,
        "full_ranks": method.full_ranks(one_group(layer)),
    }
    return {key: " x ".join(map(str, values)) for key, values in values_by_key.items()}
