"""All variants side by side."""

import pytest

from lowrank.report.table import ORIGINAL, html, markdown, overview, pareto_front, records_of


def latency(original, compressed):
    return {
        "original": {"p50": original},
        "compressed": {"p50": compressed},
        "speedup": original / compressed,
        "speedup_low": 0.9 * original / compressed,
        "speedup_high": 1.1 * original / compressed,
    }


def result(top1=90.0, original_ms=4.0, ms=1.0, macs=200, devices=("board",), **more):
    return {
        "accuracy": {"original": 92.0, "exported": top1},
        "macs": {"original": 1000, "compressed": macs, "ratio": 1000 / macs},
        "parameters": {"original": 10, "compressed": 5, "ratio": 2.0},
        "size_bytes": {"original": 80, "compressed": 40, "ratio": 2.0},
        "latency_ms": {device: latency(original_ms, ms) for device in devices},
        "memory_mb": {"board": {"original": 30.0, "compressed": 20.0}},
        "energy_mj": {"board": {"original": 6.0, "compressed": 3.0}},
        "finetune": {"steps": 7},
    } | more


INT8 = {
    "accuracy": {"exported": 89.5},
    "size_bytes": {"original": 80, "compressed": 10, "ratio": 8.0},
    "latency_ms": {"board": latency(4.0, 0.5)},
}


def test_a_record_for_each_precision_and_device_beside_the_original():
    records = records_of("net", "tucker", result(devices=("board", "phone")) | {"int8": INT8 | {
        "latency_ms": {"board": latency(4.0, 0.5), "phone": {"not_measured": "no int8 kernels"}},
    }})  # fmt: skip
    named = [(each["device"], each["method"], each["precision"]) for each in records]
    assert named == [
        (device, *which)
        for device in ("board", "phone")
        for which in ((ORIGINAL, "float32"), ("tucker", "float32"), ("tucker", "int8"))
    ]
    before, in_float, in_int8 = records[:3]
    assert before["top1_percent"] == 92.0
    assert (before["p50_ms"], before["macs"], before["onnx_bytes"]) == (4.0, 1000, 80)
    assert (before["energy_mj"], before["peak_memory_mb"]) == (6.0, 30.0)
    assert in_float["points_lost"] == 2.0
    assert (in_float["p50_ms"], in_float["speedup"]) == (1.0, 4.0)
    assert (in_float["macs_ratio"], in_float["onnx_bytes_ratio"]) == (5.0, 2.0)
    assert (in_float["energy_mj"], in_float["finetune_steps"]) == (3.0, 7)
    # What does not change with the precision is counted once.
    assert (in_int8["top1_percent"], in_int8["macs"], in_int8["onnx_bytes"]) == (89.5, 200, 10)
    assert in_int8["energy_mj"] is None
    assert records[5]["p50_ms"] is None
    assert len({tuple(each) for each in records}) == 1


def test_one_original_for_all_variants():
    records = overview(
        ("net", f"method{index}", result(original_ms=ms)) for index, ms in enumerate((4, 5, 9))
    )
    originals = [each for each in records if each["method"] == ORIGINAL]
    assert [each["p50_ms"] for each in originals] == [5]
    assert len(records) == 4


def test_of_a_search_its_trial_is_not_told_twice():
    search = {"search": {"taken": 2}}
    records = overview(
        [
            ("net", "asked", result(**search)),
            ("net", "asked_trial1", result()),
            ("net", "asked_trial2", result()),
            ("other", "asked_trial2", result()),
        ]
    )
    named = [(each["network"], each["method"]) for each in records if each["method"] != ORIGINAL]
    assert named == [("net", "asked"), ("net", "asked_trial1"), ("other", "asked_trial2")]


def test_fronts_are_those_of_one_network():
    records = overview(
        [
            ("net", "good", result(top1=91.0, ms=1.0, macs=200)),
            ("net", "lean", result(top1=90.0, ms=2.0, macs=100)),
            ("net", "bad", result(top1=89.0, ms=3.0, macs=300)),
            ("other", "worse", result(top1=80.0, ms=1.5, macs=500)),
        ]
    )
    by_method = {(each["network"], each["method"]): each for each in records}
    on_front = {
        name: (each["on_front_by_latency"], each["on_front_by_macs"])
        for name, each in by_method.items()
    }
    assert on_front == {
        ("net", ORIGINAL): (True, True),
        ("net", "good"): (True, True),
        ("net", "lean"): (False, True),
        ("net", "bad"): (False, False),
        ("other", ORIGINAL): (True, True),
        ("other", "worse"): (True, True),
    }


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], set()),
        ([(1, 90)], {0}),
        ([(1, 90), (2, 91), (3, 91), (4, 89)], {0, 1}),
        ([(2, 91), (2, 90)], {0}),
        ([(None, 99), (1, 90)], {1}),
    ],
)
def test_pareto_front(points, expected):
    assert pareto_front(points) == expected


