"""Run networks in ONNX Runtime."""

import os

import pytest

from lowrank.onnx_networks.model_run import workers_for


@pytest.mark.parametrize(
    ("cores", "runs", "expected"),
    [(1, 5, (1, 1)), (2, 1, (1, 2)), (4, 3, (3, 1)), (64, 100, (8, 8)), (2, 0, (1, 2))],
)
def test_runs_at_a_time_share_the_cores(monkeypatch, cores, runs, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert workers_for(runs) == expected
