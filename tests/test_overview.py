"""All variants side by side."""

import pytest

from lowrank.overview import ORIGINAL, html, markdown, overview, pareto_front, records_of


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
    heading, _, original, in_float, in_int8 = markdown(records).splitlines()
    assert "energy" not in heading
    assert "| net | original | float32 | board | 92.00 |  | 4.000 |  | 1,000 |" in original
    assert "| 90.00 | 2.00 | 1.000 | 4.00x | 200 | 5.00x | 40 | 2.0x |" in in_float
    assert in_int8.endswith("| 10 | 8.0x | yes |")
    assert "energy, mJ" in markdown(overview([("net", "tucker", result())]))


def test_the_page_has_the_cells_of_the_table():
    records = overview([("a<b", "tucker", result(int8=INT8))])
    page = html(records)
    assert page.count("<tr>") == 1 + len(records)
    assert "<td>a&lt;b</td><td>tucker</td><td>int8</td>" in page
