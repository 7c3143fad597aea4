import re

import mynet
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import lowrank
from lowrank.errors import UserError


def trained_network() -> nn.Module:
    """A network whose kernels have low rank and a little noise, as training leaves them."""
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


def test_a_network_becomes_smaller_and_computes_nearly_the_same():
    network = trained_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    small = lowrank.compress(network, (3, 16, 16))
    images = torch.randn(8, 3, 16, 16)
    expected, found = network(images), small.network(images)
    assert (found - expected).norm() < 0.2 * expected.norm()
    parameters = [sum(p.numel() for p in n.parameters()) for n in (network, small.network)]
    assert parameters[1] < 0.5 * parameters[0]
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)


def test_images_keep_the_outputs():
    network = trained_network()
    # Bright in one colour: what the weights do with the others matters little.
    tint = torch.tensor([1.0, 0.1, 0.1])[:, None, None]
    ranks = {"select": "ratio", "ratio": 4}
    images = [tint * (1 + torch.randn(32, 3, 16, 16)) for _ in range(4)]
    blind = lowrank.compress(network, (3, 16, 16), ranks=ranks)
    aware = lowrank.compress(network, (3, 16, 16), ranks=ranks, images=iter(images[:3]))
    assert [each.ranks for each in aware.layers] == [each.ranks for each in blind.layers]
    expected = network(images[3])
    errors = [(small.network(images[3]) - expected).norm() for small in (aware, blind)]
    assert errors[0] < 0.7 * errors[1]


def test_layers_in_turn_make_up_for_those_before_them():
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 16, 3, padding=1)]
    layers += [nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]
    network = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())])
    images = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    ranks = {"select": "ratio", "ratio": 3}
    errors = []
    for sequential in (True, False):
        small = lowrank.compress(
            network, (3, 8, 8), ranks=ranks, images=images[:3], sequential=sequential
        )
        errors.append((small.network(images[3]) - network(images[3])).norm())
    assert errors[0] < 0.95 * errors[1]
    with pytest.raises(UserError, match="sequential: layers are compared on images"):
        lowrank.compress(network, (3, 8, 8), ranks=ranks, sequential=True)


def test_a_target_of_accuracy_needs_the_pipeline():
    ranks = {"select": "budget", "target": {"accuracy_drop": 1}, "search": {"cost": "macs"}}
    with pytest.raises(UserError, match=r"accuracy_drop: a search fine-tunes several networks"):
        lowrank.compress(torch.nn.Conv2d(3, 8, 3), (3, 8, 8), ranks=ranks)


def test_a_target_is_met_with_images():
    network = trained_network()
    images = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    ranks = {"select": "budget", "target": {"macs": 0.4}}
    small = lowrank.compress(network, (3, 16, 16), ranks=ranks, images=iter(images))
    before, after = (sum(layer.macs[index] for layer in small.layers) for index in (0, 1))
    assert 0.37 < after / before <= 0.4
    with pytest.raises(UserError, match="'budget' measures how far the answers move"):
        lowrank.compress(network, (3, 16, 16), ranks=ranks)


def test_full_ranks_change_nothing():
    network = trained_network()
    small = lowrank.compress(network, (3, 16, 16), ranks={"weaken": 1.0})
    # Full ranks cost more than the layers do, so all of them stay.
    assert all(layer.is_dense for layer in small.layers)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(images), small.network(images))


def test_the_export_runs(tmp_path):
    small = lowrank.compress(trained_network(), (3, 16, 16))
    small.export(tmp_path / "small.onnx")
    images = torch.randn(3, 3, 16, 16)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    found = session.run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, small.network(images).detach().numpy(), atol=1e-4)


def test_a_linear_layer_behind_a_flattened_map():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 12 * 10, 24))
    # Two directions in, two out: (24, 2) x (2, 2, 12, 10) x (2, 8) -> (24, 8, 12, 10)
    mixed = torch.einsum(
        "ta,abhw,bs->tshw", torch.randn(24, 2), torch.randn(2, 2, 12, 10), torch.randn(2, 8)
    ).flatten(1)
    with torch.no_grad():
        network[2].weight.copy_(mixed + 0.01 * torch.randn_like(mixed))
    small = lowrank.compress(network, (1, 14, 12), factorize={"flattened_linear": "tucker2"})
    (linear,) = [layer for layer in small.layers if layer.name == "2"]
    assert linear.ranks == (2, 2)
    images = torch.randn(4, 1, 14, 12)
    expected, found = network(images), small.network(images)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert linear.parameters[1] == sum(p.numel() for p in small.network[2].parameters())


def test_factors_have_the_type_of_the_layer():
    small = lowrank.compress(trained_network().double(), (3, 16, 16))
    assert {parameter.dtype for parameter in small.network.parameters()} == {torch.float64}


def test_layers_that_no_factorization_takes_stay():
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(16, 4, 2)
    )
    ranks = {"select": "ratio", "ratio": 2.0}
    small = lowrank.compress(nn.Sequential(network, nn.Flatten()), (3, 8, 8), ranks=ranks)
    assert small.layers == ()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(small.network(images), network(images).flatten(1))


