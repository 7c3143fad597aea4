import numpy as np
import pytest
import torch
from torch import nn
from toy import assert_same_weights, toy
from vit import vit

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import PlainLayer
from lowrank.core.plans import Factored
from lowrank.core.stored import read_header, write_tensors
from lowrank.errors import UserError
from lowrank.factorize import decompose, get_factorization, reconstruct
from lowrank.surgery.finding import find_layers
from lowrank.surgery.states import (
    FactorsOnMap,
    State,
    put_factors,
    read_spec,
    read_state,
    write_state,
)
from lowrank.zoo.creation import create

TOY = NetworkSource(network="toy")
CONV2 = Factored(
    "tucker2",
    (3, 4),
    0.25,
    (PlainLayer(8, 3), PlainLayer(3, 4, (3, 3), (2, 2), (1, 1)), PlainLayer(4, 8, bias=True)),
)
CLASSIFIER = Factored("svd", (2,), 0.5, (PlainLayer(8, 2), PlainLayer(2, 10, bias=True)))


def factors_of(factored, seed=0):
    """Return arrays as `decompose` writes them: kernels with four axes and one bias."""
    generator = np.random.default_rng(seed)
    tensors = {
        f"{index}.weight": generator.normal(size=layer.weight_shape).astype(np.float32)
        for index, layer in enumerate(factored.sequence)
    }
    last = len(factored.sequence) - 1
    bias = generator.normal(size=factored.sequence[last].out_channels)
    tensors[f"{last}.bias"] = bias.astype(np.float32)
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


def test_factors_replace_a_convolution(state):
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


def test_factors_replace_a_linear_layer(state):
    kernels = factors_of(CLASSIFIER)
    merged = kernels["1.weight"][:, :, 0, 0] @ kernels["0.weight"][:, :, 0, 0]
    inputs = torch.randn(4, 8)
    expected = inputs.numpy() @ merged.T + kernels["1.bias"]
    torch.testing.assert_close(state.network.classifier(inputs), torch.from_numpy(expected))
    assert {type(module) for module in state.network.classifier} == {nn.Linear}


def test_round_trip(tmp_path, state):
    write_state(tmp_path / "model.safetensors", state)
    loaded = read_state(tmp_path / "model.safetensors", TOY)
    assert loaded.spec == state.spec
    assert loaded.factored == state.factored
    assert_same_weights(loaded.network, state.network)
    assert torch.equal(outputs_of(loaded.network), outputs_of(state.network))


def test_round_trip_of_a_dense_network(tmp_path, spec):
    state = State(spec, toy(seed=3), {})
    write_state(tmp_path / "model.safetensors", state)
    loaded = read_state(tmp_path / "model.safetensors", TOY)
    assert loaded.factored == {}
    assert torch.equal(outputs_of(loaded.network), outputs_of(state.network))


def test_equal_states_give_equal_bytes(tmp_path, state):
    write_state(tmp_path / "1.safetensors", state)
    write_state(tmp_path / "2.safetensors", read_state(tmp_path / "1.safetensors", TOY))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_layer_that_does_not_exist(state):
    with pytest.raises(UserError, match="Toy has no layer 'conv9'"):
        put_factors(
            state.network, "conv9", CONV2.sequence, factors_of(CONV2), source="conv9.safetensors"
        )


def test_factors_that_do_not_fit_their_header(spec):
    tensors = factors_of(CONV2)
    del tensors["1.weight"]
    with pytest.raises(UserError, match=r"conv2\.safetensors: has no tensor '1.weight'"):
        put_factors(toy(), "conv2", CONV2.sequence, tensors, source="conv2.safetensors")


def test_state_of_an_unknown_network(tmp_path, spec):
    path = tmp_path / "model.safetensors"
    write_state(path, State(spec, toy(), {}, NetworkSource(network="vgg61")))
    with pytest.raises(UserError, match="unknown network 'vgg61'"):
        read_state(path, NetworkSource(network="vgg61"))


RUNS_A_COMMAND = {
    "factory": "subprocess:getoutput",
    "arguments": {"cmd": "touch pwned"},
    "input_shape": [3, 32, 32],
}


