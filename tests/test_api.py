import re

import mynet
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression.graph_network import GraphNetwork
from lowrank.errors import UserError


def trained_network() -> nn.Module:
    """Return a network whose kernels have low rank plus a little noise, as after training."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 20),
    ).eval()
    with torch.no_grad():
        for module in network:
            if isinstance(module, nn.Conv2d | nn.Linear):
                outputs = len(module.weight)
                mixed = torch.randn(outputs, 2) @ torch.randn(2, module.weight[0].numel())
                noise = 0.002 * torch.randn_like(module.weight)
                module.weight.copy_(0.1 * mixed.reshape(module.weight.shape) + noise)
    return network


def test_compressed_network_is_smaller_and_has_similar_outputs():
    network = trained_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    small = lowrank.compress(network, (3, 16, 16))
    images = torch.randn(8, 3, 16, 16)
    expected, outputs = network(images), small.network(images)
    assert (outputs - expected).norm() < 0.2 * expected.norm()
    parameters = [sum(p.numel() for p in n.parameters()) for n in (network, small.network)]
    assert parameters[1] < 0.5 * parameters[0]
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)


def test_images_reduce_the_error_of_the_outputs():
    network = trained_network()
    # Images that are bright in one color: the weights for the other colors matter little.
    tint = torch.tensor([1.0, 0.1, 0.1])[:, None, None]
    ranks = {"select": "ratio", "ratio": 4}
    images = [tint * (1 + torch.randn(32, 3, 16, 16)) for _ in range(4)]
    without_images = lowrank.compress(network, (3, 16, 16), ranks=ranks)
    with_images = lowrank.compress(network, (3, 16, 16), ranks=ranks, images=iter(images[:3]))
    pairs = zip(with_images.layers, without_images.layers, strict=True)
    assert all(layer.ranks == other.ranks for layer, other in pairs)
    expected = network(images[3])
    errors = [
        (small.network(images[3]) - expected).norm() for small in (with_images, without_images)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_sequential_compensates_for_the_error_of_layers_before():
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 16, 3, padding=1)]
    layers += [nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]
    network = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())])
    images = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    ranks = {"select": "ratio", "ratio": 3, "largest_drop": 1}
    errors = []
    for sequential in (True, False):
        small = lowrank.compress(
            network, (3, 8, 8), ranks=ranks, images=images[:3], sequential=sequential
        )
        errors.append((small.network(images[3]) - network(images[3])).norm())
    assert errors[0] < 0.95 * errors[1]
    with pytest.raises(UserError, match="sequential: layers are compared on images"):
        lowrank.compress(network, (3, 8, 8), ranks=ranks, sequential=True)


def test_sequential_with_no_layer_worth_replacing():
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3))
    images = [torch.randn(16, 3, 8, 8)]
    # At its smallest multiple, no rank saves anything.
    ranks = {"select": "vbmf", "multiple_of": 16}
    small = lowrank.compress(network, (3, 8, 8), ranks=ranks, images=images, sequential=True)
    assert all(layer.is_dense for layer in small.layers)
    assert torch.equal(small.network(images[0]), network(images[0]))


def test_cost_target_is_met_with_images():
    network = trained_network()
    images = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    ranks = {"select": "budget", "target": {"macs": 0.4}}
    small = lowrank.compress(network, (3, 16, 16), ranks=ranks, images=iter(images))
    before, after = (sum(layer.macs[index] for layer in small.layers) for index in (0, 1))
    assert 0.37 < after / before <= 0.4
    with pytest.raises(UserError, match="'budget' measures the change of outputs"):
        lowrank.compress(network, (3, 16, 16), ranks=ranks)


def test_full_ranks_change_nothing():
    network = trained_network()
    small = lowrank.compress(network, (3, 16, 16), ranks={"weaken": 1.0})
    # Factors with full ranks cost more than the layers, so all layers stay dense.
    assert all(layer.is_dense for layer in small.layers)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(images), small.network(images))


def test_exported_file_runs(tmp_path):
    small = lowrank.compress(trained_network(), (3, 16, 16))
    small.export(tmp_path / "small.onnx")
    images = torch.randn(3, 3, 16, 16)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    outputs = session.run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(outputs, small.network(images).detach().numpy(), atol=1e-4)


def test_linear_layer_on_a_flattened_map():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 12 * 10, 24))
    # Input rank 2 and output rank 2: (24, 2) x (2, 2, 12, 10) x (2, 8) -> (24, 8, 12, 10)
    mixed = torch.einsum(
        "ta,abhw,bs->tshw", torch.randn(24, 2), torch.randn(2, 2, 12, 10), torch.randn(2, 8)
    ).flatten(1)
    with torch.no_grad():
        network[2].weight.copy_(mixed + 0.01 * torch.randn_like(mixed))
    small = lowrank.compress(network, (1, 14, 12), factorize={"flattened_linear": "tucker2"})
    (linear,) = [layer for layer in small.layers if layer.name == "2"]
    assert linear.ranks == (2, 2)
    images = torch.randn(4, 1, 14, 12)
    expected, outputs = network(images), small.network(images)
    assert (outputs - expected).norm() < 0.05 * expected.norm()
    assert linear.parameters[1] == sum(p.numel() for p in small.network[2].parameters())


def test_factors_have_the_type_of_the_layer():
    small = lowrank.compress(trained_network().double(), (3, 16, 16))
    assert {parameter.dtype for parameter in small.network.parameters()} == {torch.float64}


def test_a_network_in_which_no_layer_can_be_replaced_is_an_error_with_the_reasons():
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(16, 4, 2)
    )
    with pytest.raises(UserError, match=r"\(0: padding mode 'reflect': .*, 1: a transposed conv"):
        lowrank.compress(network, (3, 8, 8), ranks={"select": "ratio", "ratio": 2.0})


def test_user_network():
    torch.manual_seed(0)
    network = mynet.build().eval()
    small = lowrank.compress(network, (3, 32, 32), ranks={"select": "ratio", "ratio": 2.0})
    factored = [layer.name for layer in small.layers if not layer.is_dense]
    assert factored == [
        "stem",
        "block.conv1",
        "block.conv2",
        "left",
        "right",
        "hidden",
        "classifier",
    ]
    assert small.network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_input_shape_that_the_network_does_not_accept():
    message = r"network 'Sequential' does not accept an image of .* \(1, 16, 16"
    with pytest.raises(UserError, match=message):
        lowrank.compress(trained_network(), (1, 16, 16))


def test_message_for_an_unknown_factorization():
    message = r"`factorize.conv` is 'tucker3', expected one of .* \(did you mean 'tucker"
    with pytest.raises(UserError, match=message):
        lowrank.compress(trained_network(), (3, 16, 16), factorize={"conv": "tucker3"})


@pytest.mark.parametrize(
    ("factorize", "arguments", "message"),
    [
        (
            {"convolution": "tucker2"},
            {},
            r"parameter `factorize.convolution` \(did you mean 'conv'\?\), expected one of alt",
        ),
        ({"conv": "svd", "images": 5}, {}, "factorize.images: not supported here"),
        ({"conv": "svd", "norm": "activation"}, {}, "factorize.norm: 'activation' approximates"),
        ({"conv": "svd", "sequential": True}, {}, "sequential: layers are compared on images"),
        ({"conv": "svd", "alternatives": ["cp4"]}, {}, "only `ranks={'select': 'budget', ...}`"),
        ({"conv": "svd"}, {"ranks": {"energy": 0.3}}, "`energy` belongs to `select: energy`"),
        ({"conv": "svd"}, {"ranks": {"enrgy": 0.3}}, "did you mean 'energy'"),
    ],
)
def test_settings_without_effect_are_rejected(factorize, arguments, message):
    with pytest.raises(UserError, match=message):
        lowrank.compress(trained_network(), (3, 16, 16), factorize=factorize, **arguments)


def test_cheapest_layers_stay_dense():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip
    ranks = {"select": "ratio", "ratio": 2.0}
    small = lowrank.compress(network, (3, 8, 8), ranks=ranks)
    reasons = {layer.name: layer.dense_because for layer in small.layers}
    assert "nothing to gain" in reasons["0"]
    assert "nothing to gain" in reasons["7"]
    assert [name for name, reason in reasons.items() if not reason] == ["2", "4"]
    small = lowrank.compress(network, (3, 8, 8), ranks=ranks | {"negligible": 0})
    assert [layer.name for layer in small.layers if not layer.is_dense] == ["0", "2", "4", "7"]


def test_settings_of_factorize_are_used():
    network = trained_network()
    images = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    plain = {"conv": "tucker2", "linear": "svd"}
    ranks = {"select": "ratio", "ratio": 3}
    factorize = plain | {"exclude": ["7"]}
    small = lowrank.compress(network, (3, 16, 16), factorize=factorize, ranks=ranks)
    assert [layer.name for layer in small.layers] == ["2", "4"]

    def weights(**options):
        small = lowrank.compress(network, (3, 16, 16), ranks=ranks, **options)
        return torch.cat([p.detach().flatten() for p in small.network.parameters()])

    sequential = weights(factorize=plain | {"sequential": True}, images=images)
    assert torch.equal(sequential, weights(factorize=plain, images=images, sequential=True))
    weight_norm = weights(factorize=plain | {"norm": "weight"}, images=images)
    assert torch.equal(weight_norm, weights(factorize=plain))
    assert not torch.equal(weight_norm, weights(factorize=plain, images=images))


def test_target_chooses_among_alternatives():
    network = trained_network()
    images = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    factorize = {"conv": "spatial_svd", "alternatives": ["channel_svd"]}
    ranks = {"select": "budget", "target": {"macs": 0.5}}
    small = lowrank.compress(network, (3, 16, 16), factorize=factorize, ranks=ranks, images=images)
    assert "channel_svd" in {layer.factorization for layer in small.layers if not layer.is_dense}


def classifier_of_directions() -> nn.Module:
    """Return a classifier by the nearest of 20 directions, which needs a rank close to 20."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 20, bias=False))
    nn.init.orthogonal_(network[1].weight)
    return network.eval()


