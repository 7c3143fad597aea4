"""The four networks of Kim et al. 2016, in the form in which the paper counts them."""

from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small import logits_of
from torch import nn

from lowrank.factorize import get_factorization, grouped_sequence
from lowrank.onnx_files.counts import count
from lowrank.onnx_files.export import export_onnx
from lowrank.surgery.finding import find_layers
from lowrank.zoo import alexnet, create_network, googlenet, network_spec, squeezenet  # noqa: F401  # noqa: F401
from lowrank.zoo.imagenet import ResponseNorm

# Millions of weights and of multiply-accumulates, as the paper gives them.
PAPER = {
    "alexnet": (61, 725),
    "vgg_s": (103, 2640),
    "googlenet": (6.9, 1566),
    "vgg16_imagenet": (138, 15484),
}


def without_memory(name):
    with torch.device("meta"):
        return create_network(name)


def table_of(name):
    return find_layers(without_memory(name), network_spec(name).input_shape, name)


@pytest.mark.parametrize("name", PAPER)
def test_counts_are_those_of_the_paper_within_a_rounding(name):
    weights, macs = PAPER[name]
    found = sum(p.numel() for p in without_memory(name).parameters())
    assert found == pytest.approx(weights * 1e6, rel=0.015)
    assert sum(layer.dense_macs for layer in table_of(name).layers) == pytest.approx(
        macs * 1e6, rel=0.015
    )


@pytest.mark.parametrize("name", PAPER)
def test_images_are_blue_first_and_centred_alone(name):
    spec = network_spec(name)
    side = 227 if name == "alexnet" else 224
    assert (spec.input_shape, spec.num_classes) == ((3, side, side), 1000)
    assert (spec.channel_order, spec.resize) == ("bgr", 256)
    levels = np.array([[103.5, 117.0, 124.0]]) / 255
    normalised = (levels - spec.mean) / spec.std
    np.testing.assert_allclose(normalised, 0, atol=1.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", [(1e-4, 1), (1e-4, 1)]),
        ("vgg_s", [(5e-4, 2)]),
        ("googlenet", [(1e-4, 1), (1e-4, 1)]),
        ("vgg16_imagenet", []),
    ],
)
def test_response_normalisations_are_those_of_caffes_definitions(name, expected):
    norms = [m for m in without_memory(name).modules() if isinstance(m, nn.LocalResponseNorm)]
    assert [(norm.alpha, norm.k) for norm in norms] == expected
    assert {(norm.size, norm.beta) for norm in norms} <= {(5, 0.75)}


# The two with fewest parameters; benchmarks/paper_counts.py exports all four.
@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("alexnet", 60_965_224, 724_406_816), ("googlenet", 6_998_552, 1_582_671_872)],
)
def test_the_exported_graph_counts_and_computes_the_same(
    tmp_path: Path, name: str, parameters: int, macs: int
):
    torch.manual_seed(0)
    network, spec = create_network(name).eval(), network_spec(name)
    path = tmp_path / f"{name}.onnx"
    export_onnx(network, spec, path)
    counts = count(path)
    assert (counts.parameters, counts.macs) == (parameters, macs)
    assert [layer.name for layer in counts.layers] == [
        layer.name for layer in table_of(name).layers
    ]

    images = 60 * torch.randn(2, *spec.input_shape)
    with torch.inference_mode():
        expected = network(images).numpy()
    assert expected.std(axis=0).max() > 1  # the two images differ
    found = logits_of(path, images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected), rtol=0)


class Pools(nn.Sequential):
    """Pooling as VGG-S and the others have it, over maps that its windows do not divide."""

    def __init__(self) -> None:
        super().__init__(
            nn.MaxPool2d(3, stride=3, ceil_mode=True),
            nn.MaxPool2d(2, stride=2, ceil_mode=True),
            nn.Conv2d(3, 6, 1),
            ResponseNorm(alpha=5e-4, k=2),
            nn.Flatten(),
        )


def test_ceil_mode_and_response_normalisation_are_exported_as_plain_operators(tmp_path: Path):
    torch.manual_seed(0)
    network, spec = Pools().eval(), network_spec("vgg_s")
    export_onnx(network, spec, tmp_path / "pools.onnx")
    graph = onnx.load(tmp_path / "pools.onnx").graph
    operators = Counter(node.op_type for node in graph.node)
    assert {"LRN", "Pow", "Loop"}.isdisjoint(operators)
    assert {node.domain for node in graph.node} == {""}
    images = 60 * torch.randn(3, *spec.input_shape)
    with torch.inference_mode():
        expected = network(images).numpy()
    assert expected.shape == (3, 6 * 38 * 38)  # 224 -> 75 -> 38, both rounded up
    found = logits_of(tmp_path / "pools.onnx", images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("alpha", "k"), [(1e-4, 1), (5e-4, 2), (0.5, 1)])
@pytest.mark.parametrize("channels", [5, 6, 96])
def test_response_normalisation_is_pytorchs(alpha, k, channels):
    torch.manual_seed(0)
    inputs = 100 * torch.randn(2, channels, 3, 4)
    expected = nn.LocalResponseNorm(5, alpha=alpha, beta=0.75, k=k)(inputs)
    torch.testing.assert_close(ResponseNorm(alpha=alpha, k=k)(inputs), expected)


def test_signals_of_a_new_network_keep_their_size():
    torch.manual_seed(0)
    network = create_network("googlenet").eval()
    images = 60 * torch.randn(4, 3, 224, 224)
    with torch.inference_mode():
        logits = network(images)
    assert 0.01 < logits.std(dim=0).mean() / images.std() < 10


# Layer, factorization, ranks of one group, and dense weights over compressed weights, biases left
# out: table 2 of Kim et al. 2016. Input rank first, then output rank.
KIM = [
    ("conv1", "tucker1", (26,), "2.92"),
    ("conv2", "tucker2", (25, 59), "3.37"),
    ("conv3", "tucker2", (105, 112), "5.03"),
    ("conv4", "tucker2", (49, 59), "7.10"),
    ("conv5", "tucker2", (40, 34), "9.11"),
    ("fc6", "tucker2", (210, 584), "5.50"),
    ("fc7", "svd", (301,), "6.80"),
    ("fc8", "svd", (195,), "4.12"),
]


@pytest.mark.parametrize(("name", "factorization", "ranks", "ratio"), KIM)
def test_alexnet_at_the_ranks_of_the_paper(name, factorization, ranks, ratio):
    layer = table_of("alexnet")[name]
    sequence = grouped_sequence(get_factorization(factorization), layer, ranks)
    compressed = sum(prod(plain.weight_shape) for plain in sequence)
    assert f"{prod(layer.weight_shape) / compressed:.2f}" == ratio


def test_alexnet_at_the_ranks_of_the_paper_in_all():
    table = table_of("alexnet")
    compressed = sum(
        prod(plain.weight_shape)
        for name, factorization, ranks, _ in KIM
        for plain in grouped_sequence(get_factorization(factorization), table[name], ranks)
    )
    assert compressed == 10_741_346
