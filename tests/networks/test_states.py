import numpy as np
import pytest
import torch
from torch import nn
from toy import assert_same_weights, toy

from lowrank.errors import UserError
from lowrank.networks.states import State, put_factors, read_state, write_state
from lowrank.plan import Factored, PlainLayer
from lowrank.stored import write_tensors

CONV2 = Factored(
    "tucker2",
    (3, 4),
    0.25,
    (PlainLayer(8, 3), PlainLayer(3, 4, (3, 3), (2, 2), (1, 1)), PlainLayer(4, 8, bias=True)),
)
CLASSIFIER = Factored("svd", (2,), 0.5, (PlainLayer(8, 2), PlainLayer(2, 10, bias=True)))


def factors_of(factored, seed=0):
    """Arrays as `decompose` writes them: kernels of four axes, one bias."""
    random = np.random.default_rng(seed)
    tensors = {
        f"{index}.weight": random.normal(size=layer.weight_shape).astype(np.float32)
        for index, layer in enumerate(factored.sequence)
    }
    last = len(factored.sequence) - 1
    tensors[f"{last}.bias"] = random.normal(size=factored.sequence[last].out_channels).astype("f4")
    return tensors


@pytest.fixture
def spec(register_network):
    return register_network(toy, "toy")


@pytest.fixture
def state(spec):
    state = State(spec, toy(seed=3).eval(), {})
    for name, factored in (("conv2", CONV2), ("classifier", CLASSIFIER)):
        put_factors(
            state.network, name, factored.sequence, factors_of(factored), source="a.safetensors"
        )
        state.factored[name] = factored
    return state


def outputs_of(network):
    torch.manual_seed(0)
    with torch.inference_mode():
        return network.eval()(torch.randn(5, 3, 32, 32))


def test_factors_take_the_place_of_a_convolution(state):
    kernels = factors_of(CONV2)
    merged = np.einsum(
        "ta,abhw,bs->tshw",
        kernels["2.weight"][:, :, 0, 0],
        kernels["1.weight"],
        kernels["0.weight"][:, :, 0, 0],
    )
    inputs = torch.randn(2, 8, 7, 7)
    expected = nn.functional.conv2d(
        inputs, torch.from_numpy(merged), torch.from_numpy(kernels["2.bias"]), 2, 1
    )
    torch.testing.assert_close(state.network.conv2(inputs), expected, rtol=1e-4, atol=1e-4)
    assert state.factored["conv2"] == CONV2


def test_factors_take_the_place_of_a_linear_layer(state):
    kernels = factors_of(CLASSIFIER)
    merged = kernels["1.weight"][:, :, 0, 0] @ kernels["0.weight"][:, :, 0, 0]
    inputs = torch.randn(4, 8)
    expected = inputs.numpy() @ merged.T + kernels["1.bias"]
    torch.testing.assert_close(state.network.classifier(inputs), torch.from_numpy(expected))
    assert {type(module) for module in state.network.classifier} == {nn.Linear}


def test_round_trip(tmp_path, state):
    write_state(tmp_path / "model.safetensors", state)
    found = read_state(tmp_path / "model.safetensors")
    assert found.spec == state.spec
    assert found.factored == state.factored
    assert_same_weights(found.network, state.network)
    assert torch.equal(outputs_of(found.network), outputs_of(state.network))


def test_round_trip_of_a_dense_network(tmp_path, spec):
    state = State(spec, toy(seed=3), {})
    write_state(tmp_path / "model.safetensors", state)
    found = read_state(tmp_path / "model.safetensors")
    assert found.factored == {}
    assert torch.equal(outputs_of(found.network), outputs_of(state.network))


def test_equal_states_give_equal_bytes(tmp_path, state):
    write_state(tmp_path / "1.safetensors", state)
    write_state(tmp_path / "2.safetensors", read_state(tmp_path / "1.safetensors"))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_a_layer_that_does_not_exist(state):
    with pytest.raises(UserError, match="Toy has no layer 'conv9'"):
        put_factors(
            state.network, "conv9", CONV2.sequence, factors_of(CONV2), source="conv9.safetensors"
        )


def test_factors_that_do_not_fit_their_header(spec):
    tensors = factors_of(CONV2)
    del tensors["1.weight"]
    with pytest.raises(UserError, match=r"conv2\.safetensors: holds no tensor '1.weight'"):
        put_factors(toy(), "conv2", CONV2.sequence, tensors, source="conv2.safetensors")


def test_a_state_of_an_unknown_network(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {}, {"network": "vgg61", "factored": {}})
    with pytest.raises(UserError, match="unknown network 'vgg61'"):
        read_state(path)


def test_a_state_without_its_weights(tmp_path, spec):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {}, {"network": "toy", "factored": {}})
    with pytest.raises(UserError, match=r"model\.safetensors: holds no tensor 'conv1.weight'"):
        read_state(path)