def confident_classifier() -> nn.Module:
    """Return the same classifier, with probabilities near 0 or 1."""
    network = classifier_of_directions()
    with torch.no_grad():
        network[1].weight.mul_(5)
    return network


def probabilities(network, images):
    with torch.no_grad():
        return torch.cat([network(batch) for batch in images]).double().softmax(1)


def test_the_expected_accuracy_drop_needs_no_labels():
    network, images = confident_classifier(), [torch.randn(64, 3, 8, 8) for _ in range(2)]
    ranks = {"select": "ratio", "ratio": 2, "negligible": 0, "largest_drop": 1}
    small = lowrank.compress(network, (3, 8, 8), ranks=ranks, images=images)
    original, changed = probabilities(network, images), probabilities(small.network, images)
    own, other = (original.gather(1, p.argmax(1, keepdim=True)) for p in (original, changed))
    assert small.expected.accuracy_drop == pytest.approx(100 * float((own - other).mean()))
    assert small.expected.accuracy_drop > 0


SEARCH = {
    "select": "budget",
    "target": {"accuracy_drop": 5.0},
    "search": {"cost": "macs", "trials": 4},
    "negligible": 0,
    "largest_drop": 1,
}


def test_the_cheapest_network_within_an_accuracy_drop(capsys):
    network, images = confident_classifier(), [torch.randn(256, 3, 8, 8) for _ in range(2)]

    def share(drop):
        ranks = SEARCH | {"target": {"accuracy_drop": drop}}
        small = lowrank.compress(
            network, (3, 8, 8), factorize={"linear": "svd"}, ranks=ranks, images=images
        )
        assert small.macs[1] / small.macs[0] <= small.ranks["target"]["macs"]
        assert "search" not in small.ranks
        assert small.expected.accuracy_drop <= drop
        return small.ranks["target"]["macs"]

    assert share(30.0) > share(60.0)
    lines = capsys.readouterr().err
    assert "trial 4 of 4: 0." in lines
    assert " of macs loses " in lines


