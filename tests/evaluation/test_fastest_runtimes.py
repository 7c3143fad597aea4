"""The runtime in which each file of a result is fastest."""

from lowrank.evaluation.fastest_runtimes import add_fastest_runtimes
from lowrank.report.result import _latency


def block(original: float, compressed: float) -> dict:
    percentiles = {"p90": 9.0, "p99": 9.0}
    return {
        "original": {"p50": original, **percentiles},
        "compressed": {"p50": compressed, **percentiles},
        "speedup": original / compressed,
    }


def test_the_fastest_runtime_of_each_file_is_that_of_the_lowest_median():
    first = block(4.0, 2.0) | {
        "int8": block(4.0, 1.0),
        "control": {"int8": {"not_measured": "no kernels"}},
        "environment": {"runtime": "first", "runtime_version": "1"},
    }
    second = block(3.0, 2.5) | {
        "int8": block(3.0, 1.5),
        "control": {"int8": block(3.0, 2.0)},
        "environment": {"runtime": "second", "runtime_version": "2"},
        "agreement": {"relative_error": 0.0},
    }
    add_fastest_runtimes({"first": first, "second": second})
    assert first["fastest_runtime"] == {"original": "second", "compressed": "first"}
    assert first["int8"]["fastest_runtime"] == {"compressed": "first"}
    assert first["control"]["int8"]["fastest_runtime"] == {"compressed": "second"}
    assert "fastest_runtime" not in second

    latency = _latency(first | {"others": {"runtime_second": second}})
    assert latency["fastest_runtime"] == first["fastest_runtime"]
    other = latency["others"]["runtime_second"]
    assert (other["runtime"], other["runtime_version"]) == ("second", "2")
    assert other["agreement"] == {"relative_error": 0.0}
