"""Plans and the losses that they record."""

import pytest

from lowrank.core.plans import Plan, PlannedLayer, known_losses, recorded


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