def test_a_search_needs_images_and_a_trial_within_the_target():
    network, images = confident_classifier(), [torch.randn(256, 3, 8, 8)]
    with pytest.raises(UserError, match=r"accuracy_drop: the drop is measured on images"):
        lowrank.compress(network, (3, 8, 8), factorize={"linear": "svd"}, ranks=SEARCH)
    impossible = SEARCH | {"search": {"cost": "macs", "between": [0.1, 0.2]}}
    with pytest.raises(UserError, match=r"no trial loses at most 5 points .* pass more images"):
        lowrank.compress(
            network, (3, 8, 8), factorize={"linear": "svd"}, ranks=impossible, images=images
        )


@pytest.mark.seconds
def test_with_images_the_default_is_the_recommended_method(tmp_path):
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
    head = nn.Linear(64, 10)
    pool = nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), pool, nn.Flatten(), head).eval()
    images = [torch.randn(64, 3, 32, 32) for _ in range(2)]
    small = lowrank.compress(network, (3, 32, 32), images=images)
    assert small.ranks["select"] == "budget"
    assert 0 < small.ranks["target"]["latency_ms"]["local"] < 1
    small.export(tmp_path / "small.onnx", int8=True)
    operators = {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node}
    assert "QuantizeLinear" in operators
    assert {layer.factorization for layer in small.layers} <= {
        *("tucker1", "tucker2", "svd", "spatial_svd", "remove_channels")
    }


