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


def test_an_unknown_factorization_is_named():
    with pytest.raises(UserError, match=r"tucker3.*Did you mean 'tucker"):
        lowrank.compress(trained_network(), (3, 16, 16), factorize={"conv": "tucker3"})
