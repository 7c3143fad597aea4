"""Networks from ONNX files and a detector with its own metric, through both engines."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import helper
from onnx_graphs import network as onnx_network
from onnx_graphs import random, reader_of_words, words_and_features
from photos import write_flat_photos
from projects import ROOT, Project

METHOD = {
    "factorize": {"conv": "tucker2", "pointwise_conv": "svd", "norm": "activation", "images": 8},
    "ranks": {"select": "ratio", "ratio": 1.5, "negligible": 0, "largest_drop": 1},
    "schedule": {},
    "finetune": {"steps": 2},
    "quantize": "int8",
}


def write_reader(path: Path) -> None:
    """Write an ONNX file as other exporters write it: open sizes, Constant nodes, metadata."""
    weights = {
        "w1": 0.2 * random(8, 3, 3, 3),
        "w2": 0.2 * random(16, 8, 3, 3, seed=1),
        "w3": 0.3 * random(6, 16, 1, 1, seed=2),
    }
    constants = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in weights.items()
    ]
    nodes = [
        *constants,
        helper.make_node("Conv", ["x", "w1"], ["a"], "p2o.Conv.0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "p2o.Relu.0"),
        helper.make_node(
            "Conv", ["b", "w2"], ["c"], "p2o.Conv.1", strides=[2, 1], pads=[1, 1, 1, 1]
        ),
        helper.make_node("HardSwish", ["c"], ["d"], "p2o.Act.0"),
        helper.make_node("ReduceMean", ["d"], ["e"], "p2o.Mean.0", axes=[2], keepdims=1),
        helper.make_node("Conv", ["e", "w3"], ["f"], "p2o.Conv.2"),
        helper.make_node("Squeeze", ["f", "two"], ["g"], "p2o.Squeeze.0"),
        helper.make_node("Transpose", ["g"], ["h"], "p2o.Transpose.0", perm=[0, 2, 1]),
        helper.make_node("Softmax", ["h"], ["y"], "p2o.Softmax.0", axis=2),
    ]
    sizes = {"x": ("batch", 3, 32, "width")}
    model = onnx_network(nodes, {"two": np.array([2])}, inputs=sizes, opset=14)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


@pytest.fixture
def own(project: Project) -> Project:
    folder = project.folder
    write_flat_photos(folder / "lines", 60, seed=1)
    write_reader(folder / "nets/reader.onnx")
    shutil.copy(ROOT / "tests/mydetector.py", folder / "mydetector.py")
    project.change_params(
        dataset={"lines": {"kind": "imagefolder", "train": "lines"}},
        checkpoint={
            "reader": {
                "weights": "nets/reader.onnx",
                "inputs": {"x": [1, 3, 32, 48]},
                "dataset": "lines",
                "task": "agreement",
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "threads": 1,
            },
            "mydetector": {
                "factory": "mydetector:build",
                "input_shape": [3, 32, 32],
                "dataset": "lines",
                "weights": "mydetector.pth",
                "metric": {"function": "mydetector:found_boxes", "name": "recall", "unit": "%"},
                "threads": 1,
            },
        },
        matrix={"models": ["reader"], "methods": ["small"], "devices": ["local"]},
        methods={"small": METHOD},
        finetune__augment={"pad_pixels": 0, "flip": False},
        calibrate={"threads": 1},
    )
    return project


@pytest.mark.slow
def test_an_onnx_file_goes_in_and_comes_out(own: Project):
    own.snakemake("results/reader_small.json")
    result = json.loads((own.folder / "results/reader_small.json").read_text())
    assert result["macs"]["ratio"] > 1.2
    assert result["accuracy"]["original"] == pytest.approx(0, abs=1e-3)
    assert 0 < result["accuracy"]["exported"] < 200
    assert result["latency_ms"]["local"]["speedup"] > 0
    assert result["int8"]["accuracy"]["exported"] > 0
    original = onnx.load(own.folder / "nets/reader.onnx")
    delivered = onnx.load(own.folder / "models/reader_small/reader_small.onnx")
    onnx.checker.check_model(delivered)
    # Everything but the replaced layers is as it was.
    assert delivered.graph.input == original.graph.input
    assert delivered.graph.output == original.graph.output
    kept = {
        node.name: node for node in original.graph.node if node.op_type not in ("Conv", "Constant")
    }
    assert {n.name: n for n in delivered.graph.node if n.name in kept} == kept
    metadata = {entry.key: entry.value for entry in delivered.metadata_props}
    assert metadata["dictionary"] == "a b c"
    # Sizes that were open are still open.
    session = onnxruntime.InferenceSession(delivered.SerializeToString())
    (output,) = session.run(None, {"x": np.zeros((2, 3, 32, 64), np.float32)})
    assert output.shape == (2, 64, 6)
    layers = json.loads((own.folder / "results/plots/reader_small/layers.json").read_text())
    assert [layer["form"] for layer in layers] == ["dense", "tucker2", "svd"]
    assert "Nothing to be done" in own.snakemake("results/reader_small.json")
    # Another file is another network.
    write_reader(own.folder / "nets/reader.onnx")
    model = onnx.load(own.folder / "nets/reader.onnx")
    model.doc_string = "changed"
    onnx.save(model, own.folder / "nets/reader.onnx")
    assert "checkpoint" in own.run("snakemake", "-n", "results/reader_small.json").stdout


@pytest.mark.slow
def test_a_network_of_two_inputs(own: Project):
    """Numbers of words and features, from one file of arrays without labels."""
    onnx.save(reader_of_words(), own.folder / "nets/words.onnx")
    np.savez(own.folder / "words.npz", **words_and_features(60))
    entry = {"weights": "nets/words.onnx", "inputs": {"words": [1, 6], "features": [1, 5]}}
    budget = {"select": "budget", "target": {"macs": 0.9}, "images": 16}
    own.change_params(
        dataset={"texts": {"kind": "arrays", "train": "words.npz"}},
        checkpoint={"words": entry | {"dataset": "texts", "task": "agreement", "threads": 1}},
        matrix={"models": ["words"], "methods": ["small"], "devices": ["local"]},
        methods={
            "small": METHOD
            | {
                "factorize": {"linear": "svd", "pointwise_conv": "svd", "norm": "activation"},
                "ranks": budget | {"negligible": 0, "largest_drop": 1},
            }
        },
    )
    own.snakemake("results/words_small.json")
    result = json.loads((own.folder / "results/words_small.json").read_text())
    assert result["macs"]["ratio"] > 1.1
    assert result["accuracy"]["original"] == pytest.approx(0, abs=1e-3)
    assert 0 < result["accuracy"]["exported"] < 200
    assert result["finetune"]["steps"] == 2
    assert result["latency_ms"]["local"]["speedup"] > 0
    assert result["int8"]["accuracy"]["exported"] > 0
    delivered = onnx.load(own.folder / "models/words_small/words_small.onnx")
    assert delivered.graph.input == reader_of_words().graph.input
    feed = words_and_features(3)
    session = onnxruntime.InferenceSession(delivered.SerializeToString())
    assert session.run(None, feed)[0].shape == (3, 4)
    card = (own.folder / "models/words_small/words_small.md").read_text()
    assert "`words` (N, 6) of int64 and `features` (N, 5) of float32" in card


@pytest.mark.slow
def test_a_detector_with_its_own_metric(own: Project):
    import torch

    sys_path_module = own.folder / "mydetector.py"
    namespace: dict = {}
    exec(compile(sys_path_module.read_text(), str(sys_path_module), "exec"), namespace)
    torch.manual_seed(0)
    torch.save(namespace["build"]().state_dict(), own.folder / "mydetector.pth")
    own.snakemake("results/mydetector_small.json")
    result = json.loads((own.folder / "results/mydetector_small.json").read_text())
    assert 0 <= result["accuracy"]["original"] <= 100
    names = onnxruntime.InferenceSession(
        own.folder / "models/mydetector_small/mydetector_small.onnx"
    ).get_outputs()
    assert [output.name for output in names] == ["boxes", "scores"]
    card = (own.folder / "models/mydetector_small/mydetector_small.md").read_text()
    assert "recall" in card


@pytest.mark.slow
def test_a_faster_detector_in_both_engines(own: Project):
    """A target of latency with the user's metric; DVC runs what a changed parameter needs."""
    import torch
    from mydetector import build

    torch.manual_seed(0)
    # Layers of the narrow network are too small for factors to be faster.
    torch.save(build(width=128).state_dict(), own.folder / "mydetector.pth")
    budget = {"select": "budget", "target": {"latency_ms": {"local": 0.7}}, "images": 8}
    own.change_params(
        checkpoint__mydetector__arguments={"width": 128},
        matrix={"models": ["mydetector"], "methods": ["latency"], "devices": ["local"]},
        methods={
            "latency": {
                "factorize": METHOD["factorize"],
                "ranks": budget | {"negligible": 0, "largest_drop": 1},
                "schedule": {},
                "finetune": {"steps": 2},
            }
        },
    )
    # DVC needs to know the dataset, and the code and images of the user.
    stages = own.folder / "dvc.yaml"
    document = yaml.safe_load(stages.read_text())
    document["vars"] = [{"dataset_name": "lines"}]
    document["stages"]["code"]["deps"].append("mydetector.py")
    document["stages"]["dataset"]["deps"] = ["lines"]
    stages.write_text(yaml.safe_dump(document, sort_keys=False))
    path = own.folder / "results/mydetector_latency.json"
    own.snakemake("results/mydetector_latency.json")
    first = json.loads(path.read_text())
    assert first["macs"]["ratio"] > 1.3
    assert 0 <= first["accuracy"]["original"] <= 100
    own.change_params(methods__latency__finetune={"steps": 3})
    assert "Running stage 'finetune@mydetector-latency'" in own.run("dvc", "repro").stdout
    assert json.loads(path.read_text())["finetune"]["steps"] == 3
    assert "up to date" in own.run("dvc", "status").stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint__reader__weights": "nets/raeder.onnx"}, "nets/raeder.onnx: no such"),
        ({"checkpoint__reader__inputs": {}}, "leaves the size of input 'x' open"),
        ({"checkpoint__reader__task": "classification"}, "checkpoint.<model>.task"),
    ],
)
def test_mistakes_are_reported(own: Project, change: dict, message: str):
    own.change_params(**change)
    done = own.run("snakemake", "--cores", "1", "results/reader_small.json", check=False)
    assert done.returncode != 0
    assert message in done.stdout
    assert "Traceback (most recent call last)" not in done.stdout
