"""What a device measures for a target of milliseconds."""

from pathlib import Path

import pytest

from lowrank.core.layers import LayerTable
from lowrank.files import read_json
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.profiled_sequences import networks_near_target, possible_sequences

TABLE = LayerTable.from_json(read_json(Path(__file__).parents[2] / "data/networks/resnet20.json"))
LAYERS = {
    layer.name: "tucker2" for layer in TABLE.layers if layer.kind == "conv" and layer.groups == 1
}
SETTINGS = BudgetSettings(target={"latency_ms": {"local": 0.5}}, images=10, negligible=0.0)


def test_all_layers_and_their_sequences_are_measured():
    sequences = list(possible_sequences(TABLE, LAYERS, ["spatial_svd"], SETTINGS))
    assert [sequence for sequence, _ in sequences[: len(TABLE.layers)]] == [
        [layer] for layer in TABLE.layers
    ]
    assert {len(sequence) for sequence, _ in sequences} == {1, 2, 3}


def test_networks_near_the_target_have_its_share_of_the_macs():
    share, dense = 0.3, sum(TABLE[name].dense_macs for name in LAYERS)
    shares = []
    for sequences in networks_near_target(TABLE, LAYERS, SETTINGS, share):
        assert sequences.keys() == LAYERS.keys()
        macs = 0
        for name, sequence in sequences.items():
            input_map = TABLE[name].input_map
            for plain in sequence:
                macs += plain.macs(input_map)
                input_map = plain.output_map(input_map)
        shares.append(macs / dense)
    assert shares == pytest.approx([share**0.5, share, share**1.5], rel=0.15)
