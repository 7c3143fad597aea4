"""The command that compresses one network."""

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner
from onnx import helper
from onnx_graphs import network, random
from PIL import Image

from lowrank.config.network_source import NetworkSource
from lowrank.steps.compress import compress
from lowrank.surgery.states import read_state

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return a classifier of images whose kernels have low rank plus a little noise."""
    make = helper.make_node
    body = random(32, 3) @ random(3, 24 * 9, seed=1) + 0.05 * random(32, 24 * 9, seed=2)
    model = network(
        [
            make("Conv", ["image", "w0"], ["c0"], "/stem/Conv", pads=[1, 1, 1, 1], strides=[2, 2]),
            make("Relu", ["c0"], ["r0"], "relu0"),
            make("Conv", ["r0", "w1"], ["c1"], "/body/Conv", pads=[1, 1, 1, 1]),
            make("Relu", ["c1"], ["r1"], "relu1"),
            make("GlobalAveragePool", ["r1"], ["p"], "pool"),
            make("Flatten", ["p"], ["f"], "flatten"),
            make("Gemm", ["f", "w2"], ["logits"], "/head/Gemm", transB=1),
            make("Softmax", ["logits"], ["classes"], "softmax", axis=1),
        ],
        {
            "w0": random(24, 3, 3, 3, seed=3),
            "w1": body.reshape(32, 24, 3, 3) / 10,
            "w2": random(10, 32, seed=4),
        },
        inputs={"image": ("batch", 3, 32, 32)},
        outputs=("classes",),
    )
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(12):
        coarse = generator.integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((60, 50)).save(folder / f"{number}.png")
    return folder


def run(*arguments):
    return CliRunner().invoke(compress, list(map(str, arguments)))


@pytest.mark.seconds
def test_a_file_is_compressed_quantized_and_measured(path, photos, tmp_path):
    output = tmp_path / "small.onnx"
    normalization = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--resize", 36)
    target = ("--target", "macs=0.6", "--largest-drop", 1)
    done = run(path, "--output", output, "--images", photos, *normalization, *target, "--int8")
    assert done.exit_code == 0, done.output
    for expected in (
        "compressing with 12 samples",
        " of 3 layers replaced: ",
        "compressed: ",
        "original in int8",
        "compressed, in int8",
        "agreement with the original ",
        "x the speed of the original (",
        f"wrote {output}",
    ):
        assert expected in done.output, done.output
    small = onnx.load(output)
    onnx.checker.check_model(small, full_check=True)
    assert "body.0.weight" in {tensor.name for tensor in small.graph.initializer}
    quantized = onnx.load(tmp_path / "small_int8.onnx")
    assert "QuantizeLinear" in {node.op_type for node in quantized.graph.node}
    names = ["small.md", "small.onnx", "small_int8.onnx"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    card = (tmp_path / "small.md").read_text()
    assert "| body | " in card
    # The share of the whole network, not only of the layers that a factorization takes.
    share = re.search(r"M MACs, (\d+) % of the network's are left", done.output)
    assert int(share[1]) <= 60
    assert share[0] in card
    assert "compressed, in int8" in card
    # The entries of params.yaml that do the same.
    assert "snakemake --cores 2 results/model_model_small.json" in done.output
    entries = yaml.safe_load(done.output[done.output.index("dataset:\n") :])
    assert entries["checkpoint"]["model"]["std"] == [0.25, 0.25, 0.25]
    assert entries["methods"]["model_small"]["ranks"]["target"] == {"macs": 0.6}


@pytest.mark.seconds
def test_arrays_are_samples_too(path, tmp_path):
    np.save(tmp_path / "samples.npy", random(40, 3, 32, 32))
    np.savez(tmp_path / "samples.npz", image=random(40, 3, 32, 32))
    for name in ("samples.npy", "samples.npz"):
        samples = ("--samples", tmp_path / name, "--count", 35)
        target = ("--target", "macs=0.8", "--no-int8")
        done = run(path, "--output", tmp_path / "small.onnx", *samples, *target)
        assert done.exit_code == 0, done.output
        assert "compressing with 35 samples" in done.output
        assert " on 35 images" in done.stderr


@pytest.mark.seconds
def test_the_default_is_the_fastest_network_within_one_point(path, tmp_path):
    np.save(tmp_path / "samples.npy", random(64, 3, 32, 32))
    done = run(path, "--output", tmp_path / "small.onnx", "--samples", tmp_path / "samples.npy")
    assert done.exit_code == 0, done.output
    assert re.search(r"trial 4 of 4: 0\.\d+ of latency_ms.local loses -?\d", done.stderr)
    assert (tmp_path / "small_int8.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--target", "macs=0.5"], "--target: needs samples of the input. Give --images or"),
        (["--int8"], "--int8: needs samples of the input."),
        (["--images", "{photos}", "--samples", "x.npy"], "both are given. Give one of them."),
        (["--images", "{photos}", "--target", "mac=0.5"], "--target mac=0.5: expected macs, param"),
        (["--images", "{photos}", "--target", "macs=2"], "between 0 and 1, such as macs=0.5"),
        (["--images", "{photos}", "--target", "accuracy_drop=0"], "or accuracy_drop and points"),
        (
            ["--images", "{photos}", "--target", "accuracy_drop=1", "--target", "macs=0.5"],
            "--target: accuracy_drop cannot be combined with a target of costs.",
        ),
        (["--images", "{photos}", "--target", "macs=x"], "--target macs=x: expected macs, param"),
        (["--images", "{photos}", "--std", "0,1,1"], "--std 0,1,1: expected 3 positive numbers"),
        (["--images", "{photos}", "--mean", "1"], "--mean 1: expected 3 numbers, such as"),
        (["--images", "{tmp}/none"], "is not a folder"),
        (["--images", "{tmp}"], "has neither sub-folders nor images"),
        (["--samples", "{tmp}/none.npy"], "none.npy cannot be read as arrays"),
        (["--samples", "{tmp}/empty.npy"], "expected at least one sample"),
        (
            ["--samples", "{tmp}/other.npy"],
            "has the shape [?, 3, 32, 32], but [1, 5, 32, 32] was given",
        ),
        (["--samples", "{tmp}/pickle.npy"], "pickle.npy cannot be read as arrays"),
        (["--output", "{tmp}/none/small.onnx"], "none is no folder. Create it first."),
        (["--output", "{tmp}/small.safetensors"], "expected a file name that ends with .onnx."),
        (["--output", "{path}"], "model.onnx: is the original. Give another file name."),
        (["--write-params"], "--write-params: the pipeline needs a folder of images."),
        (["--images", "{photos}", "--write-params"], "no params.yaml here. Run it in the folder"),
    ],
)
def test_wrong_arguments_are_errors_that_say_what_to_do(
    path, photos, tmp_path, monkeypatch, arguments, expected
):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "empty.npy", np.zeros((0, 3, 32, 32), np.float32))
    np.save(tmp_path / "other.npy", np.zeros((4, 5, 32, 32), np.float32))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    texts = [text.format(photos=photos, tmp=tmp_path, path=path) for text in arguments]
    done = run(path, "--output", tmp_path / "small.onnx", *texts)
    assert done.exit_code == 1, done.output
    assert expected in done.output
    assert not (tmp_path / "small.onnx").exists()


def test_a_damaged_image_is_named(path, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no image")
    done = run(path, "--output", tmp_path / "small.onnx", "--images", tmp_path)
    assert done.exit_code == 1
    assert "photo.png cannot be read as an image" in done.output


def test_images_for_a_network_that_takes_none(tmp_path, photos):
    model = network(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")],
        {"w": random(7, 5)},
        inputs={"x": ("batch", 7)},
    )
    onnx.save(model, tmp_path / "vectors.onnx")
    done = run(tmp_path / "vectors.onnx", "--output", tmp_path / "s.onnx", "--images", photos)
    assert done.exit_code == 1
    assert "does not take one image, but inputs of the shapes {'x': [1, 7]}" in done.output


FUNCTION = """
import torch
from torch import nn

