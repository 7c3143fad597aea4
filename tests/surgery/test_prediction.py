"""Test the measurement of accuracy with factors in place of layers."""

import torch
from toy import toy

from lowrank.factorize import decompose, get_factorization
from lowrank.surgery.finding import find_layers
from lowrank.surgery.prediction import with_factors


@torch.no_grad()
def outputs(network, images):
    return torch.cat([network(batch) for batch in images])


def test_all_layers_are_replaced_and_restored():
    network = toy(seed=1).eval()
    images = [torch.randn(16, 3, 32, 32) for _ in range(2)]
    before, modules = outputs(network, images), dict(network.named_modules())
    table = find_layers(network, (3, 32, 32), "toy")

    def replacements():
        for name, method, ranks in (("conv1", "tucker1", (1,)), ("classifier", "svd", (1,))):
            weight = getattr(network, name).weight.detach().numpy()
            bias = getattr(network, name).bias
            bias = None if bias is None else bias.detach().numpy()
            yield name, decompose(get_factorization(method), table[name], weight, bias, ranks)

    def measure():
        assert len(network.conv1) == len(network.classifier) == 2
        return outputs(network, images)

    assert not torch.allclose(with_factors(network, replacements(), measure), before)
    assert dict(network.named_modules()) == modules
    assert torch.equal(outputs(network, images), before)
