"""Trying ranks before anything is built."""

import torch
from toy import toy

from lowrank.core.layers import Layer, LayerTable
from lowrank.core.plans import PlannedLayer
from lowrank.factorize import decompose, get_factorization
from lowrank.surgery.finding import find_layers
from lowrank.surgery.prediction import answers, is_cheap, percent_equal, with_factors


def planned(factorization, ranks, name="conv"):
    return PlannedLayer(name, factorization, ranks, ranks, (2, 1), (2, 1))


def test_terms_of_a_large_kernel_are_not_sought_twice():
    large = Layer(512, 512, (3, 3), padding=(1, 1), name="conv", input_map=(4, 4))
    small = Layer(64, 64, (3, 3), padding=(1, 1), name="conv", input_map=(8, 8))
    of = {kind: LayerTable("net", (3, 32, 32), (each,)) for kind, each in
          {"large": large, "small": small}.items()}  # fmt: skip
    assert is_cheap(of["large"], [planned("tucker2", (256, 256))])
    assert is_cheap(of["small"], [planned("cp_tpm", (300,))])
    assert not is_cheap(of["large"], [planned("cp_tpm", (500,))])
    assert not is_cheap(of["large"], [planned("block_term2", (256, 256))])


def test_all_layers_are_replaced_at_once_and_put_back():
    network = toy(seed=1).eval()
    images = [torch.randn(16, 3, 32, 32) for _ in range(2)]
    before, modules = answers(network, images), dict(network.named_modules())
    table = find_layers(network, (3, 32, 32), "toy")

    def replacements():
        for name, method, ranks in (("conv1", "tucker1", (1,)), ("classifier", "svd", (1,))):
            weight = getattr(network, name).weight.detach().numpy()
            bias = getattr(network, name).bias
            bias = None if bias is None else bias.detach().numpy()
            yield name, decompose(get_factorization(method), table[name], weight, bias, ranks)

    def measure():
        assert len(network.conv1) == len(network.classifier) == 2
        return percent_equal(answers(network, images), before)

    assert with_factors(network, replacements(), measure) < 100
    assert dict(network.named_modules()) == modules
    assert percent_equal(answers(network, images), before) == 100


def test_only_logits_are_answers():
    images = [torch.randn(2, 3, 4, 4)]
    assert answers(torch.nn.Conv2d(3, 5, 1), images) is None
    assert answers(torch.nn.Flatten(), images).shape == (2,)