def test_excessive_drop_is_an_error_that_names_the_nearest_allowed_setting(capsys):
    network, images = classifier_of_directions(), [torch.randn(128, 3, 8, 8) for _ in range(3)]
    ranks = {"select": "ratio", "ratio": 15.0, "negligible": 0}

    def compress(**changes):
        return lowrank.compress(
            network, (3, 8, 8), factorize={"linear": "svd"}, ranks=ranks | changes, images=images
        )

    with pytest.raises(UserError, match=r"original is \d+\.\d % on 384 images") as caught:
        compress()
    assert "set `largest_drop` to 1" in str(caught.value)
    ratio = float(re.search(r"keeps enough is `ratio: (.*?)`", str(caught.value)).group(1))
    assert 1 < ratio < 15
    small = compress(ratio=ratio)
    assert small.expected.drop <= 0.5
    agreement = (small.network(images[0]).argmax(1) == network(images[0]).argmax(1)).float().mean()
    assert abs(100 * float(agreement) - small.expected.after) < 10
    capsys.readouterr()
    small = compress(largest_drop=1)
    assert small.expected.drop > 0.5
    line = f"agreement with the original 100.00 % -> {small.expected.after:.2f} % on 384 images"
    assert line in capsys.readouterr().err


def test_int8_needs_samples(tmp_path):
    small = lowrank.compress(trained_network(), (3, 16, 16))
    with pytest.raises(UserError, match=r"small\.onnx: int8 needs samples"):
        small.export(tmp_path / "small.onnx", int8=True)
    assert not list(tmp_path.iterdir())


def test_note_without_images_that_the_accuracy_drop_is_not_known(capsys):
    small = lowrank.compress(trained_network(), (3, 16, 16))
    assert small.expected is None
    assert "pass `images` to measure it" in capsys.readouterr().err


class ActivatesByType(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        for layer in (self.first, self.second):
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                x = torch.relu(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("images", [None, [torch.randn(16, 3, 16, 16)]])
def test_layer_whose_type_matters_stays_dense(images):
    torch.manual_seed(0)
    network = ActivatesByType().eval()
    ranks = {"select": "ratio", "ratio": 1.5, "negligible": 0}
    small = lowrank.compress(network, (3, 16, 16), ranks=ranks, images=images)
    reasons = {layer.name: layer.dense_because for layer in small.layers if layer.is_dense}
    assert set(reasons) == {"first", "second"}
    assert all("depends on the type" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"input_shape": (16, 16)}, r"input_shape: found \(16, 16\); a module needs the shape"),
        ({"input_shape": None}, "input_shape: found None; a module needs"),
        (
            {"images": [(torch.zeros(2, 3, 16, 16), torch.zeros(2))]},
            "images: a batch is a tuple; expected a tensor .* pass only the images",
        ),
        (
            {"images": [torch.zeros(2, 3, 8, 8)]},
            r"images: a batch has the shape \(2, 3, 8, 8\), but `input_shape` is \(3, 16, 16\)",
        ),
        ({"ranks": "vbmf"}, "ranks: found 'vbmf'; expected a mapping of settings, such as"),
        ({"factorize": "svd"}, "factorize: found 'svd'; expected a factorization for each kind"),
    ],
)
def test_arguments_of_a_wrong_form_are_refused_with_what_to_pass(arguments, expected):
    options = {"input_shape": (3, 16, 16)} | arguments
    with pytest.raises(UserError, match=expected):
        lowrank.compress(trained_network(), **options)


