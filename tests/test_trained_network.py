"""A trained network keeps its accuracy when it is compressed."""

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lowrank

SIDE = 16
CLASSES = 10
SHARE = 0.3  # of the MACs
RANKS = {"select": "budget", "target": {"macs": SHARE}}

pytestmark = pytest.mark.seconds


@dataclass(frozen=True)
class Images:
    """Images (N, 3, H, W) with their classes."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int = 64) -> list[Tensor]:
        return list(self.images.split(size))


def gratings(count: int, seed: int) -> Images:
    """Draw noisy gratings: five orientations times two frequencies, in any phase and color."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    angle = (labels % 5) * torch.pi / 5
    frequency = torch.where(labels < 5, 0.9, 1.6)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = angle.cos()[:, None, None] * rows + angle.sin()[:, None, None] * columns
    phase = 2 * torch.pi * torch.rand(count, generator=random)
    waves = (frequency[:, None, None] * along + phase[:, None, None]).sin()
    colors = torch.randn(count, 3, 1, 1, generator=random)
    colors = functional.normalize(colors, dim=1) * 3**0.5
    noise = torch.randn(count, 3, SIDE, SIDE, generator=random)
    return Images(colors * waves[:, None] + 0.8 * noise, labels)


def untrained_network() -> nn.Sequential:
    torch.manual_seed(0)
    widths = [3, 16, 32, 32]
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=1 + (number > 0), padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def train(network: nn.Module, data: Images, steps: int, rate: float) -> None:
    """Train with Adam, and leave the network in evaluation mode."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, steps)
    network.train()
    for _ in range(steps):
        rows = torch.randint(len(data.labels), (64,))
        optimizer.zero_grad()
        functional.cross_entropy(network(data.images[rows]), data.labels[rows]).backward()
        optimizer.step()
        schedule.step()
    network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, data: Images) -> float:
    """Return the share of images with the right class, in percent."""
    answers = network.eval()(data.images).argmax(1)
    return 100 * float((answers == data.labels).float().mean())


@pytest.fixture(scope="module")
def training_images():
    return gratings(2000, seed=1)


@pytest.fixture(scope="module")
def test_images():
    return gratings(1000, seed=2)


@pytest.fixture(scope="module")
def trained(training_images):
    network = untrained_network()
    train(network, training_images, steps=200, rate=1e-2)
    return network


@pytest.fixture(scope="module")
def compressed(trained, training_images):
    """Compress the trained network to three tenths of its MACs, without fine-tuning."""
    images = training_images.batches()[:4]
    return lowrank.compress(
        trained, (3, SIDE, SIDE), factorize=lowrank.TUCKER, ranks=RANKS, images=images
    )


def test_the_network_to_compress_is_accurate(trained, test_images):
    assert accuracy(untrained_network(), test_images) < 30
    assert accuracy(trained, test_images) > 98


def test_the_factors_keep_most_of_the_accuracy_before_fine_tuning(compressed, test_images):
    macs = [sum(layer.macs[end] for layer in compressed.layers) for end in (0, 1)]
    assert macs[1] <= SHARE * macs[0]
    assert sum(not layer.is_dense for layer in compressed.layers) >= 2
    assert accuracy(compressed.network, test_images) > 55


def test_a_short_fine_tuning_restores_the_accuracy(
    trained, compressed, training_images, test_images
):
    finetuned = copy.deepcopy(compressed.network)
    train(finetuned, training_images, steps=80, rate=2e-3)
    before, after = accuracy(trained, test_images), accuracy(finetuned, test_images)
    assert after > before - 2


def test_the_bounds_reject_random_factors(trained, compressed, training_images, test_images):
    random = copy.deepcopy(compressed.network)
    torch.manual_seed(0)
    for layer in compressed.layers:
        for factor in random.get_submodule(layer.name).modules():
            if not layer.is_dense and isinstance(factor, nn.Conv2d | nn.Linear):
                factor.reset_parameters()
    before, untrained = accuracy(trained, test_images), accuracy(random, test_images)
    assert untrained < 40
    train(random, training_images, steps=80, rate=2e-3)
    after = accuracy(random, test_images)
    assert after < before - 6