def test_reading_a_state_does_not_run_code_that_it_names(tmp_path, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    write_state(path, State(spec, toy(), {}, NetworkSource.parse(RUNS_A_COMMAND)))
    with pytest.raises(UserError, match=r"model\.safetensors: holds the network .*getoutput.*toy"):
        read_state(path, TOY)
    assert read_spec(path) == spec
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("changed", [{"arguments": {"seed": 1}}, {"mean": [0.5, 0.5, 0.5]}])
def test_state_with_another_description_of_the_same_network(tmp_path, spec, changed):
    path = tmp_path / "model.safetensors"
    write_state(path, State(spec, toy(), {}))
    with pytest.raises(UserError, match=r"but params\.yaml describes .*No code named in the file"):
        read_state(path, NetworkSource(network="toy", **changed))


@pytest.mark.parametrize(
    "damage",
    [{"network": 3}, {"factored": []}, {"factored": {"conv1": {}}}, {"spec": {}}, {"spec": None}],
)
def test_damaged_header(tmp_path, spec, damage):
    path = tmp_path / "model.safetensors"
    header = {"network": {"network": "toy"}, "spec": spec.to_json(), "factored": {}}
    write_tensors(path, {}, header | damage)
    with pytest.raises(UserError, match=r"model\.safetensors: not a state file"):
        read_state(path, TOY)


def test_state_without_weights(tmp_path, spec):
    path = tmp_path / "model.safetensors"
    header = {"network": {"network": "toy"}, "spec": spec.to_json(), "factored": {}}
    write_tensors(path, {}, header)
    with pytest.raises(UserError, match=r"model\.safetensors: has no tensor 'conv1.weight'"):
        read_state(path, TOY)


def test_state_of_an_earlier_version(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {}, {"network": "toy", "factored": {}})
    with pytest.raises(UserError, match=r"model\.safetensors: not a state file, or one of"):
        read_state(path, TOY)


def test_user_network_is_built_from_its_source(tmp_path):
    source = NetworkSource(
        factory="mynet:build",
        arguments={"num_classes": 3, "width": 8},
        input_shape=(3, 32, 32),
        mean=(0.1, 0.2, 0.3),
        resize=40,
        channel_order="bgr",
    )
    spec, network = create(source)
    sequence = (PlainLayer(3, 2), PlainLayer(2, 8, (5, 5), (2, 2), (2, 2), bias=True))
    factored = Factored("tucker", (2,), 0.5, sequence)
    put_factors(network, "stem", sequence, factors_of(factored), source="stem.safetensors")
    state = State(spec, network, {"stem": factored}, source)
    write_state(tmp_path / "model.safetensors", state)
    loaded = read_state(tmp_path / "model.safetensors", source)
    assert (loaded.spec, loaded.source, loaded.factored) == (spec, source, {"stem": factored})
    assert_same_weights(loaded.network, network)
    assert read_header(tmp_path / "model.safetensors")["network"]["factory"] == "mynet:build"


def linear_on_a_flattened_map(bias=True):
    """Return a network with a linear layer on a flattened 6 x 2 x 3 map, and that layer."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(36, 20, bias))
    return network, find_layers(network, (3, 2, 3), "net")["2"]


def factor(network, layer, name, ranks):
    """Replace the layer by factors; return their kernel, the bias and the sequence."""
    dense = network.get_submodule("2")
    weight = dense.weight.detach().numpy().reshape(layer.weight_shape)
    bias = None if dense.bias is None else dense.bias.detach().numpy()
    result = decompose(get_factorization(name), layer, weight, bias, ranks)
    put_factors(network, "2", result.sequence, result.tensors, source="2.safetensors")
    return reconstruct(result.sequence, result.weights), bias, result.sequence


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("factorization", "ranks", "kinds"),
    [("tucker1", (4,), [nn.Linear] * 2), ("tucker2", (3, 5), [nn.Conv2d] * 3)],
)
def test_factors_on_a_flattened_map(factorization, ranks, kinds, bias):
    network, layer = linear_on_a_flattened_map(bias)
    kernel, offset, sequence = factor(network, layer, factorization, ranks)
    assert [type(module) for module in network[2]] == kinds
    names = [f"{index}.weight" for index in range(len(kinds))]
    assert [name for name in network[2].state_dict() if "weight" in name] == names
    assert sum(p.numel() for p in network[2].parameters()) == sum(p.parameters for p in sequence)
    vectors = torch.randn(4, 36)
    expected = vectors.numpy() @ kernel.reshape(20, 36).T + (0 if offset is None else offset)
    torch.testing.assert_close(
        network[2](vectors).detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5
    )


def test_two_kernels_on_a_flattened_map():
    # Factors of a spatial decomposition.
    sequence = (PlainLayer(6, 4, (2, 1)), PlainLayer(4, 20, (1, 3), bias=True))
    network, _ = linear_on_a_flattened_map()
    factored = Factored("spatial_svd", (4,), 0.5, sequence)
    tensors = factors_of(factored)
    put_factors(network, "2", sequence, tensors, source="2.safetensors")
    kernel = reconstruct(sequence, [tensors["0.weight"], tensors["1.weight"]])
    vectors = torch.randn(4, 36)
    expected = vectors.numpy() @ kernel.reshape(20, 36).T + tensors["1.bias"]
    torch.testing.assert_close(
        network[2](vectors).detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4
    )


def test_factored_layer_is_factored_again(state):
    smaller = Factored(
        "tucker2",
        (2, 2),
        0.5,
        (PlainLayer(8, 2), PlainLayer(2, 2, (3, 3), (2, 2), (1, 1)), PlainLayer(2, 8, bias=True)),
    )
    put_factors(
        state.network, "conv2", smaller.sequence, factors_of(smaller), source="a.safetensors"
    )
    assert [type(module) for module in state.network.conv2] == [nn.Conv2d] * 3
    assert [module.out_channels for module in state.network.conv2] == [2, 2, 8]
    narrow = Factored("svd", (1,), 0.5, (PlainLayer(8, 1), PlainLayer(1, 10, bias=True)))
    put_factors(
        state.network, "classifier", narrow.sequence, factors_of(narrow), source="a.safetensors"
    )
    assert [type(module) for module in state.network.classifier] == [nn.Linear] * 2
    assert outputs_of(state.network).shape == (5, 10)


@pytest.mark.parametrize(
    ("before", "after"), [("tucker2", "tucker1"), ("tucker1", "tucker2"), ("tucker2", "tucker2")]
)
def test_layer_on_a_flattened_map_is_factored_again(before, after):
    ranks = {"tucker1": (4,), "tucker2": (3, 5)}
    network, layer = linear_on_a_flattened_map()
    factor(network, layer, before, ranks[before])
    reference, _ = linear_on_a_flattened_map()
    _, _, sequence = factor(reference, layer, after, ranks[after])
    put_factors(network, "2", sequence, stored(reference[2], sequence), source="2.safetensors")
    assert isinstance(network[2], FactorsOnMap) == (after == "tucker2")
    images = torch.randn(4, 3, 2, 3)
    assert torch.equal(network(images), nn.Sequential(*network[:2], *reference[2:])(images))


def stored(module, sequence):
    """Return the tensors of a module as `decompose` writes them."""
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    for index, plain in enumerate(sequence):
        tensors[f"{index}.weight"] = tensors[f"{index}.weight"].reshape(plain.weight_shape)
    return tensors


def test_factors_of_another_size_are_rejected(state):
    tensors = factors_of(CONV2)
    tensors["1.weight"] = tensors["1.weight"][:, :2]
    with pytest.raises(UserError, match=r"conv2\.st: tensor '1.weight' has shape \(4, 2, 3, 3\)"):
        put_factors(state.network, "conv2", CONV2.sequence, tensors, source="conv2.st")


def test_factors_of_attention_are_written_and_read(tmp_path, register_network):
    spec = register_network(vit, "vit")
    source = NetworkSource(network="vit")
    network = create(source)[1].eval()
    name = "encoder.layers.encoder_layer_1.self_attention.k_proj"
    factored = Factored("svd", (3,), 0.5, (PlainLayer(16, 3), PlainLayer(3, 16, bias=True)))
    put_factors(network, name, factored.sequence, factors_of(factored), source="a.safetensors")
    write_state(tmp_path / "state.safetensors", State(spec, network, {name: factored}))
    state = read_state(tmp_path / "state.safetensors", source)
    assert_same_weights(state.network, network)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(state.network.eval()(images), network(images))
