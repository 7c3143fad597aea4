"""Test the measurement of accuracy with factors in place of layers."""

import torch
from toy import toy

from lowrank.factorize import decompose, get_factorization
from lowrank.surgery.finding import find_layers
from lowrank.surgery.prediction import percent_equal, predicted_classes, with_factors


def test_all_layers_are_replaced_and_restored():
    network = toy(seed=1).eval()
    images = [torch.randn(16, 3, 32, 32) for _ in range(2)]
    before, modules = predicted_classes(network, images), dict(network.named_modules())
    table = find_layers(network, (3, 32, 32), "toy")

    def replacements():
        for name, method, ranks in (("conv1", "tucker1", (1,)), ("classifier", "svd", (1,))):
            weight = getattr(network, name).weight.detach().numpy()
            bias = getattr(network, name).bias
            bias = None if bias is None else bias.detach().numpy()
            yield name, decompose(get_factorization(method), table[name], weight, bias, ranks)

    def measure():
        assert len(network.conv1) == len(network.classifier) == 2
        return percent_equal(predicted_classes(network, images), before)

    assert with_factors(network, replacements(), measure) < 100
    assert dict(network.named_modules()) == modules
    assert percent_equal(predicted_classes(network, images), before) == 100


def test_outputs_that_are_not_logits_have_no_classes():
    images = [torch.randn(2, 3, 4, 4)]
    assert predicted_classes(torch.nn.Conv2d(3, 5, 1), images) is None
    assert predicted_classes(torch.nn.Flatten(), images).shape == (2,)
