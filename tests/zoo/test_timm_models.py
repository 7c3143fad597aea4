"""Networks of timm by name. timm is optional, so these tests run only where it is installed."""

import sys

import pytest
import torch

from lowrank.config.network_source import NetworkSource
from lowrank.errors import UserError
from lowrank.surgery.finding import find_layers
from lowrank.zoo.creation import create
from lowrank.zoo.weight_files import load_trained


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"`timm` is not installed\. Install it with `pip install"):
        create(NetworkSource(network="timm/resnet18.a1_in1k"))


def test_a_network_has_its_own_preprocessing():
    timm = pytest.importorskip("timm")
    spec, network = create(NetworkSource(network="timm/resnet18.a1_in1k"))
    assert spec.name == "timm/resnet18.a1_in1k"
    assert (spec.input_shape, spec.num_classes) == ((3, 224, 224), 1000)
    config = timm.get_pretrained_cfg("resnet18.a1_in1k")
    assert (spec.mean, spec.interpolation) == (config.mean, config.interpolation)
    assert spec.resize == int(224 / config.crop_pct)
    layers = find_layers(network, spec.input_shape, spec.name).layers
    assert sum(not layer.not_factored for layer in layers) == 21


def test_weights_of_timm_are_loaded():
    timm = pytest.importorskip("timm")
    weights = timm.create_model("mobilenetv3_small_050", num_classes=7).state_dict()
    source = NetworkSource(network="timm/mobilenetv3_small_050", arguments={"num_classes": 7})
    network = create(source, folded=False)[1]
    load_trained(network, dict(weights), source="weights.safetensors")
    assert torch.equal(network.classifier.weight, weights["classifier.weight"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"network": "timm/resnet81"}, "resnet81"),
        ({"network": "timm/resnet18.no_such_tag"}, "no_such_tag.*Correct the tag"),
        ({"network": "timm/resnet18", "arguments": {"classes": 3}}, "classes.*Correct"),
    ],
)
def test_mistakes_are_reported(source, message):
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=message):
        create(NetworkSource.parse(source))
