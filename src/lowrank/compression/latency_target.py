"""Measure on this machine what a target of latency needs, for a network in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from lowrank.config.device_kinds import create_device
from lowrank.core.layers import LayerTable, PlainLayer
from lowrank.devices import DeviceError
from lowrank.errors import UserError
from lowrank.factorize import Decomposition
from lowrank.onnx_files.forms import Form
from lowrank.onnx_files.latency_profile import Candidates, LatencyProfile
from lowrank.onnx_files.whole_networks import Export, Sequences
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.latency_model import Latencies
from lowrank.ranks.rank_settings import RankSettings

#: Name of this machine in a target: `{"latency_ms": {"local": 0.5}}`.
HERE = "local"

Self = TypeVar("Self", bound="WritableNetwork")


class WritableNetwork(Protocol):
    """A network in memory that can be measured as an ONNX file."""

    def copy(self: Self) -> Self:
        """Return a network that `replace` can change."""

    def replace(self, name: str, factors: Decomposition) -> None:
        """Replace a layer by its factors."""

    def remove_unread_channels(self) -> None:
        """Remove channels that no layer reads any more."""

    def write_fixed(self, path: Path) -> None:
        """Write the network as ONNX for one sample."""


def latencies_here(
    network: WritableNetwork,
    table: LayerTable,
    layers: dict[str, str],
    alternatives: Sequence[str],
    rule: RankSettings,
    *,
    int8: bool = False,
    say: Callable[[str], object],
) -> dict[str, Latencies]:
    """Measure the layers of a network for a target of latency; empty for other targets.

    Parameters
    ----------
    network
        The network. It is not changed.
    table
        Its layer table.
    layers
        Factorization by layer.
    alternatives
        Alternative factorizations.
    rule
        Settings of the rank rule.
    int8
        Whether the compressed network is in int8; the original is in float.
    say
        Called with lines of progress.

    Raises
    ------
    UserError
        If the target names another device than `local`, or the network cannot be measured.
    """
    if not isinstance(rule, BudgetSettings) or not rule.devices:
        return {}
    if others := sorted(set(rule.devices) - {HERE}):
        raise UserError(
            f"ranks.target.latency_ms: '{others[0]}' is not this machine. Outside the pipeline, "
            f"latency is measured here: use the name '{HERE}'."
        )
    settings = {"threads": 1, "batch_size": 1}
    with tempfile.TemporaryDirectory() as name:
        original = Path(name) / "original.onnx"
        network.write_fixed(original)
        candidates = Candidates(layers, list(alternatives), rule, HERE)
        try:
            device, cache = create_device(HERE, settings), Path(name) / "latencies.json"
            profile = LatencyProfile(device, settings, Form.here(int8=int8), cache, say)
            measured = profile.measured(original, export_of_network(network), table, candidates)
        except DeviceError as error:
            raise UserError(f"ranks.target.latency_ms: {error}") from error
    return {HERE: measured}


def export_of_network(network: WritableNetwork) -> Export:
    """Return a function that writes versions of a network in memory with random factors."""

    @contextmanager
    def export(sequences: Sequences, path: Path) -> Iterator[Path]:
        changed = network.copy()
        for layer, sequence in sequences.items():
            changed.replace(layer, _random_factors(sequence))
        changed.remove_unread_channels()
        changed.write_fixed(path)
        yield path

    return export


def _random_factors(sequence: Sequence[PlainLayer]) -> Decomposition:
    """Return factors of the right shapes, of which only the latency is measured.

    Outputs have about the scale of the inputs. In a deep network they would overflow otherwise, and
    int8 has no range for infinity.
    """
    generator = np.random.default_rng(0)

    def kernel(plain: PlainLayer) -> np.ndarray:
        shape = plain.weight_shape
        if plain.selects:
            return np.eye(*shape[:2], dtype=np.float32).reshape(shape)
        if plain.constant:
            return np.zeros(shape, np.float32)
        noise = generator.standard_normal(shape, dtype=np.float32)
        return noise / np.float32(np.sqrt(np.prod(shape[1:])))

    last = sequence[-1]
    bias = np.zeros(last.out_channels, np.float32) if last.bias else None
    return Decomposition(tuple(sequence), tuple(map(kernel, sequence)), bias, 0.0)
