import json

import pytest
import torch
from toy import toy

from lowrank.errors import UserError
from lowrank.zoo import NetworkSpec, create_network, network_names, network_spec


def test_shipped_networks_are_registered():
    assert {"vgg16", "resnet20"} <= set(network_names())


@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_network_matches_its_specification(name):
    spec = network_spec(name)
    with torch.inference_mode():
        logits = create_network(name).eval()(torch.zeros(2, *spec.input_shape))
    assert spec.name == name
    assert logits.shape == (2, spec.num_classes)
    assert len(spec.mean) == len(spec.std) == spec.input_shape[0]


def test_each_call_builds_a_new_network():
    assert create_network("resnet20") is not create_network("resnet20")


def test_register_a_network(register_network):
    register_network(toy, "mine")
    assert "mine" in network_names()
    assert network_spec("mine").name == "mine"
    assert type(create_network("mine")).__name__ == "Toy"


def test_unknown_name():
    for look_up in (create_network, network_spec):
        with pytest.raises(UserError, match=r"unknown network 'resnet2'. Did you mean 'resnet20'"):
            look_up("resnet2")


def test_specification_round_trips_through_json():
    spec = NetworkSpec(
        "mine", (3, 224, 224), 10, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bgr", 256, "bicubic"
    )
    document = json.loads(json.dumps(spec.to_json()))
    assert NetworkSpec.from_json(document) == spec
    assert document["input_shape"] == [3, 224, 224]
