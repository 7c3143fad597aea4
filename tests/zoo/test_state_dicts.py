"""Test checkpoints of training programs: wrappers, averaged weights, prefixes."""

import argparse
import collections

import numpy as np
import pytest
import torch
from toy import Toy, assert_same_weights, toy

from lowrank.errors import UserError
from lowrank.zoo.weight_files import load_weights, read_weights


@pytest.fixture
def messages():
    return []


@pytest.fixture
def loaded(tmp_path, messages):
    """Return a function that saves content to a file and loads the file into a network."""

    def load(content, name="toy.pth", **options):
        torch.save(content, tmp_path / name)
        network = toy(seed=9)
        weights = read_weights(tmp_path / name, network, say=messages.append, **options)
        load_weights(network, weights, source=name, say=messages.append)
        return network

    return load


def prefixed(prefix, seed=0):
    return {prefix + name: tensor for name, tensor in toy(seed).state_dict().items()}


TRAINED, AVERAGED = toy(0), toy(1)
PAIRS = [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("net", "ema"), ("model", "swa")]


@pytest.mark.parametrize(("plain", "averaged"), PAIRS)
def test_trained_weights_are_preferred_to_averaged_weights(loaded, messages, plain, averaged):
    both = {averaged: AVERAGED.state_dict(), plain: TRAINED.state_dict(), "epoch": 3}
    assert_same_weights(loaded(both), TRAINED)
    (message,) = messages
    assert f"using the weights in '{plain}'" in message
    assert f"the file also holds '{averaged}', which `state_key` can select" in message


@pytest.mark.parametrize(("plain", "averaged"), PAIRS)
def test_key_selects_the_weights(loaded, messages, plain, averaged):
    both = {plain: TRAINED.state_dict(), averaged: {"module": AVERAGED.state_dict(), "decay": 0.9}}
    assert_same_weights(loaded(both, key=f"{averaged}.module"), AVERAGED)
    assert f"using the weights in '{averaged}.module'" in messages[0]


def test_averaged_weights_are_used_if_there_are_no_others(loaded, messages):
    assert_same_weights(loaded({"model_ema": AVERAGED.state_dict()}), AVERAGED)
    assert "using the weights in 'model_ema'" in messages[0]


def test_message_for_an_unknown_key_lists_the_known_keys(loaded):
    with pytest.raises(UserError, match=r"toy\.pth: `state_key` .*Did you mean 'model_ema'"):
        loaded({"model": toy().state_dict(), "model_ema": toy().state_dict()}, key="model_emma")


def test_several_state_dicts_without_a_common_name(loaded):
    message = r"several dictionaries of tensors: 'left', 'right'.*state_"
    with pytest.raises(UserError, match=message):
        loaded({"left": toy().state_dict(), "right": toy().state_dict()})


def test_optimizer_state_is_ignored(loaded):
    network = toy(0).eval()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {"weights": network.state_dict(), "optimizer": optimizer.state_dict()}
    assert_same_weights(loaded(content), network)


@pytest.mark.parametrize(
    "name", ["a.pth", "a.pt", "a.th", "a.pth.tar", "a.ckpt", "pytorch_model.bin"]
)
def test_suffixes_of_pytorch_files(loaded, name):
    assert_same_weights(loaded({"net": TRAINED.state_dict()}, name), TRAINED)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.module.", "student."],
)
def test_prefix_is_removed(loaded, messages, prefix):
    assert_same_weights(loaded({"state_dict": prefixed(prefix)}), TRAINED)
    if prefix != "_orig_mod.":
        stripped = prefix.replace("_orig_mod.", "")
        assert any(f"removed the prefix '{stripped}' from" in message for message in messages)


def test_single_compiled_submodule(loaded):
    weights = {
        name.replace("conv2.", "conv2._orig_mod."): tensor
        for name, tensor in TRAINED.state_dict().items()
    }
    assert_same_weights(loaded(weights), TRAINED)


def test_lightning_checkpoint(loaded, messages):
    weights = prefixed("model.", 0) | prefixed("ema_model.module.", 1)
    weights |= {"criterion.weight": torch.ones(10)}
    content = {"state_dict": collections.OrderedDict(weights), "pytorch-lightning_version": "2.5"}
    content |= {"callbacks": {}, "optimizer_states": [], "hyper_parameters": {"lr": 0.1}}
    assert_same_weights(loaded(content, "last.ckpt"), TRAINED)
    expected = "removed the prefix 'model.' from the names; skipped: criterion, ema_model"
    assert expected in messages[1]


def test_extra_tensor_under_the_prefix_is_rejected(loaded):
    weights = prefixed("model.") | {"model.conv9.weight": torch.ones(4, 2, 1, 1)}
    with pytest.raises(UserError, match=r"has a tensor 'conv9.weight'"):
        loaded(weights)


def test_settings_next_to_the_weights_are_accepted(loaded):
    content = {"model": TRAINED.state_dict(), "args": argparse.Namespace(lr=0.1, name="toy")}
    content |= {"best": np.float64(93.1), "history": np.arange(3.0)}
    assert_same_weights(loaded(content), TRAINED)


def test_message_for_a_pickled_network_says_what_to_save(loaded):
    with pytest.raises(
        UserError, match=r"an object of class toy\.Toy \(a complete network"
    ) as caught:
        loaded({"model": Toy(0)})
    assert "torch.save(network.state_dict(), 'weights.pth')" in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_message_for_torchscript_says_what_to_save(tmp_path):
    path = tmp_path / "toy.pt"
    torch.jit.trace(toy().eval(), torch.zeros(1, 3, 32, 32)).save(path)
    with pytest.raises(
        UserError, match=r"toy\.pt: a TorchScript archive.*state_dict\(\)"
    ) as caught:
        read_weights(path)
    assert "weights_only" not in str(caught.value)


def quantized():
    return torch.quantize_per_tensor(torch.ones(8, 3, 3, 3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.ones(8, 3, 3, 3).to_sparse(), r"is sparse_coo, .*to_dense"),
        (torch.eye(4).to_sparse_csr(), r"is sparse_csr, .*to_dense"),
        (quantized(), "is quantized"),
        (torch.ones(8, 3, 3, 3, device="meta"), "has no values"),
        (torch.ones(8, 3, 3, 3, dtype=torch.complex64), "is complex"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*[qQ]uant", "ignore:TypedStorage")
def test_tensors_without_dense_values(loaded, tensor, expected):
    with pytest.raises(UserError, match=rf"toy\.pth: tensor 'conv1.weight' {expected}"):
        loaded(toy().state_dict() | {"conv1.weight": tensor})


def test_integer_weights_are_rejected(loaded):
    weights = toy().state_dict()
    with pytest.raises(UserError, match=r"'conv1.weight' has type torch.int8, .*quantized"):
        loaded(weights | {"conv1.weight": weights["conv1.weight"].to(torch.int8)})
