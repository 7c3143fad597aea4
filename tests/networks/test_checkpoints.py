import contextlib
import os
import random

import pytest
import safetensors.torch
import torch
from torch import nn
from toy import assert_same_weights, toy

from lowrank.errors import UserError
from lowrank.networks.checkpoints import load_weights, read_weights, write_weights


class Payload:
    """Unpickling this runs a command."""

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
    """A network, and a file of its weights."""
    path = tmp_path / f"toy{request.param}"
    network = toy()
    if request.param == ".safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    return network, path


def test_each_kind_of_file(saved):
    network, path = saved
    other = toy(seed=1)
    load_weights(other, read_weights(path), source=str(path))
    assert_same_weights(other, network)


def test_missing_file(tmp_path):
    told = error_of(tmp_path / "toy.pth")
    assert "no such checkpoint" in told
    assert "params.yaml" in told


def test_unknown_suffix(tmp_path):
    path = tmp_path / "toy.onnx"
    path.touch()
    assert "ends in .safetensors, .pth or .pt, not in '.onnx'" in error_of(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_file(saved, share):
    _, path = saved
    size = int(share * path.stat().st_size)
    os.truncate(path, size)
    told = error_of(path)
    assert f"{size} bytes" in told
    assert "cut off" in told


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_never_end_in_a_traceback(tmp_path, zipped):
    path = tmp_path / "toy.pth"
    torch.save(toy().state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(60):
        start = chance.randrange(300)
        path.write_bytes(whole[:start] + chance.randbytes(20) + whole[start + 20 :])
        with contextlib.suppress(UserError):
            read_weights(path)


def test_a_page_in_place_of_weights(tmp_path):
    path = tmp_path / "toy.pth"
    path.write_text("<!DOCTYPE html><title>Not found</title>")
    assert "damaged" in error_of(path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, nested):
    mark = tmp_path / "was-run"
    payload = Payload(f"touch {mark}")
    content = {"state_dict": toy().state_dict(), "args": payload} if nested else payload
    torch.save(content, tmp_path / "toy.pth")
    assert "refused" in error_of(tmp_path / "toy.pth")
    assert not mark.exists()

    torch.load(tmp_path / "toy.pth", weights_only=False)
    assert mark.exists(), "the payload would not have shown that it ran"


def test_a_pickled_network_is_refused(tmp_path):
    torch.save(toy(), tmp_path / "toy.pth")
    assert "torch.save(network.state_dict()" in error_of(tmp_path / "toy.pth")


def test_weights_nested_under_state_dict(tmp_path):
    path = tmp_path / "toy.pth"
    network = toy()
    torch.save({"state_dict": network.state_dict(), "epoch": 7, "best": 91.5}, path)
    other = toy(seed=1)
    load_weights(other, read_weights(path), source=str(path))
    assert_same_weights(other, network)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, {0: torch.ones(2)}, None])
def test_content_that_is_no_dictionary_of_tensors(tmp_path, content):
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
    assert "tensor 'conv2.weight' holds 3 values that are not finite" in error_of(path)


def test_values_beyond_float32(tmp_path):
    torch.save({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "a.pth")
    assert "tensor 'a' holds 1 values" in error_of(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_read_as_float32(saved, dtype):
    _, path = saved
    weights = {"a": torch.tensor([0.5, -3.0], dtype=dtype), "n": torch.tensor([7])}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    found = read_weights(path)
    assert found["a"].dtype == torch.float32
    assert found["a"].tolist() == [0.5, -3.0]
    assert found["n"].tolist() == [7]


def test_half_precision_on_disk(tmp_path):
    network = toy()
    write_weights(tmp_path / "half.safetensors", network, dtype=torch.float16)
    on_disk = safetensors.torch.load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in on_disk.values()} == {torch.float16}
    for name, tensor in read_weights(tmp_path / "half.safetensors").items():
        assert torch.equal(tensor, network.state_dict()[name].half().float())


def test_equal_weights_give_equal_bytes(tmp_path):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        write_weights(tmp_path / name, toy(seed), header={"network": "toy", "factored": {}})
    first, again, other = ((tmp_path / n).read_bytes() for n in ("first", "again", "other"))
    assert first == again != other


def test_weights_of_any_memory_layout(tmp_path):
    network = toy()
    write_weights(tmp_path / "a.safetensors", network)
    write_weights(tmp_path / "b.safetensors", network.to(memory_format=torch.channels_last))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def refusal_of(weights):
    network = toy()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(network, weights, source="some.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert str(caught.value).startswith("some.pth: ")
    assert "another architecture" in str(caught.value)
    return str(caught.value)


def test_the_first_tensor_of_another_shape_is_named():
    weights = toy().state_dict()
    weights["conv2.weight"] = torch.ones(8, 4, 3, 3)
    weights["classifier.weight"] = torch.ones(100, 8)
    told = refusal_of(weights)
    assert "tensor 'conv2.weight' has shape (8, 4, 3, 3), Toy expects (8, 8, 3, 3)" in told
    assert "classifier" not in told


def test_the_first_missing_tensor_is_named():
    weights = toy().state_dict()
    del weights["norm1.running_var"]
    assert "no tensor 'norm1.running_var' of shape (8,)" in refusal_of(weights)


def test_a_surplus_tensor_is_named():
    weights = toy().state_dict() | {"conv9.weight": torch.ones(4, 2, 1, 1)}
    assert "holds a tensor 'conv9.weight' of shape (4, 2, 1, 1)" in refusal_of(weights)


def test_a_prefix_of_data_parallel_is_told():
    told = refusal_of(nn.DataParallel(toy()).state_dict())
    assert "no tensor 'conv1.weight' of shape (8, 3, 3, 3)" in told
    assert "'module.conv1.weight'" in told


def test_no_weights_at_all():
    assert "no tensor 'conv1.weight'" in refusal_of({})
