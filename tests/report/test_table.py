"""The comparison of all variants."""

from functools import partial

import pytest

from lowrank.core.metric import Metric
from lowrank.report import table, table_page
from lowrank.report.table import ORIGINAL
from lowrank.report.table_page import by_metric
from lowrank.tasks import get_task

ACCURACY = get_task("classification").metric
METRICS = dict.fromkeys(("net", "other", "a<b"), ACCURACY)
overview, markdown, html = (
    partial(function, metrics=METRICS)
    for function in (table.overview, table_page.markdown, table_page.html)
)
pareto_front = partial(table.pareto_front, metric=ACCURACY)
records_of = partial(table.records_of, metric=ACCURACY)


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


def test_there_is_a_record_for_each_precision_and_device():
    records = records_of("net", "tucker", result(devices=("board", "phone")) | {"int8": INT8 | {
        "latency_ms": {"board": latency(4.0, 0.5), "phone": {"not_measured": "no int8 kernels"}},
    }})  # fmt: skip
    names = [(record["device"], record["method"], record["precision"]) for record in records]
    assert names == [
        (device, *network)
        for device in ("board", "phone")
        for network in ((ORIGINAL, "float32"), ("tucker", "float32"), ("tucker", "int8"))
    ]
    before, in_float, in_int8 = records[:3]
    assert before["accuracy"] == 92.0
    assert (before["p50_ms"], before["macs"], before["onnx_bytes"]) == (4.0, 1000, 80)
    assert (before["energy_mj"], before["peak_memory_mb"]) == (6.0, 30.0)
    assert in_float["points_lost"] == 2.0
    assert (in_float["p50_ms"], in_float["speedup"]) == (1.0, 4.0)
    assert (in_float["macs_ratio"], in_float["onnx_bytes_ratio"]) == (5.0, 2.0)
    assert (in_float["energy_mj"], in_float["finetune_steps"]) == (3.0, 7)
    # The MACs do not depend on the precision.
    assert (in_int8["accuracy"], in_int8["macs"], in_int8["onnx_bytes"]) == (89.5, 200, 10)
    assert in_int8["energy_mj"] is None
    assert records[5]["p50_ms"] is None
    assert len({tuple(record) for record in records}) == 1


def test_all_variants_share_one_original():
    records = overview(
        ("net", f"method{index}", result(original_ms=ms)) for index, ms in enumerate((4, 5, 9))
    )
    originals = [record for record in records if record["method"] == ORIGINAL]
    assert [record["p50_ms"] for record in originals] == [5]
    assert len(records) == 4


def test_the_chosen_trial_of_a_search_is_not_listed_twice():
    search = {"search": {"taken": 2}}
    records = overview(
        [
            ("net", "asked", result(**search)),
            ("net", "asked_trial1", result()),
            ("net", "asked_trial2", result()),
            ("other", "asked_trial2", result()),
        ]
    )
    variants = [record for record in records if record["method"] != ORIGINAL]
    names = [(record["network"], record["method"]) for record in variants]
    assert names == [("net", "asked"), ("net", "asked_trial1"), ("other", "asked_trial2")]


