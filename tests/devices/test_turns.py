"""Timing in alternating turns, the interval of the speedup, and the warm-up."""

import numpy as np
import pytest

from lowrank.devices.runtime import warm_up
from lowrank.devices.turns import nanoseconds_in_turns, ratio_and_interval


class FakeMachine:
    """A clock in ns that advances when a model runs, and the order in which the models ran."""

    def __init__(self) -> None:
        self.now = 0
        self.order: list[str] = []

    def clock(self) -> int:
        return self.now

    def model(self, name: str, *durations: int):
        """Return a model whose runs take `durations` one after the other, then the last again."""
        remaining = list(durations)

        def run() -> None:
            self.order.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return run


def measure(machine: FakeMachine, original, compressed, **settings) -> np.ndarray:
    arguments = {"runs": 1, "repeats": 4, "seconds": 0} | settings
    return nanoseconds_in_turns(original, compressed, clock=machine.clock, **arguments)


def test_the_model_that_starts_a_pair_alternates():
    machine = FakeMachine()
    measure(machine, machine.model("o", 5), machine.model("c", 1))
    assert "".join(machine.order) == "occoocco"


def test_the_first_run_of_a_turn_is_not_counted():
    machine = FakeMachine()
    original, compressed = machine.model("o", 90, 5), machine.model("c", 80, 1, 2, 70, 3, 4)
    nanoseconds = measure(machine, original, compressed, runs=3, repeats=4)
    assert "".join(machine.order) == "ooocccccc" + "ooo"
    np.testing.assert_array_equal(nanoseconds, [[[5, 5], [1, 2]], [[5, 5], [3, 4]]])


def test_each_run_is_assigned_to_its_model():
    machine = FakeMachine()
    original, compressed = machine.model("o", 50, 60, 70, 80), machine.model("c", 1, 2, 3, 4)
    nanoseconds = measure(machine, original, compressed)
    np.testing.assert_array_equal(nanoseconds[:, :, 0], [[50, 1], [60, 2], [70, 3], [80, 4]])


def test_both_models_go_first_equally_often():
    machine = FakeMachine()
    nanoseconds = measure(machine, machine.model("o", 5), machine.model("c", 1), repeats=3)
    assert len(nanoseconds) == 4


def test_measuring_continues_until_the_minimum_time_is_reached():
    machine = FakeMachine()
    original, compressed = machine.model("o", 400_000_000), machine.model("c", 100_000_000)
    nanoseconds = measure(machine, original, compressed, repeats=2, seconds=3.0)
    assert len(nanoseconds) == 6
    assert nanoseconds.sum() == 3_000_000_000


def test_a_clock_that_does_not_advance_gives_no_zero_durations():
    machine = FakeMachine()
    assert measure(machine, lambda: None, lambda: None).min() == 1


def test_the_warm_up_takes_the_requested_time():
    machine = FakeMachine()
    assert warm_up(machine.model("o", 100_000_000), seconds=1.0, clock=machine.clock)
    # The first run, then four intervals of three runs. The last two intervals agree.
    assert len(machine.order) == 13


def test_a_warm_up_of_zero_seconds_is_one_run():
    machine = FakeMachine()
    assert warm_up(machine.model("c", 1), seconds=0.0, clock=machine.clock)
    assert machine.order == ["c"]


def test_the_warm_up_continues_until_the_latency_is_stable():
    machine = FakeMachine()
    falling = [100_000_000 - 1_000_000 * run for run in range(60)]
    assert warm_up(machine.model("o", *falling, 30_000_000), seconds=1.0, clock=machine.clock)
    assert len(machine.order) > 60
    assert machine.now < 10e9


def test_the_warm_up_reports_a_latency_that_never_becomes_stable():
    machine = FakeMachine()
    durations = [10_000_000, 10_000_000, 10_000_000, 90_000_000, 90_000_000, 90_000_000] * 400
    assert not warm_up(machine.model("o", *durations), seconds=0.1, clock=machine.clock)
    assert machine.now == pytest.approx(1e9, rel=0.3)


def sittings_of(*levels, spread=0.01, pairs=20, seed=0):
    """Return sittings whose ratios scatter around one level each."""
    generator = np.random.default_rng(seed)
    sittings = []
    for level in levels:
        ratios = level * (1 + spread * generator.standard_normal(pairs))
        sittings.append(np.stack([1e6 * ratios, np.full(pairs, 1e6)], axis=1)[:, :, None])
    return sittings


def test_the_interval_covers_the_differences_between_sittings():
    speedup, low, high = ratio_and_interval(sittings_of(4.0, 4.1, 4.2, 4.3, 4.4))
    assert speedup == pytest.approx(4.2, rel=0.03)
    assert low < 4.15
    assert high > 4.25


def test_the_interval_is_narrow_if_the_sittings_agree():
    speedup, low, high = ratio_and_interval(sittings_of(*[3.0] * 5))
    assert low <= speedup <= high
    assert high / low < 1.02


@pytest.mark.slow
@pytest.mark.seconds
def test_the_interval_covers_the_true_ratio_most_of_the_time():
    """The nominal coverage is 95 %. With five sittings, a bootstrap reaches somewhat less."""
    covered = 0
    for seed in range(60):
        generator = np.random.default_rng(1000 + seed)
        levels = 4 * (1 + 0.02 * generator.standard_normal(5))
        _, low, high = ratio_and_interval(sittings_of(*levels, seed=seed))
        covered += low <= 4 <= high
    assert covered >= 45


def test_the_interval_of_equal_turns_is_a_single_number():
    assert ratio_and_interval(sittings_of(2.0, spread=0.0)) == (2.0, 2.0, 2.0)
