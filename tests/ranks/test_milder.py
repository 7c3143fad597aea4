"""Milder settings of a rank rule that loses too much accuracy."""

import pytest

from lowrank.core.plans import Expected
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.milder import nearest_that_keeps
from lowrank.ranks.rule import rule_of

RULES = {
    "ratio": ({"select": "ratio", "ratio": 4.0}, "ratio: 2"),
    "sensitivity": ({"select": "sensitivity", "ratio": 9.0}, "ratio: 3"),
    "energy": ({"select": "energy", "energy": 0.6}, "energy: 0.8"),
    "vbmf": ({"select": "vbmf"}, "weaken: 0.5"),
    "fixed": ({"select": "fixed", "table": {"a": [3]}, "weaken": 0.2}, "weaken: 0.6"),
    "budget": ({"select": "budget", "target": {"macs": 0.25}}, "target: {macs: 0.5}"),
    "latency": (
        {
            "select": "budget",
            "target": {"macs": 0.16, "latency_ms": {"local": 0.09, "phone": 0.25}},
        },
        "target: {macs: 0.4, latency_ms: {local: 0.3, phone: 0.5}}",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_half_of_the_way_to_no_compression(name):
    settings, written = RULES[name]
    settings = rank_settings(settings)
    half_way = rule_of(settings).milder(settings, 0.5)
    assert half_way.written == written
    # A user can write this setting.
    assert rank_settings(half_way.settings.model_dump(exclude_unset=True)) == half_way.settings
    assert rule_of(settings).milder(settings, 0.0).settings == settings


def test_the_smallest_change_that_keeps_enough():
    rule = rank_settings({"select": "ratio", "ratio": 16.0})
    nearest = nearest_that_keeps(rule, lambda settings: settings.ratio <= 3.0)
    assert 2.7 < nearest.settings.ratio <= 3.0
    assert nearest.written == f"ratio: {nearest.settings.ratio:g}"
    assert nearest_that_keeps(rule, lambda _: False) is None


def test_the_drop_is_a_share_of_the_accuracy_above_chance():
    # Measured for MobileNetV2 at `macs: 0.8`.
    expected = Expected(images=500, before=81.0, after=16.0, chance=1.0)
    assert expected.drop == pytest.approx(65 / 80)
    assert expected.exceeds(0.5)
    assert not expected.exceeds(1.0)
    assert not Expected(1000, 93.66, 67.52, 10.0).exceeds(0.5)
    # With so few images the loss may be random, and below chance there is nothing to lose.
    assert not Expected(10, 80.0, 30.0, 10.0).exceeds(0.5)
    assert Expected(1000, 9.0, 5.0, 10.0).drop == 0.0