def build(width=24):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 32, 3, 1, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
"""


@pytest.fixture
def function(tmp_path, monkeypatch):
    """Return a function of a module in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_to_compress.py").write_text(FUNCTION)
    return "net_to_compress:build"


@pytest.mark.seconds
def test_a_function_is_compressed_to_a_state_and_into_the_pipeline(function, photos, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    arguments = ("--images", photos, "--input", "1,3,32,32", "--target", "macs=0.5")
    options = ("--write-params", "--largest-drop", 1)
    done = run(function, "--output", "small.safetensors", *arguments, *options)
    assert done.exit_code == 0, done.output
    assert "compressed: " in done.output
    assert "x the speed of the original (" in done.output
    state = read_state(
        "small.safetensors", NetworkSource(factory=function, input_shape=(3, 32, 32))
    )
    assert state.factored.keys() == {"2"}
    assert len(state.network[2]) == len(state.factored["2"].sequence) > 1
    params = yaml.safe_load(Path("params.yaml").read_text())
    entry = params["checkpoint"]["net_to_compress_build"]
    assert entry["factory"] == function
    assert entry["input_shape"] == [3, 32, 32]
    assert Path(entry["weights"]).is_file()
    assert f"Made from `{function}`" in Path("small.md").read_text()


@pytest.mark.seconds
def test_a_function_is_compressed_to_onnx(function):
    np.save("samples.npy", random(40, 3, 32, 32))
    ranks = ("--largest-drop", 1, "--target", "macs=0.5")
    done = run(function, "--output", "small.onnx", "--samples", "samples.npy", *ranks)
    assert done.exit_code == 0, done.output
    assert " on 40 images" in done.output
    names = {node.name for node in onnx.load("small.onnx").graph.node}
    assert {"0", "2.0", "2.1", "6"} <= names