def test_errors_of_users_can_be_caught_by_their_short_name():
    with pytest.raises(lowrank.UserError, match="no such file"):
        lowrank.compress("missing.onnx")


def trained_chain():
    """Return three convolutions, of which the inner channels are nearly copies of each other."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    with torch.no_grad():
        for index in (0, 2):
            layer = network[index]
            half = layer.out_channels // 2
            layer.weight[half:] = layer.weight[:half] + 0.01 * torch.randn_like(layer.weight[:half])
            layer.bias[half:] = layer.bias[:half]
    return network


def assert_same_outputs(folder, images):
    """Check that the network before and after the compression computes nearly the same."""
    before, after = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx").run(None, {"images": images.numpy()})[
            0
        ]
        for name in ("whole", "small")
    )
    np.testing.assert_allclose(after, before, atol=0.02 * np.abs(before).max())


REMOVAL = {"conv": "remove_channels", "pointwise_conv": "remove_channels"}


@pytest.mark.parametrize("as_file", [False, True])
def test_a_layer_with_removed_channels_and_factors(tmp_path, as_file):
    """At half of the channels and the full rank for them, nothing is lost."""
    network, shape = trained_chain(), (3, 12, 12)
    lowrank.compress(network, shape, ranks={"weaken": 1.0}).export(tmp_path / "whole.onnx")
    images = torch.randn(64, *shape).split(16)
    in_file = GraphNetwork.read(tmp_path / "whole.onnx", None, []).table.layers
    small = lowrank.compress(
        tmp_path / "whole.onnx" if as_file else network,
        None if as_file else shape,
        factorize={"conv": "remove_channels_spatial_svd"},
        ranks={"select": "fixed", "table": {in_file[1].name if as_file else "2": [4, 12]}},
        images=[batch.numpy() for batch in images] if as_file else images,
    )
    small.export(tmp_path / "small.onnx")
    written = onnx.load(tmp_path / "small.onnx").graph
    kernels = {tuple(tensor.dims) for tensor in written.initializer if len(tensor.dims) == 4}
    assert kernels == {(4, 3, 3, 3), (12, 4, 3, 1), (16, 12, 1, 3), (6, 16, 1, 1)}
    positions = 144
    macs = 9 * 3 * 4 + 3 * 4 * 12 + 3 * 12 * 16 + 16 * 6
    assert small.macs[1] == positions * macs
    assert_same_outputs(tmp_path, images[0])


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("as_file", [False, True])
def test_removed_channels_leave_the_exported_file(tmp_path, sequential, as_file):
    """Half of the inner channels are copies, so at half of the channels nothing is lost."""
    network, shape = trained_chain(), (3, 12, 12)
    whole = lowrank.compress(network, shape, ranks={"weaken": 1.0})
    whole.export(tmp_path / "whole.onnx")
    images = [torch.randn(16, *shape) for _ in range(4)]
    small = lowrank.compress(
        tmp_path / "whole.onnx" if as_file else network,
        None if as_file else shape,
        factorize=REMOVAL,
        ranks={"select": "budget", "target": {"macs": 0.31}, "negligible": 0},
        images=[batch.numpy() for batch in images] if as_file else images,
        sequential=sequential,
    )
    small.export(tmp_path / "small.onnx")
    # 3 -> 4 -> 8 -> 6 channels instead of 3 -> 8 -> 16 -> 6
    expected = 144 * (9 * 3 * 4 + 9 * 4 * 8 + 8 * 6)
    assert small.macs == (144 * (9 * 3 * 8 + 9 * 8 * 16 + 16 * 6), expected)
    written = onnx.load(tmp_path / "small.onnx").graph
    kernels = {tuple(tensor.dims) for tensor in written.initializer if len(tensor.dims) == 4}
    assert kernels == {(4, 3, 3, 3), (8, 4, 3, 3), (6, 8, 1, 1)}
    assert_same_outputs(tmp_path, images[0])
