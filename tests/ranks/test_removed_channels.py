"""Costs of layers that lose output channels."""

from lowrank.core.layers import Layer, LayerTable
from lowrank.core.plans import PlannedLayer
from lowrank.ranks.removed_channels import network_macs, without_removed_channels

FIRST = Layer(3, 16, (3, 3), padding=(1, 1), bias=True, name="first", input_map=(4, 4))
DEPTHWISE = Layer(
    *(16, 16, (3, 3)), padding=(1, 1), groups=16, name="depthwise", input_map=(4, 4), fed_by="first"
)
LAST = Layer(16, 10, name="last", input_map=(4, 4), fed_by="depthwise")
TABLE = LayerTable("network", (3, 4, 4), (FIRST, DEPTHWISE, LAST))


def planned(layer, factorization, ranks, after):
    return PlannedLayer(
        name=layer.name,
        factorization=factorization,
        ranks=ranks,
        chosen=ranks,
        parameters=(layer.parameters, after[0]),
        macs=(layer.dense_macs, after[1]),
        dense_because=None if ranks else "a reason",
    )


PLAN = (
    planned(FIRST, "tucker1", (), (FIRST.parameters, FIRST.dense_macs)),
    planned(LAST, "remove_channels", (4,), (40, 40 * 16)),
)


def test_layers_before_a_selection_cost_less():
    first, last = without_removed_channels(TABLE, PLAN)
    assert first.macs == (16 * 27 * 16, 4 * 27 * 16)
    assert first.parameters == (16 * 28, 4 * 28)
    assert first.notes == ("4 of 16 output channels are left",)
    assert last == PLAN[1]


def test_the_network_counts_layers_without_a_plan():
    before = 16 * (16 * 27 + 16 * 9 + 160)
    assert network_macs(TABLE, PLAN) == (before, 16 * (4 * 27 + 4 * 9 + 40))
    assert network_macs(TABLE, PLAN[1:]) == network_macs(TABLE, PLAN)


def test_nothing_changes_without_a_selection():
    assert without_removed_channels(TABLE, PLAN[:1]) == PLAN[:1]
