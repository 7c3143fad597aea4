"""Reconstruction of a kernel from a sequence of plain layers."""

import numpy as np
import pytest
import torch

from lowrank.core.layers import PlainLayer
from lowrank.errors import UserError
from lowrank.factorize import decompose, get_factorization, kernel_of, reconstruct

DEPTHWISE_BETWEEN = [
    PlainLayer(4, 6),
    PlainLayer(6, 6, kernel=(3, 2), stride=(2, 1), padding=(1, 0), groups=6),
    PlainLayer(6, 5),
]
SEQUENCES = {
    "depthwise between": DEPTHWISE_BETWEEN,
    "depthwise between, two groups": [
        PlainLayer(8, 12, groups=2),
        PlainLayer(12, 12, kernel=(3, 3), groups=12),
        PlainLayer(12, 10, groups=2),
    ],
    "depthwise first": [PlainLayer(4, 8, kernel=(3, 3), groups=4), PlainLayer(8, 5)],
    "one axis at a time": [
        PlainLayer(4, 3, kernel=(3, 1), padding=(1, 0)),
        PlainLayer(3, 5, kernel=(1, 3), stride=(1, 2)),
    ],
    "one layer": [PlainLayer(4, 6, kernel=(2, 3), groups=2)],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_reconstruction_is_equivalent_to_the_sequence(name):
    sequence = SEQUENCES[name]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(layer.weight_shape, generator=generator) for layer in sequence]
    images = torch.randn(2, sequence[0].in_channels, 9, 8, generator=generator)
    expected = images
    for layer, weight in zip(sequence, weights, strict=True):
        expected = torch.nn.functional.conv2d(
            expected, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
        )

    kernel = reconstruct(sequence, [weight.numpy() for weight in weights])

    groups = sequence[0].in_channels // kernel.shape[1]
    stride = tuple(np.prod([layer.stride for layer in sequence], axis=0).tolist())
    padding = tuple(np.sum([layer.padding for layer in sequence], axis=0).tolist())
    output = torch.nn.functional.conv2d(
        images, torch.from_numpy(kernel), None, stride, padding, 1, groups
    )
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_two_windows_along_one_axis_are_rejected():
    sequence = [PlainLayer(2, 2, kernel=(3, 1)), PlainLayer(2, 2, kernel=(3, 3))]
    weights = [np.zeros(layer.weight_shape) for layer in sequence]
    with pytest.raises(ValueError, match="along axis 0"):
        reconstruct(sequence, weights)


def test_a_linear_layer_behind_a_flattened_map_is_a_convolution():
    layer = PlainLayer(4, 6, kernel=(3, 5))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 4, 3, 5, generator=generator)
    matrix = torch.randn(6, 4 * 3 * 5, generator=generator)
    expected = torch.nn.functional.linear(images.flatten(1), matrix)

    kernel = kernel_of(layer, matrix.numpy())

    output = torch.nn.functional.conv2d(images, torch.from_numpy(kernel))
    torch.testing.assert_close(output.flatten(1), expected, rtol=1e-4, atol=1e-4)
    result = decompose(get_factorization("tucker2"), layer, matrix.numpy(), None, (4, 6))
    assert result.relative_error < 1e-6


@pytest.mark.parametrize("shape", [(6, 59), (5, 60), (6, 60, 1), (60,)])
def test_a_matrix_of_another_size_is_rejected(shape):
    with pytest.raises(UserError, match="the layer table expects"):
        kernel_of(PlainLayer(4, 6, kernel=(3, 5)), np.zeros(shape))
