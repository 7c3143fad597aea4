import pytest
import torch
from torch import nn
from toy import toy

from lowrank.training.maps import WatchedMaps, layers_to_watch
from lowrank.zoo import NetworkSpec
from lowrank.zoo.resnet import resnet20
from lowrank.zoo.vgg import vgg16

SPEC = NetworkSpec("net", (3, 32, 32), 10)
PLENTY = {"images": 45_000, "largest_bytes": 2**40}


def test_first_layer_of_each_resolution_from_the_deepest():
    layers = layers_to_watch(vgg16(), SPEC, count=3, **PLENTY)
    assert layers == ["features.conv5_1", "features.conv4_1", "features.conv3_1"]
    # Maps of the image size or of a single pixel are excluded.
    assert layers_to_watch(resnet20(), SPEC, count=9, **PLENTY) == [
        "blocks.6.conv2",
        "blocks.3.conv2",
    ]
    assert layers_to_watch(toy(), SPEC, **PLENTY) == ["conv2"]
    assert layers_to_watch(vgg16(), SPEC, count=0, **PLENTY) == []


@pytest.mark.seconds
def test_maps_that_exceed_the_storage_limit_are_excluded():
    # In float16, conv5_1 takes 512 x 2 x 2 values = 4 KiB per image, and conv4_1 takes 8 KiB.
    limits = {"images": 1024, "largest_bytes": 4 * 2**20}
    assert layers_to_watch(vgg16(), SPEC, count=2, **limits) == ["features.conv5_1"]
    assert layers_to_watch(vgg16(), SPEC, count=2, images=1024, largest_bytes=2**20) == []
    limits["largest_bytes"] = 12 * 2**20
    assert len(layers_to_watch(vgg16(), SPEC, count=2, **limits)) == 2


def test_networks_without_convolutions_have_no_maps():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    assert layers_to_watch(network, SPEC, **PLENTY) == []


@pytest.mark.parametrize("size", [7, 32])
def test_maps_are_layer_inputs_averaged_to_four_by_four(size):
    network, images = toy().eval(), torch.randn(2, 3, size, size)
    with WatchedMaps(network, ["conv2", "conv1"]) as watched, torch.inference_mode():
        network(images)
        maps = watched.take()
        assert watched.take() == {}
        inner = torch.relu(network.norm1(network.conv1(images)))
    assert maps["conv1"].shape == (2, 3, 4, 4)
    torch.testing.assert_close(
        maps["conv2"], nn.functional.adaptive_avg_pool2d(inner, min(4, inner.shape[-1]))
    )
    assert not network.conv2._forward_pre_hooks
