import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from lowrank.config.network_source import NetworkSource
from lowrank.errors import UserError

FACTORY = {"factory": "mynet:build", "arguments": {"width": 8}, "input_shape": [3, 32, 32]}


def test_parse_a_name():
    assert NetworkSource.parse(" resnet50 ") == NetworkSource(network="resnet50")


@pytest.mark.parametrize("document", [FACTORY, json.dumps(FACTORY)])
def test_parse_a_document(document):
    source = NetworkSource.parse(document)
    assert source.factory == "mynet:build"
    assert source.arguments == {"width": 8}
    assert source.input_shape == (3, 32, 32)


def test_json_round_trip():
    source = NetworkSource(
        factory="a.b:c", input_shape=(1, 28, 28), mean=(0.5,), std=(0.25,), interpolation="bicubic"
    )
    assert NetworkSource.parse(json.dumps(source.to_json())) == source
    assert NetworkSource(network="vgg16").to_json() == {"network": "vgg16"}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("", "it is empty"),
        ("{factory", "not JSON"),
        ({}, "none of `network`, `factory` and `onnx`"),
        ({"factory": "mynet:build"}, "needs `input_shape`"),
        ({"factory": "mynet", "input_shape": [3, 8, 8]}, "`factory`"),
        ({"factory": "a:b", "network": "c", "input_shape": [3, 8, 8]}, "not both"),
        ({"network": "a", "shape": [3, 8, 8]}, "`shape`"),
        ({"network": "a", "input_shape": [16]}, "has 1 sizes; expected three: channels, height"),
        ({"network": "a", "input_type": "int64"}, "`input_type` is only for a `factory`"),
        ({"factory": "a:b", "input_shape": []}, "`input_shape`"),
        ({"factory": "a:b", "input_shape": [4], "input_type": "text"}, "`input_type`"),
        (
            {"network": "a", "input_shape": [3, 0, 8]},
            "`input_shape[1]` is 0, expected at least 1",
        ),
        ({"network": "a", "std": [0.0]}, "`std[0]` is 0.0, expected above 0"),
        (
            {"factory": "a:b", "input_shape": [3, 8, 8], "torchvision_weights": "DEFAULT"},
            "only for networks of torchvision",
        ),
    ],
)
def test_a_wrong_description_is_reported(document, reason):
    with pytest.raises(UserError, match="description of a network") as caught:
        NetworkSource.parse(document)
    assert reason in str(caught.value)


IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (IMAGENET, "`mean: [0.485, 0.456, 0.406]`, `std: [0.229, 0.224, 0.225]`"),
        ({"mean": IMAGENET["mean"]}, "`std: [0.003922, 0.003922, 0.003922]`"),
        ({"mean": [0, 0, 0], "std": [255, 255, 255]}, "`mean: [0, 0, 0]`, `std: [1, 1, 1]`"),
        ({"std": [58.395] * 3}, "Divide both by 255: `std: [0.229, 0.229, 0.229]`"),
    ],
)
def test_preprocessing_for_pixels_from_0_to_255_is_rejected(fields, expected):
    with pytest.raises(UserError, match="for pixels from 0 to 255") as caught:
        NetworkSource.parse({"factory": "a:b", "input_shape": [3, 8, 8], **fields})
    assert expected in str(caught.value)


def test_preprocessing_for_scaled_pixels_is_accepted():
    fields = {"mean": [0.485, 0.456, 0.406], "std": [1 / 255, 1.0, 0.225]}
    assert NetworkSource.parse({"network": "a", **fields}).std == (1 / 255, 1.0, 0.225)


def test_network_defaults_to_the_name_of_the_entry():
    class Entry(NetworkSource):
        weights: str

    source = Entry(weights="a.pth", input_shape=(3, 8, 8)).named("resnet50")
    assert source.to_json() == {"network": "resnet50", "input_shape": [3, 8, 8]}
    assert Entry(weights="a.pth", network="vgg16").named("mine").network == "vgg16"
    own = Entry(weights="a.pth", factory="a:b", input_shape=(3, 8, 8)).named("mine")
    assert type(own) is NetworkSource
    assert own.network is None


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (NetworkSource(network="torchvision/vgg16"), "vgg16"),
        (NetworkSource(network="vgg16"), "vgg16"),
        (NetworkSource(factory="a.b:build", input_shape=(3, 8, 8)), "build"),
    ],
)
def test_short_name(source, name):
    assert source.short_name == name


def test_sources_are_immutable():
    with pytest.raises(ValidationError):
        NetworkSource(network="vgg16").network = "vgg19"


def test_pytorch_is_not_imported():
    code = "import sys, lowrank.config.network_source; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