def test_the_table_leaves_out_what_nothing_has():
    records = overview([("net", "tucker", result(energy_mj={}, int8=INT8))])
    heading, _, original, in_float, in_int8 = table_of(markdown(records))
    assert "energy" not in heading
    assert "CPU" not in heading
    assert (
        "| net | original | float32 | board | 92.00 |  | 4.000 |  |  | 1.000 | 1,000 |" in original
    )
    assert "| 90.00 | 2.00 | 1.000 | 4.000 | 4.00x | 0.250 | 200 | 5.00x | 40 | 2.0x |" in in_float
    assert in_int8.endswith("| 10 | 8.0x | yes |")
    assert "energy, mJ" in markdown(overview([("net", "tucker", result())]))


def table_of(page):
    return [line for line in page.splitlines() if line.startswith("|")]


def controlled(top1=91.5, ms=2.0, over=None, **more):
    """A result beside the original in int8, which is twice as fast as it is in float."""
    control = INT8 | {"accuracy": {"exported": top1}, "latency_ms": {"board": latency(4.0, ms)}}
    found = INT8["latency_ms"]["board"] | ({"speedup_over_control": over} if over else {})
    int8 = INT8 | {"latency_ms": {"board": found}}
    return result(**{"int8": int8, "control": {"int8": control}} | more)


def test_the_original_in_int8_is_a_row_and_two_columns():
    records = overview(
        [("net", "one", controlled(ms=2.0, over=3.5)), ("net", "two", controlled(ms=1.0))]
    )
    named = [(each["method"], each["precision"]) for each in records]
    assert named[:2] == [(ORIGINAL, "float32"), (ORIGINAL, "int8")]
    assert named[2:] == [(m, p) for m in ("one", "two") for p in ("float32", "int8")]
    control = records[1]
    # The median of what was measured beside both.
    assert (control["p50_ms"], control["speedup"], control["top1_percent"]) == (1.5, 3.0, 91.5)
    assert (control["macs"], control["macs_ratio"], control["onnx_bytes"]) == (1000, None, 10)
    one_float, one, _, two = records[2:]
    assert one["points_below_control"] == 2.0
    # Measured against each other where it was; otherwise the quotient of the speed-ups.
    assert one["speedup_over_control"] == 3.5
    assert one_float["speedup_over_control"] == 4.0 / 2.0
    assert two["speedup_over_control"] == 8.0 / 4.0
    heading = table_of(markdown(records))[0]
    assert "faster than int8 original" in heading
    assert "lost against int8 original" in heading


def test_an_int8_network_lies_on_the_side_of_the_control_where_alternating_runs_found_it():
    """Its own median, from another time, says 0.5 ms: less than the control's 2.0."""
    slower = overview([("net", "one", controlled(ms=2.0, over=0.8))])
    faster = overview([("net", "one", controlled(ms=2.0, over=1.25))])
    for records, share in ((slower, 0.625), (faster, 0.4)):
        original, control, in_float, in_int8 = records
        assert [each["relative_latency"] for each in (original, control)] == [1.0, 0.5]
        assert in_float["relative_latency"] == pytest.approx(1 / in_float["speedup"])
        assert in_int8["relative_latency"] == pytest.approx(share)
        assert in_int8["p50_ms"] < control["p50_ms"]


def on(cpu, **more):
    return controlled(environment={"board": {"cpu": cpu}}, **more)


def test_milliseconds_of_different_processors_are_not_compared():
    results = [
        ("net", "one", on("EPYC", original_ms=4.0)),
        ("net", "two", on("Xeon", original_ms=8.0, ms=2.0)),
    ]
    records = overview(results)
    originals = [e for e in records if (e["method"], e["precision"]) == (ORIGINAL, "float32")]
    assert [(each["cpu"], each["p50_ms"]) for each in originals] == [("EPYC", 4.0), ("Xeon", 8.0)]
    # Each has a front of its own.
    assert all(each["on_front_by_latency"] for each in originals)
    page = markdown(records)
    assert "Warning: rows of one device were measured on different CPUs." in page
    heading, _, *rows = table_of(page)
    assert "| CPU |" in heading
    assert sum("| Xeon |" in row for row in rows) == 4


def test_one_processor_is_named_once():
    page = markdown(overview([("net", "one", on("EPYC")), ("net", "two", on("EPYC"))]))
    assert "CPU of each device: board: EPYC." in page
    assert "Warning" not in page
    assert "| CPU |" not in page


def test_the_page_has_a_title_and_says_how_a_ratio_is_taken():
    records = overview([("net", "one", controlled())])
    for page in (html(records), markdown(records)):
        assert "All variants" in page
        assert "the median of the ratios of both, one for each pair of runs" in page
    assert "<h1>All variants</h1>" in html(records)
    assert "<em>Faster</em>" in html(records)


def test_what_stands_beside_a_speedup_gives_it():
    """The original's latency in the row is what this network was measured beside."""
    records = overview([("net", f"by{ms}", result(original_ms=ms, ms=1.0)) for ms in (4.0, 5.0)])
    for each in records[1:]:
        assert each["original_p50_ms"] / each["p50_ms"] == pytest.approx(each["speedup"])


def test_the_page_has_the_cells_of_the_table():
    records = overview([("a<b", "tucker", result(int8=INT8))])
    page = html(records)
    assert page.count("<tr>") == 1 + len(records)
    assert "<td>a&lt;b</td><td>tucker</td><td>int8</td>" in page
