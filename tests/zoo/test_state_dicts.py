"""Checkpoints as training programs write them: wrappers, averaged weights, prefixes."""

import argparse
import collections

import numpy as np
import pytest
import torch
from toy import Toy, assert_same_weights, toy

from lowrank.errors import UserError
from lowrank.zoo.weight_files import load_weights, read_weights


@pytest.fixture
def said():
    return []


@pytest.fixture
def loaded(tmp_path, said):
    """A network with what a file of some content gives."""

    def load(content, name="toy.pth", **options):
        torch.save(content, tmp_path / name)
        network = toy(seed=9)
        found = read_weights(tmp_path / name, network, say=said.append, **options)
        load_weights(network, found, source=name, say=said.append)
        return network

    return load


def prefixed(prefix, seed=0):
    return {prefix + name: tensor for name, tensor in toy(seed).state_dict().items()}


TRAINED, AVERAGED = toy(0), toy(1)
PAIRS = [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("net", "ema"), ("model", "swa")]


@pytest.mark.parametrize(("plain", "averaged"), PAIRS)
def test_of_two_the_weights_as_trained_are_taken_and_that_is_said(loaded, said, plain, averaged):
    both = {averaged: AVERAGED.state_dict(), plain: TRAINED.state_dict(), "epoch": 3}
    assert_same_weights(loaded(both), TRAINED)
    (line,) = said
    assert f"weights taken from '{plain}'" in line
    assert f"it holds '{averaged}' as well, which `state_key` takes" in line


@pytest.mark.parametrize(("plain", "averaged"), PAIRS)
def test_the_user_chooses(loaded, said, plain, averaged):
    both = {plain: TRAINED.state_dict(), averaged: {"module": AVERAGED.state_dict(), "decay": 0.9}}
    assert_same_weights(loaded(both, key=f"{averaged}.module"), AVERAGED)
    assert f"weights taken from '{averaged}.module'" in said[0]


def test_averaged_weights_alone_are_taken_and_that_is_said(loaded, said):
    assert_same_weights(loaded({"model_ema": AVERAGED.state_dict()}), AVERAGED)
    assert "weights taken from 'model_ema'" in said[0]


def test_an_unknown_key_names_the_known_ones(loaded):
    with pytest.raises(UserError, match=r"toy\.pth: `state_key` .*Did you mean 'model_ema'"):
        loaded({"model": toy().state_dict(), "model_ema": toy().state_dict()}, key="model_emma")


def test_several_without_a_usual_name(loaded):
    with pytest.raises(
        UserError, match=r"several dictionaries of tensors: 'left', 'right'.*state_"
    ):
        loaded({"left": toy().state_dict(), "right": toy().state_dict()})


def test_the_state_of_an_optimizer_is_no_network(loaded):
    network = toy(0).eval()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {"weights": network.state_dict(), "optimizer": optimizer.state_dict()}
    assert_same_weights(loaded(content), network)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.pth.tar", "a.ckpt", "pytorch_model.bin"])
def test_names_of_pytorch_files(loaded, name):
    assert_same_weights(loaded({"net": TRAINED.state_dict()}, name), TRAINED)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.module.", "student."],
)
def test_a_prefix_is_taken_off_and_that_is_said(loaded, said, prefix):
    assert_same_weights(loaded({"state_dict": prefixed(prefix)}), TRAINED)
    if prefix != "_orig_mod.":
        stripped = prefix.replace("_orig_mod.", "")
        assert any(f"the prefix '{stripped}' was taken off" in line for line in said)


def test_a_part_that_was_compiled_by_itself(loaded):
    weights = {
        name.replace("conv2.", "conv2._orig_mod."): tensor
        for name, tensor in TRAINED.state_dict().items()
    }
    assert_same_weights(loaded(weights), TRAINED)


def test_a_file_of_lightnings(loaded, said):
    weights = prefixed("model.", 0) | prefixed("ema_model.module.", 1)
    weights |= {"criterion.weight": torch.ones(10)}
    content = {"state_dict": collections.OrderedDict(weights), "pytorch-lightning_version": "2.5"}
    content |= {"callbacks": {}, "optimizer_states": [], "hyper_parameters": {"lr": 0.1}}
    assert_same_weights(loaded(content, "last.ckpt"), TRAINED)
    assert "the prefix 'model.' was taken off the names; not taken: criterion, ema_model" in said[1]


def test_more_under_the_prefix_is_another_architecture(loaded):
    weights = prefixed("model.") | {"model.conv9.weight": torch.ones(4, 2, 1, 1)}
    with pytest.raises(UserError, match=r"holds a tensor 'conv9.weight'"):
        loaded(weights)


def test_settings_beside_the_weights_are_no_code(loaded):
    content = {"model": TRAINED.state_dict(), "args": argparse.Namespace(lr=0.1, name="toy")}
    content |= {"best": np.float64(93.1), "history": np.arange(3.0)}
    assert_same_weights(loaded(content), TRAINED)


def test_a_whole_network_is_named_with_what_to_save(loaded):
    with pytest.raises(UserError, match=r"an object of toy\.Toy: a whole network") as caught:
        loaded({"model": Toy(0)})
    assert "torch.save(network.state_dict(), 'weights.pth')" in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_torchscript_is_named_with_what_to_save(tmp_path):
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
    ("tensor", "told"),
    [
        (torch.ones(8, 3, 3, 3).to_sparse(), r"is sparse_coo, .*to_dense"),
        (torch.eye(4).to_sparse_csr(), r"is sparse_csr, .*to_dense"),
        (quantized(), "is quantized"),
        (torch.ones(8, 3, 3, 3, device="meta"), "has a shape and no values"),
        (torch.ones(8, 3, 3, 3, dtype=torch.complex64), "is complex"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*[qQ]uant", "ignore:TypedStorage")
def test_tensors_without_dense_values(loaded, tensor, told):
    with pytest.raises(UserError, match=rf"toy\.pth: tensor 'conv1.weight' {told}"):
        loaded(toy().state_dict() | {"conv1.weight": tensor})


def test_integers_are_no_weights(loaded):
    weights = toy().state_dict()
    with pytest.raises(UserError, match=r"'conv1.weight' is of torch.int8, .*quantized"):
        loaded(weights | {"conv1.weight": weights["conv1.weight"].to(torch.int8)})
