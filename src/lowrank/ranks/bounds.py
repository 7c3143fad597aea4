"""Costs that a target bounds: MACs, parameters, bytes, or milliseconds on a device."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lowrank.core.layers import Layer, LayerTable, PlainLayer, sequence_macs, sequence_parameters
from lowrank.errors import UserError
from lowrank.factorize import Factorization, grouped_sequence
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.latency_model import Latencies

# Overhead in the ONNX file, in bytes, from exports of VGG-16. It counts, besides the weights, each
# node with weights and the nodes that follow it, in float or in int8. In int8 this includes the
# pairs of nodes around it. Each output channel in int8 adds a scale, a zero point and a bias.
_NODE_IN_FLOAT = 340
_NODE_IN_INT8 = 2050
_CHANNEL_IN_INT8 = 9


@dataclass(frozen=True)
class Bound(ABC):
    """One entry of a target.

    Parameters
    ----------
    name
        Name in the target: `macs`, `latency_ms.<device>`.
    share
        Upper limit, as a share of the original network's cost.
    """

    name: str
    share: float

    @abstractmethod
    def of_sequence(self, sequence: Sequence[PlainLayer], layer: Layer) -> float:
        """Return the cost of plain layers in the place of a layer."""

    @abstractmethod
    def of_network(self, table: LayerTable) -> float:
        """Return the cost of the original network."""

    @property
    def rest(self) -> float:
        """Cost of a network besides the layers of its table."""
        return 0.0

    def of(self, layer: Layer, factorization: Factorization, ranks: Sequence[int]) -> float:
        """Return the cost of a layer's factors."""
        return self.of_sequence(grouped_sequence(factorization, layer, ranks), layer)

    def of_dense(self, layer: Layer) -> float:
        """Return the cost of a layer that is not decomposed."""
        return self.of_sequence([layer], layer)

    def limit(self, table: LayerTable) -> float:
        """Return the upper limit for the layers and the rest together."""
        return self.share * self.of_network(table)

    def share_of_network(self, table: LayerTable, together: float) -> float:
        """Return the cost `together` of layers and rest as a share of the original's cost."""
        return together / self.of_network(table)

    def share_of_layers(self, table: LayerTable) -> float:
        """Return the limit as a share of the cost of layers and rest without decomposition.

        It differs from the share of the network if the layers are also quantized.
        """
        return self.limit(table) / (self.rest + sum(map(self.of_dense, table.layers)))


@dataclass(frozen=True)
class CountBound(Bound):
    """Bound on multiply-accumulates (`macs`) or on `parameters`."""

    def of_sequence(self, sequence: Sequence[PlainLayer], layer: Layer) -> float:
        """Return a count."""
        if self.name == "macs":
            return sequence_macs(sequence, layer.input_map)
        return sequence_parameters(sequence)

    def of_network(self, table: LayerTable) -> float:
        """Return a count."""
        return sum(map(self.of_dense, table.layers))


@dataclass(frozen=True)
class SizeBound(Bound):
    """Bound on the size of the ONNX file in bytes.

    Parameters
    ----------
    quantized
        Whether the compressed network is in int8; the original is in float.
    """

    quantized: bool = False

    def of_sequence(self, sequence: Sequence[PlainLayer], layer: Layer) -> float:
        """Return bytes."""
        return _bytes_in_int8(sequence) if self.quantized else _bytes_in_float(sequence)

    def of_network(self, table: LayerTable) -> float:
        """Return bytes, in float."""
        return _bytes_in_float(table.layers)


def _bytes_in_float(sequence: Iterable[PlainLayer]) -> int:
    stored = (layer for layer in sequence if layer.is_exported)
    return sum(4 * layer.parameters + _NODE_IN_FLOAT for layer in stored)


def _bytes_in_int8(sequence: Iterable[PlainLayer]) -> int:
    return sum(
        layer.parameters + _CHANNEL_IN_INT8 * layer.out_channels + _NODE_IN_INT8
        for layer in sequence
        if layer.is_exported
    )


@dataclass(frozen=True)
class LatencyBound(Bound):
    """Bound on the latency in milliseconds.

    Parameters
    ----------
    latencies
        Latencies of layers on the device.
    """

    latencies: Latencies

    def of_sequence(self, sequence: Sequence[PlainLayer], layer: Layer) -> float:
        """Return milliseconds, as the sum over layers."""
        if layer.kind == "transposed_conv":
            return 0.0  # counted in the rest
        return self.latencies.milliseconds(sequence, layer.input_map)

    def of_network(self, table: LayerTable) -> float:
        """Return milliseconds, measured for the network in one piece."""
        return self.latencies.original_ms

    def limit(self, table: LayerTable) -> float:
        """Return milliseconds, as the sum over layers."""
        return self.latencies.by_layers(super().limit(table))

    def share_of_network(self, table: LayerTable, together: float) -> float:
        """Return the share, after conversion of the sum over layers to one piece."""
        return super().share_of_network(table, self.latencies.in_one_piece(together))

    @property
    def rest(self) -> float:
        """Milliseconds for everything besides the layers."""
        return self.latencies.rest_ms


def bounds_of(
    settings: BudgetSettings, latencies: Mapping[str, Latencies], *, quantized: bool = False
) -> list[Bound]:
    """Return the entries of a target.

    Parameters
    ----------
    settings
        Settings with a target for costs: those of one trial, for a target of accuracy.
    latencies
        Latencies for each device in the target. Raises UserError if one is missing.
    quantized
        Whether the compressed network and the latencies are in int8.
    """
    target = settings.target
    for device in target.latency_ms:
        if device not in latencies:
            raise UserError(
                f"ranks.target.latency_ms.{device}: no latencies were measured on '{device}'. The "
                "step profile_layers measures them; outside the workflow, use `macs` or "
                "`parameters`."
            )
    bounds: list[Bound] = [
        CountBound(cost, share)
        for cost, share in (("macs", target.macs), ("parameters", target.parameters))
        if share is not None
    ]
    if target.size_bytes is not None:
        bounds.append(SizeBound("size_bytes", target.size_bytes, quantized))
    return bounds + [
        LatencyBound(f"latency_ms.{device}", share, latencies[device])
        for device, share in target.latency_ms.items()
    ]
