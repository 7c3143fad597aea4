import contextlib
import os
import random

import pytest
import safetensors.torch
import torch
from torch import nn
from toy import assert_same_weights, toy

from lowrank.errors import UserError
from lowrank.zoo.weight_files import load_weights, read_weights, write_weights


class Payload:
    """Object that runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def error_of(path):
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=[".safetensors", ".pth", ".pt"])
def saved(request, tmp_path):
    """Return a network and a file with its weights."""
    path = tmp_path / f"toy{request.param}"
    network = toy()
    if request.param == ".safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    return network, path


def test_every_file_format(saved):
    network, path = saved
    loaded = toy(seed=1)
    load_weights(loaded, read_weights(path), source=str(path))
    assert_same_weights(loaded, network)


def test_missing_file(tmp_path):
    message = error_of(tmp_path / "toy.pth")
    assert "no such checkpoint" in message
    assert "params.yaml" in message


def test_unknown_suffix(tmp_path):
    path = tmp_path / "toy.onnx"
    path.touch()
    message = error_of(path)
    assert "unknown checkpoint format '.onnx'" in message
    assert ".ckpt, .bin or .caffemodel." in message


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_file(saved, share):
    _, path = saved
    size = int(share * path.stat().st_size)
    os.truncate(path, size)
    message = error_of(path)
    assert f"{size} bytes" in message
    assert "cut off" in message or "truncated" in message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_raise_no_other_error(tmp_path, zipped):
    path = tmp_path / "toy.pth"
    torch.save(toy().state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        start = generator.randrange(300)
        path.write_bytes(content[:start] + generator.randbytes(20) + content[start + 20 :])
        with contextlib.suppress(UserError):
            read_weights(path)


def test_html_page_instead_of_weights(tmp_path):
    path = tmp_path / "toy.pth"
    path.write_text("<!DOCTYPE html><title>Not found</title>")
    assert "damaged" in error_of(path)


@pytest.mark.parametrize("nested", [False, True])
def test_pickle_with_code_is_rejected_and_does_not_run(tmp_path, nested):
    marker = tmp_path / "code-ran"
    payload = Payload(f"touch {marker}")
    content = {"state_dict": toy().state_dict(), "args": payload} if nested else payload
    torch.save(content, tmp_path / "toy.pth")
    assert "rejected" in error_of(tmp_path / "toy.pth")
    assert not marker.exists()

    torch.load(tmp_path / "toy.pth", weights_only=False)
    assert marker.exists(), "the payload does not create the marker, so the test proves nothing"


def test_pickled_network_is_rejected(tmp_path):
    torch.save(toy(), tmp_path / "toy.pth")
    assert "torch.save(network.state_dict()" in error_of(tmp_path / "toy.pth")


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_weights_in_a_training_checkpoint(tmp_path, wrapper):
    path = tmp_path / "toy.pth"
    network = toy()
    torch.save({wrapper: network.state_dict(), "epoch": 7, "best": 91.5}, path)
    loaded = toy(seed=1)
    load_weights(loaded, read_weights(path), source=str(path))
    assert_same_weights(loaded, network)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, {0: torch.ones(2)}, None])
def test_content_that_is_not_a_dictionary_of_tensors(tmp_path, content):
    torch.save(content, tmp_path / "toy.pth")
    assert "not a dictionary of tensors" in error_of(tmp_path / "toy.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(saved, value):
    network, path = saved
    weights = network.state_dict()
    weights["conv2.weight"][0, 0, :, 1] = value
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    assert "tensor 'conv2.weight' has 3 values that are not finite" in error_of(path)


def test_values_outside_the_range_of_float32(tmp_path):
    torch.save({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "a.pth")
    assert "tensor 'a' has 1 values" in error_of(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_read_as_float32(saved, dtype):
    _, path = saved
    weights = {"a": torch.tensor([0.5, -3.0], dtype=dtype), "n": torch.tensor([7])}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    tensors = read_weights(path)
    assert tensors["a"].dtype == torch.float32
    assert tensors["a"].tolist() == [0.5, -3.0]
    assert tensors["n"].tolist() == [7]


def test_half_precision_on_disk(tmp_path):
    network = toy()
    write_weights(tmp_path / "half.safetensors", network, dtype=torch.float16)
    on_disk = safetensors.torch.load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in on_disk.values()} == {torch.float16}
    for name, tensor in read_weights(tmp_path / "half.safetensors").items():
        assert torch.equal(tensor, network.state_dict()[name].half().float())


def test_equal_weights_give_equal_bytes(tmp_path):
    for name, seed in (("first", 0), ("second", 0), ("different", 1)):
        write_weights(tmp_path / name, toy(seed), header={"network": "toy", "factored": {}})
    first, second, different = (
        (tmp_path / name).read_bytes() for name in ("first", "second", "different")
    )
    assert first == second != different


def test_weights_of_any_memory_layout(tmp_path):
    network = toy()
    write_weights(tmp_path / "a.safetensors", network)
    write_weights(tmp_path / "b.safetensors", network.to(memory_format=torch.channels_last))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def load_error_of(weights):
    network = toy()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(network, weights, source="some.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert str(caught.value).startswith("some.pth: ")
    assert "another architecture" in str(caught.value)
    return str(caught.value)


def test_message_names_the_first_tensor_of_another_shape():
    weights = toy().state_dict()
    weights["conv2.weight"] = torch.ones(8, 4, 3, 3)
    weights["classifier.weight"] = torch.ones(100, 8)
    message = load_error_of(weights)
    assert "tensor 'conv2.weight' has shape (8, 4, 3, 3), but Toy expects (8, 8, 3, 3)" in message
    assert "classifier" not in message


def test_message_names_the_first_missing_tensor():
    weights = toy().state_dict()
    del weights["norm1.running_var"]
    assert "no tensor 'norm1.running_var' of shape (8,)" in load_error_of(weights)


def test_message_names_a_surplus_tensor():
    weights = toy().state_dict() | {"conv9.weight": torch.ones(4, 2, 1, 1)}
    assert "has a tensor 'conv9.weight' of shape (4, 2, 1, 1)" in load_error_of(weights)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_training_tools(prefix):
    network, loaded = toy(), toy(seed=1)
    weights = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    load_weights(loaded, weights, source="toy.pth")
    assert_same_weights(loaded, network)


def test_network_whose_own_names_start_with_a_known_prefix():
    network, loaded = (nn.DataParallel(toy(seed)) for seed in (0, 1))
    load_weights(loaded, network.state_dict(), source="toy.pth")
    assert_same_weights(loaded, network)


def test_empty_weights():
    assert "no tensor 'conv1.weight'" in load_error_of({})


def test_old_names_in_torchvision_densenet_files():
    layer = nn.Module()
    layer.norm1, layer.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)
    network = nn.ModuleDict({"denselayer1": layer})
    weights = {
        name.replace("norm1", "norm.1").replace("conv2", "conv.2"): tensor + 1
        for name, tensor in network.state_dict().items()
    }
    assert "denselayer1.norm.1.weight" in weights
    expected = weights["denselayer1.conv.2.weight"]
    load_weights(network, weights, source="densenet.pth")
    assert torch.equal(network["denselayer1"].conv2.weight, expected)


def test_auxiliary_heads_are_skipped_if_the_network_has_none():
    network = toy()
    weights = network.state_dict() | {"AuxLogits.fc.weight": torch.ones(10, 8)}
    assert "has a tensor 'AuxLogits.fc.weight'" in load_error_of(weights)
    network.aux_logits = False
    load_weights(network, weights, source="inception.pth")


def test_network_that_checks_the_version_of_its_weights():
    class Versioned(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
            assert local_metadata["version"] == 2

    network = Versioned(2, 3)
    load_weights(network, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, source="a.pth")
    assert network.weight.sum() == 6


def test_integer_tensors_stay_exact_in_half_precision(tmp_path):
    network = nn.Linear(2, 2)
    network.register_buffer("index", torch.tensor([4097, 2**40 + 1]))
    write_weights(tmp_path / "half.safetensors", network, dtype=torch.float16)
    assert read_weights(tmp_path / "half.safetensors")["index"].tolist() == [4097, 2**40 + 1]


def test_caffemodel_is_read_with_the_names_of_the_network(tmp_path, monkeypatch):
    # lowrank.zoo.caffe reads the content of the file.
    from lowrank.zoo import caffe

    path = tmp_path / "toy.caffemodel"
    path.touch()
    network = toy()
    calls = []
    monkeypatch.setattr(caffe, "caffe_weights", lambda *arguments: calls.append(arguments) or {})
    assert read_weights(path, network) == {}
    assert calls == [(path, network)]


def test_a_damaged_caffemodel(tmp_path):
    path = tmp_path / "toy.caffemodel"
    path.write_bytes(b"no protobuf")
    with pytest.raises(UserError, match=r"toy\.caffemodel: "):
        read_weights(path, toy())
