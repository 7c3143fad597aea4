"""Layers that cost next to nothing, and so can only lose."""

from dataclasses import replace

from lowrank.core.layers import Layer, LayerTable


def leave_negligible(table: LayerTable, share: float) -> LayerTable:
    """The table with its cheapest layers marked as not to be factored.

    They are taken from the cheapest on, as long as together they cost at most `share` of the
    network's multiply-accumulates and at most `share` of its parameters. So the bound holds for
    all of them together, however many layers the network has. Layers that no factorization takes
    are left out of the count.
    """
    layers = [layer for layer in table.layers if not layer.not_factored]
    macs = sum(layer.dense_macs for layer in layers)
    parameters = sum(layer.parameters for layer in layers)
    because: dict[str, str] = {}
    macs_left, parameters_left = share * macs, share * parameters
    for layer in sorted(layers, key=lambda each: max(_shares(each, macs, parameters))):
        macs_left -= layer.dense_macs
        parameters_left -= layer.parameters
        if min(macs_left, parameters_left) < 0:
            break
        of_macs, of_parameters = _shares(layer, macs, parameters)
        because[layer.name] = (
            f"it has {of_macs:.2%} of the MACs and {of_parameters:.2%} of the parameters: "
            "nothing to gain"
        )
    return replace(
        table,
        layers=tuple(
            replace(layer, not_factored=because.get(layer.name, layer.not_factored))
            for layer in table.layers
        ),
    )


def _shares(layer: Layer, macs: int, parameters: int) -> tuple[float, float]:
    return layer.dense_macs / macs, layer.parameters / parameters
