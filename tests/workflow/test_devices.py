"""Several devices. The second device is the same machine, reached through SSH."""

import json
import sys

import pytest
from projects import RESULT, job_counts
from ssh_server import MISSING, running


@pytest.mark.slow
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_two_devices_are_measured(built, tmp_path):
    with running(tmp_path) as server:
        board = {"kind": "ssh", "host": "board", "python": sys.executable}
        board |= {"folder": str(tmp_path / "there"), "command": server.command}
        built.change_params(
            benchmark__board=board
            | {"threads": [1, 2], "sittings": 1, "repeats": 4}
            | {"seconds": 0.01, "warmup_seconds": 0},
            matrix__devices=["local", "board"],
        )
        # The new device requires new int8 files, which are then measured on both devices.
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
    # Both devices are the same machine, so they run the same file.
    assert result["int8"]["devices"]["board"] == result["int8"]["devices"]["local"]
    assert len(result["int8"]["files"]) == 1


def test_an_unreachable_device_does_not_affect_existing_results(built):
    before = (built.folder / RESULT).read_bytes()
    built.change_params(
        benchmark__board={"kind": "ssh", "host": "no-such-host.invalid"},
        matrix__devices=["local", "board"],
    )
    done = built.run("snakemake", "--cores", "2", RESULT, check=False)
    assert done.returncode
    assert "benchmark.board: no-such-host.invalid: no host has this name" in done.stdout
    assert (built.folder / RESULT).read_bytes() == before
    built.change_params(matrix__devices=["local"])
    assert "Nothing to be done" in built.snakemake(RESULT)
