"""Count the products of an int8 network that a device computes with integer kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank.devices import INTEGER_PRODUCTS
from lowrank.devices.device import NodeTime

# Share of MACs in float from which a warning is given: the int8 file has little benefit then.
MOST_IN_FLOAT = 1 / 3


def macs_of_nodes(model: Path) -> dict[str, int]:
    """Return the MACs of each node that has any, by name, for an ONNX file in float."""
    from lowrank.onnx_files.counts import count

    return {layer.name: layer.macs for layer in count(model).layers if layer.macs}


def integer_kernels(times: Mapping[str, NodeTime], macs: Mapping[str, int]) -> dict[str, Any]:
    """Count the products that ran as integer kernels.

    In ONNX Runtime, an integer kernel has the name of its node, but a float kernel can have the
    name of the activation after it. So every node that is not among the integer kernels ran in
    float.

    Parameters
    ----------
    times
        ONNX Runtime's profile of the int8 network on the device.
    macs
        MACs by node of the network in float.

    Returns
    -------
    dict
        `nodes`, the number of nodes that ran as integer kernels; `total`, the number of all nodes
        with MACs; `macs_share`, the share of MACs in integer kernels, from 0 to 1; `warning`, a
        text if a third or more of the MACs ran in float, or None.
    """
    integer = {
        name for name, node in times.items() if node.operator in INTEGER_PRODUCTS and name in macs
    }
    total = sum(macs.values())
    share = sum(macs[name] for name in integer) / total if total else 0.0
    warning = None
    if macs and 1 - share >= MOST_IN_FLOAT:
        warning = (
            f"{len(macs) - len(integer)} of {len(macs)} convolutions and matrix products of the "
            f"int8 file, with {100 * (1 - share):.0f} % of the MACs, run in float on this device"
        )
    return {
        "nodes": len(integer),
        "total": len(macs),
        "macs_share": round(share, 4),
        "warning": warning,
    }