def test_each_network_has_its_own_front():
    records = overview(
        [
            ("net", "good", result(top1=91.0, ms=1.0, macs=200)),
            ("net", "lean", result(top1=90.0, ms=2.0, macs=100)),
            ("net", "bad", result(top1=89.0, ms=3.0, macs=300)),
            ("other", "worse", result(top1=80.0, ms=1.5, macs=500)),
        ]
    )
    by_method = {(record["network"], record["method"]): record for record in records}
    on_front = {
        name: (record["on_front_by_latency"], record["on_front_by_macs"])
        for name, record in by_method.items()
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


def test_the_table_has_no_empty_columns():
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
    """Return a result with a control, the original in int8."""
    control = INT8 | {"accuracy": {"exported": top1}, "latency_ms": {"board": latency(4.0, ms)}}
    int8_latency = INT8["latency_ms"]["board"] | ({"speedup_over_control": over} if over else {})
    int8 = INT8 | {"latency_ms": {"board": int8_latency}}
    return result(**{"int8": int8, "control": {"int8": control}} | more)


def test_the_original_in_int8_is_a_row_and_two_columns():
    records = overview(
        [("net", "one", controlled(ms=2.0, over=3.5)), ("net", "two", controlled(ms=1.0))]
    )
    names = [(record["method"], record["precision"]) for record in records]
    assert names[:2] == [(ORIGINAL, "float32"), (ORIGINAL, "int8")]
    assert names[2:] == [(m, p) for m in ("one", "two") for p in ("float32", "int8")]
    control = records[1]
    # The median of the measurements beside both variants.
    assert (control["p50_ms"], control["speedup"], control["accuracy"]) == (1.5, 3.0, 91.5)
    assert (control["macs"], control["macs_ratio"], control["onnx_bytes"]) == (1000, None, 10)
    one_float, one, _, two = records[2:]
    assert one["points_below_control"] == 2.0
    # The measured ratio if there is one, otherwise the quotient of the speedups.
    assert one["speedup_over_control"] == 3.5
    assert one_float["speedup_over_control"] == 4.0 / 2.0
    assert two["speedup_over_control"] == 8.0 / 4.0
    heading = table_of(markdown(records))[0]
    assert "faster than int8 original" in heading
    assert "lost against int8 original" in heading


def test_the_relative_latency_of_an_int8_network_comes_from_runs_alternating_with_the_control():
    """Its own median is from another time: 0.5 ms, which is less than the control's 2.0 ms."""
    slower = overview([("net", "one", controlled(ms=2.0, over=0.8))])
    faster = overview([("net", "one", controlled(ms=2.0, over=1.25))])
    for records, share in ((slower, 0.625), (faster, 0.4)):
        original, control, in_float, in_int8 = records
        assert [record["relative_latency"] for record in (original, control)] == [1.0, 0.5]
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
    originals = [r for r in records if (r["method"], r["precision"]) == (ORIGINAL, "float32")]
    assert [(r["cpu"], r["p50_ms"]) for r in originals] == [("EPYC", 4.0), ("Xeon", 8.0)]
    # Each CPU has its own front.
    assert all(record["on_front_by_latency"] for record in originals)
    page = markdown(records)
    assert "Warning: rows of one device were measured on different CPUs." in page
    heading, _, *rows = table_of(page)
    assert "| CPU |" in heading
    assert sum("| Xeon |" in row for row in rows) == 4


def test_a_single_processor_is_named_once_in_the_legend():
    page = markdown(overview([("net", "one", on("EPYC")), ("net", "two", on("EPYC"))]))
    assert "CPU of each device: board: EPYC." in page
    assert "Warning" not in page
    assert "| CPU |" not in page


def test_the_page_has_a_title_and_explains_how_ratios_are_computed():
    records = overview([("net", "one", controlled())])
    for page in (html(records), markdown(records)):
        assert "All variants" in page
        assert "the median of the ratios of both, one for each pair of runs" in page
    assert "<h1>All variants</h1>" in html(records)
    assert "<em>Faster</em>" in html(records)


def test_the_latencies_in_a_row_agree_with_its_speedup():
    """The original's latency in a row was measured together with the network of that row."""
    records = overview([("net", f"by{ms}", result(original_ms=ms, ms=1.0)) for ms in (4.0, 5.0)])
    for record in records[1:]:
        assert record["original_p50_ms"] / record["p50_ms"] == pytest.approx(record["speedup"])


def test_the_page_has_the_cells_of_the_table():
    records = overview([("a<b", "tucker", result(int8=INT8))])
    page = html(records)
    assert page.count("<tr>") == 1 + len(records)
    assert "<td>a&lt;b</td><td>tucker</td><td>int8</td>" in page


ERROR = Metric("mae", "mean error", "error", unit="px", higher_is_better=False, best=0.0, digits=3)


def test_the_column_of_the_metric_states_its_unit():
    records = overview([("net", "tucker", result())])
    (row, *_) = by_metric(records, METRICS)
    assert list(row)[5:7] == ["top1_percent", "points_lost"]
    assert "| top-1, % | lost |" in markdown(records)
    assert "Top-1 is measured on the test images" in markdown(records)


def test_networks_of_different_tasks_have_a_column_each_and_their_own_direction():
    metrics = {"net": ACCURACY, "poses": ERROR}
    worse = result() | {"accuracy": {"original": 1.0, "exported": 1.5}}
    records = table.overview([("net", "one", result()), ("poses", "two", worse)], metrics)
    rows = by_metric(records, metrics)
    assert [(row["top1_percent"], row["mae"]) for row in rows] == [
        (92.0, None),
        (90.0, None),
        (None, 1.0),
        (None, 1.5),
    ]
    assert rows[3]["points_lost"] == 0.5
    # The original has the smaller error, and the variant the smaller cost.
    assert [row["on_front_by_latency"] for row in rows] == [True] * 4
    page = table_page.markdown(records, metrics)
    assert "| top-1, % | mean error, px |" in page
    assert "Top-1 and mean error are measured on the test images" in page
    assert ", in points, px." in page


def test_an_own_metric_is_not_said_to_be_measured_on_the_test_images():
    own = Metric("value", "lines read", "lines read", is_own=True)
    records = table.overview([("net", "one", result())], {"net": own})
    assert "Lines read is measured by a function of the user." in table_page.markdown(
        records, {"net": own}
    )


def test_a_higher_error_at_the_same_cost_is_not_on_the_front():
    assert table.pareto_front([(1.0, 3.0), (1.0, 2.0), (2.0, 1.0), (3.0, 1.5)], ERROR) == {1, 2}


def test_a_page_of_many_rows_lists_the_best():
    variants = [("net", f"method{number}", result()) for number in range(300)]
    records = overview(variants)
    page, web_page = markdown(records), html(records)
    assert "rows: the originals, and the networks that are best at their latency." in page
    assert len(table_of(page)) < 300
    assert web_page.count("<tr>") == 1 + len(records)
    assert "of 300 rows" not in markdown(records[:100])
