import pytest

from lowrank.core.progress import Progress, clock_time, counted


def advance(total, count):
    counter = Progress(total)
    for _ in range(total // count):
        counter.advance(count)


def test_count_share_and_time_left(progress_lines):
    lines = progress_lines(lambda: advance(1000, 100), tick=2.0)
    # The clock advances 2 s per call. Every third call is at least 5 s after the last line.
    assert lines == [
        "300/1000 images (30 %), 0:14 left",
        "600/1000 images (60 %), 0:08 left",
        "900/1000 images (90 %), 0:02 left",
    ]


def test_short_tasks_report_nothing(progress_lines):
    assert progress_lines(lambda: advance(1000, 100), tick=0.4) == []


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3725, "1:02:05")]
)
def test_clock_time(seconds, shown):
    assert clock_time(seconds) == shown


def test_counted_counts_items_not_batches(progress_lines):
    batches, seen = [[1] * 40, [2] * 40, [3] * 20], []
    lines = progress_lines(lambda: seen.extend(counted(batches, 100)), tick=6.0)
    assert seen == batches
    assert [line.split(",")[0] for line in lines] == [
        "40/100 images (40 %)",
        "80/100 images (80 %)",
    ]
