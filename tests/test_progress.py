import pytest

from lowrank.progress import Progress, clock_time


def advance(total, count):
    counter = Progress(total)
    for _ in range(total // count):
        counter.advance(count)


def test_count_share_and_time_left(progress_lines):
    found = progress_lines(lambda: advance(1000, 100), tick=2.0)
    # A reading every 2 s: the third and every third after it is at least 5 s after the last line.
    assert found == [
        "300/1000 images (30 %), 0:14 left",
        "600/1000 images (60 %), 0:08 left",
        "900/1000 images (90 %), 0:02 left",
    ]


def test_short_work_is_silent(progress_lines):
    assert progress_lines(lambda: advance(1000, 100), tick=0.4) == []


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3725, "1:02:05")]
)
def test_durations(seconds, shown):
    assert clock_time(seconds) == shown
