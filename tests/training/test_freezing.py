from functools import partial

import pytest
import torch
from torch import Tensor, nn
from toy import toy

from lowrank.config.training import TrainingSettings
from lowrank.tasks import get_task
from lowrank.training import loop
from lowrank.training.freezing import freeze_first
from lowrank.zoo import NetworkSpec

TASK = get_task("classification")
train = partial(loop.train, TASK)
SPEC = NetworkSpec("toy", (3, 32, 32), 10)


class Backwards(nn.Module):
    """Network whose modules are not defined in forward order."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 10)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(images)))))
        return self.classifier(features.mean((2, 3)))


def names(network, parameters):
    matching = [
        name
        for name, parameter in network.named_parameters()
        if any(parameter is p for p in parameters)
    ]
    return {name.partition(".")[0] for name in matching}


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, set()),
        (0.1, set()),
        (0.34, {"conv1", "norm1"}),
        (0.67, {"conv1", "norm1", "conv2", "norm2"}),
        (0.99, {"conv1", "norm1", "conv2", "norm2"}),  # At least one layer is trained.
    ],
)
def test_first_layers_in_forward_order_are_frozen(share, expected):
    network = Backwards().train()
    frozen = freeze_first(network, SPEC, share)
    assert names(network, frozen) == expected
    assert names(network, [p for p in network.parameters() if not p.requires_grad]) == expected
    for name, module in network.named_children():
        assert module.training == (name not in expected), name


def test_parameters_that_were_frozen_before_are_not_returned():
    network = Backwards()
    network.conv1.requires_grad_(False)
    assert names(network, freeze_first(network, SPEC, 0.34)) == {"norm1"}


def trained(data, steps, **changes):
    network = toy()
    settings = {
        "steps": steps,
        "batch_size": 40,
        "learning_rate": 0.1,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "precision": "float32",
        "device": "cpu",
    }
    train(network, SPEC, data, TrainingSettings.model_validate(settings | changes), say=str)
    return network


def test_frozen_layers_do_not_change_and_the_others_do(tiny_data):
    at_freezing = trained(tiny_data, 4)
    with_freezing = trained(tiny_data, 8, freeze={"layers": 0.34, "after": 0.5})
    without_freezing = trained(tiny_data, 8)
    for name, tensor in at_freezing.state_dict().items():
        frozen = name.startswith(("conv1", "norm1"))
        assert torch.equal(with_freezing.state_dict()[name], tensor) == frozen, name
        assert not torch.equal(without_freezing.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in with_freezing.parameters())
