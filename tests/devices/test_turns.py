"""Two models turn about, how sure their ratio is, and warming up."""

import numpy as np
import pytest

from lowrank.devices.runtime import warm_up
from lowrank.devices.turns import nanoseconds_in_turns, ratio_and_interval


class FakeMachine:
    """A clock in ns that models move on by running, and the order in which they ran."""

    def __init__(self) -> None:
        self.now = 0
        self.order: list[str] = []

    def clock(self) -> int:
        return self.now

    def model(self, name: str, *durations: int):
        """A model whose runs take `durations` in turn, the last one for ever."""
        left = list(durations)

        def run() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def measured(machine: FakeMachine, original, compressed, **settings) -> np.ndarray:
    asked = {"runs": 1, "repeats": 4, "seconds": 0} | settings
    return nanoseconds_in_turns(original, compressed, clock=machine.clock, **asked)


def test_which_goes_first_alternates():
    machine = FakeMachine()
    measured(machine, machine.model("o", 5), machine.model("c", 1))
    assert "".join(machine.order) == "occoocco"


def test_a_turn_is_several_runs_whose_first_is_not_counted():
    machine = FakeMachine()
    original, compressed = machine.model("o", 90, 5), machine.model("c", 80, 1, 2, 70, 3, 4)
    found = measured(machine, original, compressed, runs=3, repeats=4)
    assert "".join(machine.order) == "ooocccccc" + "ooo"
    np.testing.assert_array_equal(found, [[[5, 5], [1, 2]], [[5, 5], [3, 4]]])


def test_each_run_is_put_down_to_its_model():
    machine = FakeMachine()
    original, compressed = machine.model("o", 50, 60, 70, 80), machine.model("c", 1, 2, 3, 4)
    found = measured(machine, original, compressed)
    np.testing.assert_array_equal(found[:, :, 0], [[50, 1], [60, 2], [70, 3], [80, 4]])


def test_each_goes_first_equally_often():
    machine = FakeMachine()
    found = measured(machine, machine.model("o", 5), machine.model("c", 1), repeats=3)
    assert len(found) == 4


def test_measuring_goes_on_until_both_have_run_long_enough():
    machine = FakeMachine()
    original, compressed = machine.model("o", 400_000_000), machine.model("c", 100_000_000)
    found = measured(machine, original, compressed, repeats=2, seconds=3.0)
    assert len(found) == 6
    assert found.sum() == 3_000_000_000


def test_a_clock_that_stands_still_gives_no_zero_to_divide_by():
    machine = FakeMachine()
    assert measured(machine, lambda: None, lambda: None).min() == 1


def test_warming_up_takes_its_time():
    machine = FakeMachine()
    assert warm_up(machine.model("o", 100_000_000), seconds=1.0, clock=machine.clock)
    # The first run, and four stretches of three runs: the last two are alike.
    assert len(machine.order) == 13


def test_warming_up_ends_after_one_run_where_it_need_not_take_time():
    machine = FakeMachine()
    assert warm_up(machine.model("c", 1), seconds=0.0, clock=machine.clock)
    assert machine.order == ["c"]


def test_warming_up_goes_on_until_the_model_runs_evenly():
    machine = FakeMachine()
    falling = [100_000_000 - 1_000_000 * run for run in range(60)]
    assert warm_up(machine.model("o", *falling, 30_000_000), seconds=1.0, clock=machine.clock)
    assert len(machine.order) > 60
    assert machine.now < 10e9


def test_a_model_that_never_runs_evenly_is_told():
    machine = FakeMachine()
    durations = [10_000_000, 10_000_000, 10_000_000, 90_000_000, 90_000_000, 90_000_000] * 400
    assert not warm_up(machine.model("o", *durations), seconds=0.1, clock=machine.clock)
    assert machine.now == pytest.approx(1e9, rel=0.3)


def sittings_of(*levels, spread=0.01, pairs=20, seed=0):
    """Ratios around a level in each sitting."""
    generator = np.random.default_rng(seed)
    found = []
    for level in levels:
        ratios = level * (1 + spread * generator.standard_normal(pairs))
        found.append(np.stack([1e6 * ratios, np.full(pairs, 1e6)], axis=1)[:, :, None])
    return found


def test_the_interval_holds_the_distance_between_sittings():
    speedup, low, high = ratio_and_interval(sittings_of(4.0, 4.1, 4.2, 4.3, 4.4))
    assert speedup == pytest.approx(4.2, rel=0.03)
    assert low < 4.15
    assert high > 4.25


def test_the_interval_of_sittings_that_agree_is_narrow():
    speedup, low, high = ratio_and_interval(sittings_of(*[3.0] * 5))
    assert low <= speedup <= high
    assert high / low < 1.02


def test_the_interval_holds_the_truth_most_of_the_time():
    """95 times in 100 by its making; with five sittings a bootstrap falls somewhat short."""
    held = 0
    for seed in range(60):
        generator = np.random.default_rng(1000 + seed)
        levels = 4 * (1 + 0.02 * generator.standard_normal(5))
        _, low, high = ratio_and_interval(sittings_of(*levels, seed=seed))
        held += low <= 4 <= high
    assert held >= 45


def test_equal_turns_give_one_number():
    assert ratio_and_interval(sittings_of(2.0, spread=0.0)) == (2.0, 2.0, 2.0)
