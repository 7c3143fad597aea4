import threading
import time

import pytest

from lowrank.core.background import in_background


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_results_are_in_order(threads, count):
    def slow_at_first(number):
        time.sleep(0.002 if number % 3 == 0 else 0)
        return number**2

    assert list(in_background(slow_at_first, range(count), threads)) == [
        number**2 for number in range(count)
    ]


def test_work_ahead_is_bounded():
    requested = []

    def items():
        for number in range(100):
            requested.append(number)
            yield number

    results = in_background(str, items(), 3)
    for yielded in range(1, 20):
        next(results)
        # Four items more than the yielded results.
        assert len(requested) == yielded + 4
    results.close()
    assert len(requested) < 30


def test_calls_run_in_parallel():
    # Each call waits for the other, so a single thread would time out.
    barrier = threading.Barrier(2, timeout=10)
    assert len(list(in_background(lambda _: barrier.wait(), range(2), 2))) == 2


def test_error_is_raised_in_place_of_the_result():
    def fails_at_three(number):
        if number == 3:
            raise ValueError("three")
        return number

    results = in_background(fails_at_three, range(10), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_no_thread_outlives_the_generator():
    before = threading.active_count()
    for number in in_background(abs, range(100), 4):
        assert threading.active_count() > before
        if number == 5:
            break
    assert threading.active_count() == before
