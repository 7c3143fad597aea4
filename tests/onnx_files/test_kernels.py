"""Test the count of products that ran as integer kernels."""

import pytest

from lowrank.devices.device import NodeTime
from lowrank.onnx_files.kernels import integer_kernels

MACS = {"a": 100, "b": 500, "c": 400}


def times(**operators):
    return {name: NodeTime(operator, 1.0) for name, operator in operators.items()}


@pytest.mark.parametrize(
    ("operators", "nodes", "share", "warns"),
    [
        ({"a": "QLinearConv", "b": "QLinearConv", "c": "QGemm"}, 3, 1.0, False),
        ({"a": "Conv", "b": "QLinearConv", "c": "MatMulIntegerToFloat"}, 2, 0.9, False),
        # A float kernel with the name of the activation fused with it.
        ({"relu": "FusedConv", "b": "QLinearConv", "c": "QGemm"}, 2, 0.9, False),
        ({"a": "QLinearConv", "b": "QLinearConv", "c": "Gemm"}, 2, 0.6, True),
        ({"a": "Conv", "b": "Conv", "c": "Gemm", "d": "QLinearAdd"}, 0, 0.0, True),
    ],
)
def test_share_of_macs_in_integer_kernels(operators, nodes, share, warns):
    kernels = integer_kernels(times(**operators), MACS)
    assert (kernels["nodes"], kernels["total"], kernels["macs_share"]) == (nodes, 3, share)
    assert (kernels["warning"] is not None) == warns


def test_warning_names_the_share():
    warning = integer_kernels(times(b="QLinearConv"), MACS)["warning"]
    assert warning.startswith("2 of 3 convolutions and matrix products")
    assert "50 % of the MACs" in warning
