"""Plans and the losses that they record."""

from dataclasses import replace

import pytest

from lowrank.core.metric import AGREEMENT, OUTPUT_ERROR
from lowrank.core.plans import Expected, Plan, PlannedLayer, known_losses, recorded


def test_plans_record_losses_for_later_trials():
    losses = {("conv", "svd"): {(2,): 0.5, (4,): 0.25}, ("fc", "tucker2"): {(1, 3): 0.125}}
    assert known_losses([Plan((), losses=recorded(losses))]) == losses


def test_the_last_of_several_plans_counts():
    first, second = (
        Plan((), losses=recorded({("conv", "svd"): nats_by_ranks}))
        for nats_by_ranks in ({(2,): 0.5, (4,): 0.25}, {(2,): 0.75})
    )
    assert known_losses([first, second]) == {("conv", "svd"): {(2,): 0.75, (4,): 0.25}}


@pytest.mark.parametrize(
    ("dense_because", "notes", "expected"),
    [
        (None, (), "conv: tucker2 at ranks 8, 4, 2.5x fewer MACs"),
        (None, ("rank 9 is reduced to 8",),
         "conv: tucker2 at ranks 8, 4, 2.5x fewer MACs; rank 9 is reduced to 8"),
        ("no gain", (), "conv: not replaced: no gain"),
    ],
)  # fmt: skip
def test_a_planned_layer_is_described_in_a_sentence(dense_because, notes, expected):
    layer = PlannedLayer(
        "conv", "tucker2", (8, 4), (9, 4), (100, 50), (1000, 400), dense_because, notes
    )
    assert layer.sentence() == expected


def test_the_points_that_a_network_loses():
    known = Expected(100, 100.0, 96.0, 10.0, of_labels=False, metric=AGREEMENT)
    # The standard error of a share of 4 % on 100 images.
    assert known.points == pytest.approx((4.0, 1.9596), abs=1e-4)
    estimated = replace(known, accuracy_drop=1.5, drop_error=0.5)
    assert estimated.points == (1.5, 0.5)
    assert estimated.sentence().endswith(", accuracy drop of about 1.50 +- 0.50 points")
    assert Expected.from_json(estimated.to_json()) == estimated
    assert known.to_json().keys() == Expected(1, 1.0, 1.0, 0.0).to_json().keys() | {"metric"}
    error = Expected(100, 0.0, 7.0, 100.0, metric=OUTPUT_ERROR, standard_error=0.0)
    assert error.points == (7.0, 0.0)
