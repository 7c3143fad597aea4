import hashlib

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification
from toy import assert_same_weights

from lowrank.errors import UserError
from lowrank.zoo.torchvision_models import fetch_torchvision_weights, torchvision_names
from lowrank.zoo.weight_files import load_weights, read_weights


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())


@pytest.fixture
def weights_file(tmp_path, monkeypatch):
    """Add a network to torchvision whose weights are a local file, and return that file."""
    torch.save(tiny().state_dict(), tmp_path / "made.pth")
    content = (tmp_path / "made.pth").read_bytes()
    file = tmp_path / f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / "made.pth").rename(file)

    class TinyWeights(WeightsEnum):
        FIRST = Weights(file.as_uri(), lambda: ImageClassification(crop_size=8), {})
        DEFAULT = FIRST

    def tinynet(*, weights: TinyWeights | None = None) -> nn.Module:
        return tiny()

    models = torchvision.models._api.BUILTIN_MODELS
    monkeypatch.setitem(models, "tinynet", tinynet)
    monkeypatch.setattr(tinynet, "__module__", torchvision.models.__name__ + ".tinynet")
    return file


def test_only_classifiers_are_listed():
    names = torchvision_names()
    assert {"resnet50", "vit_b_16", "googlenet"} <= set(names)
    assert not {"fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "raft_large"} & set(names)


@pytest.mark.parametrize("weights", ["FIRST", "DEFAULT"])
@pytest.mark.parametrize("name", ["tinynet", "torchvision/tinynet"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_downloaded(weights_file, tmp_path, capfd, name, weights, suffix):
    path = tmp_path / "fetched" / f"tiny{suffix}"
    fetch_torchvision_weights(name, weights, path)
    network = tiny(seed=1)
    load_weights(network, read_weights(path), source=str(path))
    assert_same_weights(network, tiny())
    assert list(path.parent.iterdir()) == [path]
    assert capfd.readouterr() == ("", "")


def test_weights_that_cannot_be_downloaded(weights_file, tmp_path):
    weights_file.unlink()
    path = tmp_path / "fetched" / "tiny.safetensors"
    with pytest.raises(UserError) as caught:
        fetch_torchvision_weights("tinynet", "FIRST", path)
    message = str(caught.value)
    assert f"cannot download the weights FIRST of tinynet from {weights_file.as_uri()}" in message
    assert f"put it at {path.with_suffix('.pth')}" in message
    assert list(path.parent.iterdir()) == []


def test_weights_with_another_hash(weights_file, tmp_path):
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    with pytest.raises(UserError, match="invalid hash value"):
        fetch_torchvision_weights("tinynet", "FIRST", tmp_path / "fetched" / "tiny.pth")
    assert list((tmp_path / "fetched").iterdir()) == []


def test_unknown_names(tmp_path):
    with pytest.raises(UserError, match="unknown torchvision classifier 'resnet51'"):
        fetch_torchvision_weights("resnet51", "DEFAULT", tmp_path / "a.pth")
    with pytest.raises(UserError, match="torchvision/resnet50: unknown weights 'IMAGENET'"):
        fetch_torchvision_weights("resnet50", "IMAGENET", tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []
