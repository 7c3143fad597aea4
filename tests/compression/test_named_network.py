"""Commands name an ONNX file, or a function that returns a network."""

import onnx
import pytest
from onnx import helper
from onnx_graphs import network, random

from lowrank.compression.named_network import open_network
from lowrank.errors import UserError

MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())

def other():
    return {"weights": 1}

def needs(width):
    return nn.Conv2d(3, width, 3)

def broken():
    raise RuntimeError("no weights here")

number = 1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_to_open.py").write_text(MODULE)
    (tmp_path / "export").mkdir()
    return tmp_path / "export"


def file_with(inputs, path):
    nodes = [helper.make_node("Relu", [name], [f"y{name}"], name) for name in inputs]
    sizes = dict.fromkeys(inputs, ("batch", 3, "height", "width"))
    outputs = tuple(f"y{name}" for name in inputs)
    onnx.save(network(nodes, {"w": random(1)}, inputs=sizes, outputs=outputs), path)
    return str(path)


@pytest.mark.parametrize(
    ("model", "shapes", "expected"),
    [
        ("net_to_open:build", {}, "Give the shape of one sample, such as --input 1,3,224,224."),
        ("net_to_open:build", {"x": (1, 3, 8, 8)}, "--input x: a network in PyTorch has one input"),
        (
            "net_to_open:build",
            {"": (3, 8, 8)},
            r"found the shape \[3, 8, 8\] for net_to_open:build",
        ),
        ("net_to_open:build", {"": (1, 4, 8, 8)}, "does not accept an image of `input_shape`"),
        ("net_to_open:biuld", {"": (1, 3, 8, 8)}, "unknown function 'biuld'"),
        ("net_to_open:number", {"": (1, 3, 8, 8)}, "'number' is an int, expected a function"),
        ("net_to_open:other", {"": (1, 3, 8, 8)}, "returns a dict, expected a torch.nn.Module"),
        ("net_to_open:broken", {"": (1, 3, 8, 8)}, "it fails with .*: RuntimeError: no weights"),
        ("net_to_open:needs", {"": (1, 3, 8, 8)}, "a function that needs no arguments"),
        ("not_there:build", {"": (1, 3, 8, 8)}, "there is no module 'not_there'"),
        ("net_to_open", {}, "no such file. Expected an ONNX file, or a function that returns a"),
        ("none.onnx", {}, "none.onnx: no such file."),
    ],
)
def test_a_wrong_name_or_shape_is_an_error_that_says_what_to_do(folder, model, shapes, expected):
    with pytest.raises(UserError, match=expected):
        open_network(model, shapes, [], folder)


def test_the_only_input_of_a_file_needs_no_name(folder):
    one = file_with(["a"], folder / "one.onnx")
    assert open_network(one, {"": (1, 3, 8, 8)}, [], folder).shapes == {"a": (1, 3, 8, 8)}
    two = file_with(["a", "b"], folder / "two.onnx")
    with pytest.raises(UserError, match=r"has the inputs 'a', 'b'\. Give each shape with a name"):
        open_network(two, {"": (1, 3, 8, 8)}, [], folder)