def test_a_users_own_network():
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


def test_an_input_shape_that_the_network_cannot_take():
    with pytest.raises(
        UserError, match=r"network 'Sequential' cannot take an image of .* \(1, 16, 16"
    ):
        lowrank.compress(trained_network(), (1, 16, 16))


def test_an_unknown_factorization_is_named():
    told = r"`factorize.conv` is 'tucker3', expected one of .* \(did you mean 'tucker"
    with pytest.raises(UserError, match=told):
        lowrank.compress(trained_network(), (3, 16, 16), factorize={"conv": "tucker3"})


@pytest.mark.parametrize(
    ("factorize", "more", "told"),
    [
        (
            {"convolution": "tucker2"},
            {},
            r"parameter `factorize.convolution` \(did you mean 'conv'\?\), expected one of alt",
        ),
        ({"conv": "svd", "images": 5}, {}, "factorize.images: pass the images themselves"),
        ({"conv": "svd", "norm": "activation"}, {}, "factorize.norm: 'activation' keeps"),
        ({"conv": "svd", "sequential": True}, {}, "sequential: layers are compared on images"),
        ({"conv": "svd", "alternatives": ["cp4"]}, {}, "only `ranks={'select': 'budget', ...}`"),
        ({"conv": "svd"}, {"ranks": {"energy": 0.3}}, "`energy` belongs to `select: energy`"),
        ({"conv": "svd"}, {"ranks": {"enrgy": 0.3}}, "did you mean 'energy'"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(factorize, more, told):
    with pytest.raises(UserError, match=told):
        lowrank.compress(trained_network(), (3, 16, 16), factorize=factorize, **more)


def test_the_cheapest_layers_stay():
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
    only = lowrank.compress(network, (3, 16, 16), factorize=plain | {"exclude": ["7"]}, ranks=ranks)
    assert [layer.name for layer in only.layers] == ["2", "4"]

    def weights(**options):
        small = lowrank.compress(network, (3, 16, 16), ranks=ranks, **options)
        return torch.cat([p.detach().flatten() for p in small.network.parameters()])

    in_turn = weights(factorize=plain | {"sequential": True}, images=images)
    assert torch.equal(in_turn, weights(factorize=plain, images=images, sequential=True))
    by_weight = weights(factorize=plain | {"norm": "weight"}, images=images)
    assert torch.equal(by_weight, weights(factorize=plain))
    assert not torch.equal(by_weight, weights(factorize=plain, images=images))


def test_a_target_chooses_among_alternatives():
    network = trained_network()
    images = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    factorize = {"conv": "spatial_svd", "alternatives": ["channel_svd"]}
    ranks = {"select": "budget", "target": {"macs": 0.5}}
    small = lowrank.compress(network, (3, 16, 16), factorize=factorize, ranks=ranks, images=images)
    assert "channel_svd" in {layer.factorization for layer in small.layers if not layer.is_dense}


def classifier_of_directions() -> nn.Module:
    """Gives the class of the nearest of twenty directions: it needs a rank of nearly twenty."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 20, bias=False))
    nn.init.orthogonal_(network[1].weight)
    return network.eval()


def test_ranks_that_ruin_the_network_are_an_error_with_the_nearest_that_do_not(capsys):
    network, images = classifier_of_directions(), [torch.randn(128, 3, 8, 8) for _ in range(3)]
    ruinous = {"select": "ratio", "ratio": 15.0, "negligible": 0}

    def compress(**changes):
        return lowrank.compress(
            network, (3, 8, 8), factorize={"linear": "svd"}, ranks=ruinous | changes, images=images
        )

    with pytest.raises(UserError, match=r"answers \d+\.\d % of 384 images as the original") as told:
        compress()
    assert "set `largest_drop` to 1" in str(told.value)
    ratio = float(re.search(r"keeps enough is `ratio: (.*?)`", str(told.value)).group(1))
    assert 1 < ratio < 15
    small = compress(ratio=ratio)
    assert small.expected.drop <= 0.5
    found = (small.network(images[0]).argmax(1) == network(images[0]).argmax(1)).float().mean()
    assert abs(100 * float(found) - small.expected.after) < 10
    capsys.readouterr()
    anyway = compress(largest_drop=1)
    assert anyway.expected.drop > 0.5
    line = f"agreement with the original 100.00 % -> {anyway.expected.after:.2f} % on 384 images"
    assert line in capsys.readouterr().err


def test_without_images_it_is_said_that_the_loss_is_not_known(capsys):
    small = lowrank.compress(trained_network(), (3, 16, 16))
    assert small.expected is None
    assert "pass `images` to see it" in capsys.readouterr().err


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
def test_a_layer_whose_type_the_network_looks_at_stays_dense(images):
    torch.manual_seed(0)
    network = ActivatesByType().eval()
    ranks = {"select": "ratio", "ratio": 1.5, "negligible": 0}
    small = lowrank.compress(network, (3, 16, 16), ranks=ranks, images=images)
    stays = {layer.name: layer.dense_because for layer in small.layers if layer.is_dense}
    assert set(stays) == {"first", "second"}
    assert all("looks at the layer's type" in reason for reason in stays.values())
