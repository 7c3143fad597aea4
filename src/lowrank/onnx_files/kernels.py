"""Which products of an int8 network a device really computes with integers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank.devices import INTEGER_PRODUCTS
from lowrank.devices.device import NodeTime

# From this share of its MACs in float on, an int8 file does not do what it is for.
MOST_IN_FLOAT = 1 / 3


def macs_of_nodes(model: Path) -> dict[str, int]:
    """MACs of each node that multiplies, by its name, of a network's ONNX file in float."""
    from lowrank.onnx_files.counts import count

    return {layer.name: layer.macs for layer in count(model).layers if layer.macs}


def integer_kernels(times: Mapping[str, NodeTime], macs: Mapping[str, int]) -> dict[str, Any]:
    """Count the products that ran as integer kernels.

    ONNX Runtime gives an integer kernel the name of the node that it computes; a float kernel may
    bear that of the activation behind it. So what is not among the integer ones ran in float.

    Parameters
    ----------
    times
        By ONNX Runtime's profile of the int8 network on the device.
    macs
        Of the network's nodes that multiply.

    Returns
    -------
    dict
        `nodes`, those that ran as integer kernels; `total`, all; `macs_share`, what the former
        have of the MACs, from 0 to 1; `warning`, where a third or more ran in float, or None.
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
