"""What a target bounds: multiply-accumulates, parameters, bytes, or milliseconds on a device."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lowrank.config.ranks import RankSettings
from lowrank.core.layers import Layer, LayerTable, PlainLayer, sequence_macs, sequence_parameters
from lowrank.errors import UserError
from lowrank.factorize import Factorization, grouped_sequence
from lowrank.ranks.latency_model import Latencies

# Of an ONNX file, in bytes: what a node with weights and what follows it take besides the weights;
# in int8 also the scale, zero point and bias of each output channel, and the pairs of nodes around
# it. As the exports of VGG-16 show.
_NODE_IN_FLOAT = 340
_NODE_IN_INT8 = 2050
_CHANNEL_IN_INT8 = 9


@dataclass(frozen=True)
class Bound(ABC):
    """One entry of a target.

    Parameters
    ----------
    name
        As in the target: `macs`, `latency_ms.<device>`.
    share
        Of what the original network costs.
    """

    name: str
    share: float

    @abstractmethod
    def of_sequence(self, sequence: Sequence[PlainLayer], layer: Layer) -> float:
        """What plain layers cost in the place of a layer."""

    @abstractmethod
    def of_network(self, table: LayerTable) -> float:
        """What the original network costs."""

    @property
    def rest(self) -> float:
        """What a network costs besides the layers of its table."""
        return 0.0

    def of(self, layer: Layer, factorization: Factorization, ranks: Sequence[int]) -> float:
        """What the factors of a layer cost."""
        return self.of_sequence(grouped_sequence(factorization, layer, ranks), layer)

    def of_dense(self, layer: Layer) -> float:
        """What a layer costs undecomposed."""
        return self.of_sequence([layer], layer)

    def limit(self, table: LayerTable) -> float:
        """What layers and rest may cost together."""
        return self.share * self.of_network(table)

    def share_of_network(self, table: LayerTable, together: float) -> float:
        """Of what the original costs: layers and rest that cost so much together."""
        return together / self.of_network(table)

    def share_of_layers(self, table: LayerTable) -> float:
        """The limit as a share of what layers and rest cost undecomposed.

        Another one than that of the network where the layers are to be quantised as well.
        """
        return self.limit(table) / (self.rest + sum(map(self.of_dense, table.layers)))


@dataclass(frozen=True)
class CountBound(Bound):
    """Of multiply-accumulates (`macs`) or of `parameters`."""

    def of_sequence(self, sequence: Sequence[PlainLayer], layer: Layer) -> float:
        """A count."""
        if self.name == "macs":
            return sequence_macs(sequence, layer.input_map)
        return sequence_parameters(sequence)

    def of_network(self, table: LayerTable) -> float:
        """A count."""
        return sum(map(self.of_dense, table.layers))


@dataclass(frozen=True)
class SizeBound(Bound):
    """Of the bytes of the ONNX file.

    Parameters
    ----------
    quantized
        Whether the compressed network is in int8; the original is in float.
    """

    quantized: bool = False

    def of_sequence(self, sequence: Sequence[PlainLayer], layer: Layer) -> float:
        """Bytes."""
        return _bytes_in_int8(sequence) if self.quantized else _bytes_in_float(sequence)

    def of_network(self, table: LayerTable) -> float:
        """Bytes, in float."""
        return _bytes_in_float(table.layers)


def _bytes_in_float(sequence: Iterable[PlainLayer]) -> int:
    return sum(4 * layer.parameters + _NODE_IN_FLOAT for layer in sequence)


def _bytes_in_int8(sequence: Iterable[PlainLayer]) -> int:
    return sum(
        layer.parameters + _CHANNEL_IN_INT8 * layer.out_channels + _NODE_IN_INT8
        for layer in sequence
    )


@dataclass(frozen=True)
class LatencyBound(Bound):
    """Of milliseconds.

    Parameters
    ----------
    latencies
        What layers take on the device.
    """

    latencies: Latencies

    def of_sequence(self, sequence: Sequence[PlainLayer], layer: Layer) -> float:
        """Milliseconds, by the layers."""
        if layer.kind == "transposed_conv":
            return 0.0  # part of the rest
        return self.latencies.milliseconds(sequence, layer.input_map)

    def of_network(self, table: LayerTable) -> float:
        """Milliseconds, in one piece."""
        return self.latencies.original_ms

    def limit(self, table: LayerTable) -> float:
        """Milliseconds, by the layers."""
        return self.latencies.by_layers(super().limit(table))

    def share_of_network(self, table: LayerTable, together: float) -> float:
        """By what they take in one piece."""
        return super().share_of_network(table, self.latencies.in_one_piece(together))

    @property
    def rest(self) -> float:
        """Milliseconds."""
        return self.latencies.rest_ms


def bounds_of(
    settings: RankSettings, latencies: Mapping[str, Latencies], *, quantized: bool = False
) -> list[Bound]:
    """The entries of a target.

    Parameters
    ----------
    settings
        With the target.
    latencies
        Of each device that it names. Raises UserError for one without.
    quantized
        Whether the compressed network is in int8, and the latencies with it.
    """
    target = settings.costs
    for device in target.latency_ms:
        if device not in latencies:
            raise UserError(
                f"ranks.target.latency_ms.{device}: nothing was measured on '{device}'. The step "
                "profile_layers does that; outside the workflow take `macs` or `parameters`."
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
