"""More than one device: here the same machine, behind SSH."""

import json
import sys

import pytest
from projects import RESULT, job_counts
from ssh_server import MISSING, running


@pytest.mark.slow
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_another_device_is_measured_beside_the_first(built, tmp_path):
    with running(tmp_path) as server:
        board = {"kind": "ssh", "host": "board", "python": sys.executable}
        board |= {"folder": str(tmp_path / "there"), "command": server.command}
        built.change_params(
            benchmark__board=board
            | {"threads": [1, 2], "sittings": 1, "repeats": 4}
            | {"seconds": 0.01, "warmup_seconds": 0},
            matrix__devices=["local", "board"],
        )
        # int8 files are made for the hardware of all devices together, and measured with them.
        jobs = job_counts(built.snakemake("-n", RESULT))
        assert jobs == {
            "describe_device": 1,
            "quantize_original": 1,
            "quantize": 1,
            "benchmark": 2,
            "summarize": 1,
        }
        built.snakemake(RESULT)
    result = json.loads((built.folder / RESULT).read_text())
    for measured in (result, result["int8"]):
        assert measured["latency_ms"].keys() == {"local", "board"}
        assert measured["latency_ms"]["board"]["speedup"] > 0
        (other,) = measured["latency_ms"]["board"]["others"]
        assert other == "threads_2_batch_size_1"
    assert result["environment"]["board"] == result["environment"]["local"]
    # Behind both is this machine: one file does for both.
    assert result["int8"]["devices"]["board"] == result["int8"]["devices"]["local"]
    assert len(result["int8"]["files"]) == 1


def test_a_device_that_cannot_be_reached_takes_nothing_with_it(built):
    before = (built.folder / RESULT).read_bytes()
    built.change_params(
        benchmark__board={"kind": "ssh", "host": "no-such-host.invalid"},
        matrix__devices=["local", "board"],
    )
    done = built.run("snakemake", "--cores", "2", RESULT, check=False)
    assert done.returncode
    assert "benchmark.board: no-such-host.invalid: there is no host of that name" in done.stdout
    assert (built.folder / RESULT).read_bytes() == before
    built.change_params(matrix__devices=["local"])
    assert "Nothing to be done" in built.snakemake(RESULT)
