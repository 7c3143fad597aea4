"""Choices for layers whose input channels may be removed, together with their feeders."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from lowrank.core.layers import Layer, LayerTable, narrowed, sequence_macs
from lowrank.factorize import get_factorization, grouped_sequence, one_group
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.bounds import bounds_of
from lowrank.ranks.curves import curve_of
from lowrank.ranks.integer_program import IntegerProgram
from lowrank.ranks.rule import Candidate

MAP = (8, 8)


def conv(name, inputs, outputs, kernel=3, **fields):
    pad = kernel // 2
    return Layer(
        inputs,
        outputs,
        (kernel, kernel),
        padding=(pad, pad),
        name=name,
        input_map=MAP,
        **fields,
    )


def table_of(*layers):
    return LayerTable("network", (3, *MAP), layers)


CHAIN = table_of(
    conv("a", 8, 16), conv("b", 16, 24, fed_by="a"), conv("c", 24, 8, kernel=1, fed_by="b")
)
DEPTHWISE = table_of(
    conv("a", 8, 16, kernel=1),
    conv("d", 16, 16, groups=16, fed_by="a", not_factored="depthwise"),
    conv("c", 16, 8, kernel=1, fed_by="d"),
)


def curves_for(table, methods, bounds, settings):
    """Return curves with losses that grow with what is left out."""
    curves = []
    for name, factorizations in methods.items():
        for factorization in factorizations:
            layer, method = table[name], get_factorization(factorization)
            kernel = np.random.default_rng(len(curves)).standard_normal(layer.weight_shape)
            full = method.full_ranks(one_group(layer))
            curve = curve_of(Candidate(layer, kernel, method, full), settings, bounds)
            assert curve is not None
            curves.append((curve, np.exp(1.5 * curve.left_out) * (1 + len(curves))))
    return curves


def macs_of(table, taken):
    """Return the MACs of a network with these choices, counted without the program."""
    sequences = {layer.name: (layer,) for layer in table.layers}
    for choice in taken:
        if choice.share.ranks:
            method = get_factorization(choice.share.factorization)
            sequences[choice.layer.name] = grouped_sequence(
                method, choice.layer, choice.share.ranks
            )
    for layer in table.layers:
        if sequences[layer.name][0].selects:
            for feeder in table.feeders(layer):
                left = sequences[layer.name][0].out_channels
                sequences[feeder.name] = narrowed(sequences[feeder.name], left)
    return sum(sequence_macs(sequences[layer.name], MAP) for layer in table.layers)


CASES = {
    "chain": (
        CHAIN,
        {"a": ["channel_svd"], "b": ["spatial_svd", "remove_channels"], "c": ["remove_channels"]},
    ),
    "removal and factors": (CHAIN, {"b": ["remove_channels_spatial_svd"], "c": ["svd"]}),
    "dense feeder": (CHAIN, {"c": ["svd", "remove_channels"]}),
    "depthwise": (DEPTHWISE, {"a": ["svd"], "c": ["svd", "remove_channels"]}),
}


def program_for(case, share):
    table, methods = CASES[case]
    settings = rank_settings({"select": "budget", "target": {"macs": share}, "multiple_of": 4})
    bounds = bounds_of(settings, {})
    return table, IntegerProgram(table, curves_for(table, methods, bounds, settings), bounds)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [0.513, 0.727, 0.913])
def test_no_other_choice_within_the_target_loses_less(case, share):
    table, program = program_for(case, share)
    limit = share * sum(layer.dense_macs for layer in table.layers)
    by_layer = [
        [choice for choice in program.choices if choice.layer.name == layer.name]
        for layer in program.layers
    ]
    losses = {
        sum(choice.share.loss for choice in taken): macs_of(table, taken)
        for taken in itertools.product(*by_layer)
    }
    allowed = [loss for loss, macs in losses.items() if macs <= limit]
    taken = program.least_loss()
    if not allowed:
        assert taken is None
        return
    assert macs_of(table, taken) <= limit
    assert sum(choice.share.loss for choice in taken) == pytest.approx(min(allowed), rel=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_the_least_cost_counts_removed_channels(case):
    table, program = program_for(case, 0.5)
    taken, cost = program.least_cost(0)
    assert cost == macs_of(table, taken)


@pytest.mark.parametrize(("share", "expected"), [(0.9, None), (1.1, [])])
def test_no_layer_with_a_choice(share, expected):
    settings = rank_settings({"select": "budget", "target": {"macs": 0.5}})
    (bound,) = bounds_of(settings, {})
    program = IntegerProgram(CHAIN, [], [replace(bound, share=share)])
    assert program.least_loss() == expected
    assert program.least_cost(0) == ([], macs_of(CHAIN, []))
