"""The command that shows what an ONNX file consists of."""

import onnx
import pytest
from click.testing import CliRunner
from onnx import helper
from onnx_graphs import network, random

from lowrank.api import TUCKER
from lowrank.compression.analysis import analyze_model
from lowrank.steps.analyze import analyze, report


@pytest.fixture
def path(tmp_path):
    make = helper.make_node
    low_rank = random(24, 2) @ random(2, 16 * 9, seed=1) + 0.01 * random(24, 16 * 9, seed=2)
    model = network(
        [
            make("Conv", ["x", "w0"], ["c0"], "/stem/Conv", pads=[1, 1, 1, 1], group=16),
            make("Relu", ["c0"], ["r"], "relu"),
            make("Conv", ["r", "w1"], ["c1"], "/body/Conv", strides=[2, 2]),
            make("GlobalAveragePool", ["c1"], ["p"], "pool"),
            make("Flatten", ["p"], ["f"], "flatten"),
            make("MatMul", ["f", "w2"], ["m"], "/head/MatMul"),
            make("Add", ["m", "b"], ["y"], "/head/Add"),
        ],
        {
            "w0": random(16, 1, 3, 3),
            "w1": low_rank.reshape(24, 16, 3, 3),
            "w2": random(24, 10),
            "b": random(10),
        },
        inputs={"x": ("batch", 16, 17, "width")},
    )
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def run(*arguments):
    return CliRunner().invoke(analyze, list(map(str, arguments)))


def test_layers_ranks_and_totals_are_shown(path):
    done = run(path, "--input", "x=1,16,17,15", "--seconds", 0)
    assert done.exit_code == 0, done.output
    first, _, header, stem, body, head, _, last = done.output.splitlines()
    macs = 16 * 9 * 17 * 15 + 24 * 16 * 9 * 8 * 7 + 240
    assert f"operator set 17, 3 layers, {macs / 1e6:.1f} M MACs; inputs x [1, 16, 17, 15]" in first
    assert header.split()[:2] == ["layer", "shape"]
    assert stem.startswith("stem")
    assert "16 > 16, 3x3, 16 groups" in stem
    assert "depthwise" in stem
    assert "16 > 24, 3x3 /2" in body
    assert "2, 2" in body
    assert body.endswith("% (tucker2)")
    assert "24 > 10" in head
    assert "factors leave" in last


@pytest.mark.seconds
def test_every_layer_has_its_latency(path):
    """ONNX Runtime fuses the activation with its layer, and the bias with the product."""
    shapes = {"x": (1, 16, 17, 15)}
    analysis = analyze_model(path, shapes, TUCKER, threads=1, seconds=0.1)
    latencies = {entry.layer.name: entry.milliseconds for entry in analysis.layers}
    assert list(latencies) == ["stem", "body", "head"]
    assert all(latency > 0 for latency in latencies.values())
    table = report(path, analysis).splitlines()
    assert f"{latencies['body']:.3f}" in table[4]
    assert table[6].startswith("other nodes")
    assert f"{analysis.rest_milliseconds:.3f}" in table[6]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "leaves the size of input 'x' open: [?, 16, 17, ?]. Give the size of one sample"),
        (["--input", "x"], "--input x: expected whole numbers, such as 1,3,48,320 or x=1,3,48,"),
        (["--input", "x=1,a"], "--input x=1,a: expected whole numbers"),
        (["--input", "z=1"], "has no input 'z'; its inputs are 'x'. Correct the name."),
        (["--input", "x=1,16,17,15", "--threads", 0], "threads"),
    ],
)
def test_wrong_arguments_are_errors_that_say_what_to_do(path, arguments, expected):
    done = run(path, *arguments)
    assert done.exit_code == 1
    assert expected in done.output


def test_the_network_of_a_function_is_analyzed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "from torch import nn\n\ndef build():\n    return nn.Conv2d(8, 16, 3)\n"
    (tmp_path / "net_to_analyze.py").write_text(source)
    done = run("net_to_analyze:build", "--input", "1,8,12,10", "--seconds", 0)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("net_to_analyze:build: ")
    assert "1 layers, 0.1 M MACs; inputs images [1, 8, 12, 10]" in done.output


def test_a_file_that_is_no_network(tmp_path):
    (tmp_path / "model.onnx").write_text("no network")
    done = run(tmp_path / "model.onnx")
    assert done.exit_code == 1
    assert "not an ONNX file" in done.output
