"""What a device measures for a target of milliseconds."""

from pathlib import Path

import pytest

from lowrank.core.layers import LayerTable, narrowed
from lowrank.factorize import get_factorization, grouped_sequence
from lowrank.files import read_json
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.latency_model import Geometry, grids_for
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


def test_the_grids_hold_layers_that_lose_output_channels():
    layers = {"blocks.4.conv1": "tucker2", "blocks.4.conv2": "remove_channels"}
    settings = SETTINGS.model_copy(update={"multiple_of": 4})
    sequences = list(possible_sequences(TABLE, layers, [], settings))
    grids = grids_for(sequences)
    feeder, reader = TABLE["blocks.4.conv1"], TABLE["blocks.4.conv2"]
    counts = [sequence[0].out_channels for sequence, _ in sequences if sequence[0].selects]
    assert min(counts) == 4
    assert max(counts) == reader.in_channels - 4
    tucker = get_factorization("tucker2")
    for sequence in ((feeder,), grouped_sequence(tucker, feeder, (8, 8))):
        last = narrowed(sequence, min(counts))[-1]
        grid = grids[Geometry.of(last, feeder.input_map)]
        assert min(grid.outputs) <= last.out_channels <= feeder.out_channels <= max(grid.outputs)
