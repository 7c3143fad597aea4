"""Check the four networks of Kim et al. 2016 against the numbers in the paper."""

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
from lowrank.zoo import create_network, network_spec
from lowrank.zoo.imagenet import ResponseNorm

# Weights and multiply-accumulates in the paper, in millions.
PAPER = {
    "alexnet": (61, 725),
    "vgg_s": (103, 2640),
    "googlenet": (6.9, 1566),
    "vgg16_imagenet": (138, 15484),
}


def create_on_meta(name):
    with torch.device("meta"):
        return create_network(name)


def table_of(name):
    return find_layers(create_on_meta(name), network_spec(name).input_shape, name)


@pytest.mark.parametrize("name", PAPER)
def test_counts_match_the_paper_up_to_rounding(name):
    weights, macs = PAPER[name]
    parameters = sum(p.numel() for p in create_on_meta(name).parameters())
    assert parameters == pytest.approx(weights * 1e6, rel=0.015)
    assert sum(layer.dense_macs for layer in table_of(name).layers) == pytest.approx(
        macs * 1e6, rel=0.015
    )


@pytest.mark.parametrize("name", PAPER)
def test_images_are_bgr_and_only_centered(name):
    spec = network_spec(name)
    side = 227 if name == "alexnet" else 224
    assert (spec.input_shape, spec.num_classes) == ((3, side, side), 1000)
    assert (spec.channel_order, spec.resize) == ("bgr", 256)
    levels = np.array([[103.5, 117.0, 124.0]]) / 255
    normalized = (levels - spec.mean) / spec.std
    np.testing.assert_allclose(normalized, 0, atol=1.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", [(1e-4, 1), (1e-4, 1)]),
        ("vgg_s", [(5e-4, 2)]),
        ("googlenet", [(1e-4, 1), (1e-4, 1)]),
        ("vgg16_imagenet", []),
    ],
)
def test_response_normalizations_match_caffe(name, expected):
    norms = [m for m in create_on_meta(name).modules() if isinstance(m, nn.LocalResponseNorm)]
    assert [(norm.alpha, norm.k) for norm in norms] == expected
    assert {(norm.size, norm.beta) for norm in norms} <= {(5, 0.75)}


# The two networks with the fewest parameters; benchmarks/paper_counts.py exports all four.
@pytest.mark.seconds
@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("alexnet", 60_965_224, 724_406_816),
        pytest.param("googlenet", 6_998_552, 1_582_671_872, marks=pytest.mark.slow),
    ],
)
def test_exported_graph_has_the_same_counts_and_outputs(
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
    logits = logits_of(path, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.ptp(expected), rtol=0)


class Pools(nn.Sequential):
    """Pooling layers as in VGG-S, over maps whose sides are not multiples of the stride."""

    def __init__(self) -> None:
        super().__init__(
            nn.MaxPool2d(3, stride=3, ceil_mode=True),
            nn.MaxPool2d(2, stride=2, ceil_mode=True),
            nn.Conv2d(3, 6, 1),
            ResponseNorm(alpha=5e-4, k=2),
            nn.Flatten(),
        )


def test_ceil_mode_and_response_normalization_are_exported_as_plain_operators(tmp_path: Path):
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
    logits = logits_of(tmp_path / "pools.onnx", images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("alpha", "k"), [(1e-4, 1), (5e-4, 2), (0.5, 1)])
@pytest.mark.parametrize("channels", [5, 6, 96])
def test_response_normalization_matches_pytorch(alpha, k, channels):
    torch.manual_seed(0)
    inputs = 100 * torch.randn(2, channels, 3, 4)
    expected = nn.LocalResponseNorm(5, alpha=alpha, beta=0.75, k=k)(inputs)
    torch.testing.assert_close(ResponseNorm(alpha=alpha, k=k)(inputs), expected)


def test_activations_of_a_fresh_network_keep_their_scale():
    torch.manual_seed(0)
    network = create_network("googlenet").eval()
    images = 60 * torch.randn(4, 3, 224, 224)
    with torch.inference_mode():
        logits = network(images)
    assert 0.01 < logits.std(dim=0).mean() / images.std() < 10


# Layer, factorization, ranks per group (input rank, output rank), and the ratio of dense to
# compressed weights without biases: table 2 of Kim et al. 2016.
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
def test_alexnet_layers_at_the_ranks_of_the_paper(name, factorization, ranks, ratio):
    layer = table_of("alexnet")[name]
    sequence = grouped_sequence(get_factorization(factorization), layer, ranks)
    compressed = sum(prod(plain.weight_shape) for plain in sequence)
    assert f"{prod(layer.weight_shape) / compressed:.2f}" == ratio


def test_alexnet_total_at_the_ranks_of_the_paper():
    table = table_of("alexnet")
    compressed = sum(
        prod(plain.weight_shape)
        for name, factorization, ranks, _ in KIM
        for plain in grouped_sequence(get_factorization(factorization), table[name], ranks)
    )
    assert compressed == 10_741_346
