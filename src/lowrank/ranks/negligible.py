"""Exclusion of layers that are too cheap to be worth factoring."""

from dataclasses import replace

from lowrank.core.layers import Layer, LayerTable


def leave_negligible(table: LayerTable, share: float) -> LayerTable:
    """Return the table with its cheapest layers excluded from factorization.

    Layers are excluded from the cheapest on, as long as together they have at most `share` of the
    network's multiply-accumulates and at most `share` of its parameters. The limit applies to all
    of them together, so it does not depend on the number of layers. Layers that cannot be factored
    are not counted.
    """
    layers = [layer for layer in table.layers if not layer.not_factored]
    macs = sum(layer.dense_macs for layer in layers)
    parameters = sum(layer.parameters for layer in layers)
    reasons: dict[str, str] = {}
    macs_left, parameters_left = share * macs, share * parameters
    for layer in sorted(layers, key=lambda layer: max(_shares(layer, macs, parameters))):
        macs_left -= layer.dense_macs
        parameters_left -= layer.parameters
        if min(macs_left, parameters_left) < 0:
            break
        of_macs, of_parameters = _shares(layer, macs, parameters)
        reasons[layer.name] = (
            f"it has {of_macs:.2%} of the MACs and {of_parameters:.2%} of the parameters: "
            "nothing to gain"
        )
    return replace(
        table,
        layers=tuple(
            replace(layer, not_factored=reasons.get(layer.name, layer.not_factored))
            for layer in table.layers
        ),
    )


def _shares(layer: Layer, macs: int, parameters: int) -> tuple[float, float]:
    return layer.dense_macs / macs, layer.parameters / parameters
