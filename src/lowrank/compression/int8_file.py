"""Write one network in int8, for the processor of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from lowrank.compression.graph_network import GraphNetwork
from lowrank.config.device_kinds import create_device
from lowrank.config.quantize import QuantizeSettings
from lowrank.errors import UserError
from lowrank.onnx_files.int8 import Quantizer
from lowrank.onnx_files.int8_times import measure
from lowrank.onnx_networks.fixed_sizes import write_fixed
from lowrank.onnx_networks.int8_preparation import write_prepared


def write_int8(network: GraphNetwork, path: Path) -> tuple[str, ...]:
    """Write a network in int8, and return the nodes with weights that stay in float.

    These are the nodes that this machine runs slower in int8, with one thread: see
    `lowrank.onnx_files.int8_times`. Ranges of activations come from the samples of the network.

    Raises UserError if ONNX Runtime cannot quantize the network.
    """
    with _quantizer(network) as (quantizer, prepared):
        quantizer.write(path)
        slow = _slow_nodes(network, quantizer, prepared, path)
        if slow:
            quantizer.write(path, but=slow)
    return slow


def in_int8(network: GraphNetwork) -> onnx.ModelProto:
    """Return a network with all nodes in int8. Ranges of activations come from its samples.

    Raises UserError if ONNX Runtime cannot quantize the network.
    """
    with _quantizer(network) as (quantizer, prepared):
        path = prepared.with_name("int8.onnx")
        quantizer.write(path)
        return onnx.load(path)


@contextmanager
def _quantizer(network: GraphNetwork) -> Iterator[tuple[Quantizer, Path]]:
    """Provide the quantizer of a network, and the file in float that it quantizes.

    Any error in the context that is no UserError becomes one.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        intermediate = folder / "intermediate"
        intermediate.mkdir()
        try:
            prepared = write_prepared(network.model, folder / "prepared.onnx", network.label)
            yield Quantizer(prepared, network.batches, QuantizeSettings(), intermediate), prepared
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's tools raise nearly any type.
            raise UserError(
                f"{network.label}: ONNX Runtime cannot quantize this network to int8 "
                f"({type(error).__name__}: {error}). Compress it without int8."
            ) from error


def _slow_nodes(
    network: GraphNetwork, quantizer: Quantizer, in_float: Path, in_int8: Path
) -> tuple[str, ...]:
    """Return the nodes that are slower in int8 than in float; none if that cannot be measured."""
    sizes = {name: shape[1:] for name, shape in network.shapes.items()}
    mixed = in_float.with_name("mixed.onnx")

    def fixed(path: Path) -> Path:
        copy = in_float.with_name(f"{path.stem}_fixed.onnx")
        return write_fixed(path, copy, sizes)

    def write(kept: Sequence[str]) -> Path:
        quantizer.write(mixed, but=kept)
        return fixed(mixed)

    times = measure(create_device("local", {}), fixed(in_float), fixed(in_int8), write)
    return tuple(times.get("kept_in_float", ()))
