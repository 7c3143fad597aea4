"""Choose ranks, decompose the layers and put the factors in, for a network in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from lowrank.compression.latency_target import latencies_here
from lowrank.config.factorize import FactorizeSettings
from lowrank.core.layers import LayerTable
from lowrank.core.plans import Expected, Factored, Losses, PlannedLayer
from lowrank.core.rounds import assign_factorizations
from lowrank.errors import UserError
from lowrank.factorize import (
    Decomposition,
    Moments,
    Shift,
    carried_over,
    decompose,
    get_factorization,
    kernel_of,
)
from lowrank.ranks.choice import RankChoice, Replacements
from lowrank.ranks.latency_model import Latencies
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.removed_channels import network_macs
from lowrank.ranks.rule import rule_of

Divergence = Callable[[Iterable[tuple[str, Decomposition]]], Iterable[float]]
Self = TypeVar("Self", bound="NetworkInMemory")


class NetworkInMemory(Protocol):
    """A network that is compressed in memory, in PyTorch or as an ONNX graph."""

    @property
    def table(self) -> LayerTable:
        """The layer table."""

    @property
    def obstacles(self) -> Mapping[str, str]:
        """Reasons why further layers must stay, by name, which the layer table does not know."""

    @property
    def divergence_unit(self) -> str:
        """Unit of the divergence of outputs, such as nats."""

    @property
    def samples(self) -> int:
        """Number of samples."""

    def copy(self: Self) -> Self:
        """Return a network that `replace` can change, with the same samples."""

    def with_samples_of(self: Self, other: Self) -> Self:
        """Return this network with the samples of another one."""

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the weight and the bias of a layer in float32."""

    def replace(self, name: str, factors: Decomposition) -> None:
        """Replace a layer by its factors."""

    def remove_unread_channels(self) -> None:
        """Remove channels that no layer reads any more; `replace` must not be called afterwards."""

    def moments(self, names: Iterable[str]) -> dict[str, Moments]:
        """Return the moments of the inputs of some layers. Raises UserError without samples."""

    def in_int8(self: Self) -> Self:
        """Return the network with all nodes in int8, to measure its outputs.

        Raises UserError if ONNX Runtime cannot quantize it.
        """

    def divided(self: Self, count: int | None = None) -> tuple[Self, Self]:
        """Return the network with samples for factors, and with other samples for their losses.

        `count` is the number of the other samples; by default, losses are measured on enough.
        """

    def drifts(
        self: Self, original: Self, names: Iterable[str]
    ) -> Generator[tuple[str, Moments, Shift]]:
        """Yield layers in the order of their calls, with the moments and the shift of their inputs.

        The caller replaces a layer before it takes the next one.
        """

    def divergence(self) -> Divergence:
        """Return a function that measures how much each replaced layer changes the outputs.

        Raises UserError without samples.
        """

    def write_fixed(self, path: Path) -> None:
        """Write the network as ONNX for one sample."""

    def expected_from(self: Self, original: Self, most: int | None = None) -> Expected | None:
        """Return the agreement with the original; None if it cannot be measured.

        `most` limits the number of samples.
        """


Network = TypeVar("Network", bound=NetworkInMemory)


@dataclass
class Compression(Generic[Network]):
    """A network to compress, with everything that does not depend on the rank rule.

    Parameters
    ----------
    network
        The network. It is not changed.
    factorize
        Factorization of each kind of layer, and the norm.
    assigned
        Factorization by layer name.
    int8
        Whether the compressed network will be in int8: targets of latency and of size count its
        layers in int8.
    moments, losses, latencies
        Measurements that all rules share.
    factored
        Factors of the last network that `at` returned, by layer name.
    say
        Called with lines of progress.
    """

    network: Network
    factorize: FactorizeSettings
    assigned: dict[str, str]
    int8: bool = False
    moments: dict[str, Moments] = field(default_factory=dict)
    losses: Losses = field(default_factory=dict)
    latencies: dict[str, Latencies] = field(default_factory=dict)
    factored: dict[str, Factored] = field(default_factory=dict)
    say: Callable[[str], object] = lambda _: None

    @classmethod
    def of(cls, network: Network, factorize: FactorizeSettings) -> Compression[Network]:
        """Choose the factorization of each layer. Raises UserError if no layer can be replaced."""
        table = network.table
        assigned = assign_factorizations(
            table, factorize.by_kind(), include=factorize.include, exclude=factorize.exclude
        )
        if not table.layers:
            raise UserError(
                f"{table.network}: has no convolution and no product with a stored weight, so "
                "there is nothing to replace by factors."
            )
        if not assigned:
            layers = ", ".join(
                f"{layer.name}: {layer.not_factored or layer.kind}" for layer in table.layers[:10]
            )
            raise UserError(
                f"{table.network}: `factorize` selects none of its layers ({layers}"
                f"{', ...' if len(table.layers) > 10 else ''}). Name a factorization for a kind of "
                "layer that it has, and correct `include` and `exclude`."
            )
        return cls(network, factorize, assigned)

    def plan(self, rule: RankSettings) -> tuple[PlannedLayer, ...]:
        """Return the ranks that a rule chooses, and their effect on each layer."""
        measures_losses = rule_of(rule).looks_at_all_layers
        fitted = judge = self.network
        if measures_losses and self.factorize.norm == "activation":
            fitted, judge = self.network.divided()
        sequential = self.factorize.sequential and not measures_losses
        if self.factorize.norm == "activation" and not sequential and not self.moments:
            self.moments = fitted.moments(self.assigned)
        table = self.network.table.with_obstacles(self.network.obstacles)
        choice = RankChoice(
            network=_MeasuredInMemory(judge, self.moments),
            table=table,
            layers=self.assigned,
            all_layers=self.assigned,
            alternatives=self.factorize.alternatives,
            latencies=self.measured_latencies(table, rule),
            losses=self.losses,
            quantized=self.int8,
        )
        return choice.at(rule, say=lambda _: None).layers

    def measured_latencies(self, table: LayerTable, rule: RankSettings) -> dict[str, Latencies]:
        """Return the latencies for a target of latency, which are measured only once.

        They are empty for other targets. Raises UserError if the network cannot be measured.
        """
        if not self.latencies:
            alternatives = self.factorize.alternatives
            self.latencies = latencies_here(
                self.network,
                table,
                self.assigned,
                alternatives,
                rule,
                int8=self.int8,
                say=self.say,
            )
        return self.latencies

    def at(self, rule: RankSettings) -> tuple[Network, tuple[PlannedLayer, ...]]:
        """Return a copy of the network with its layers decomposed, and the change of each layer."""
        planned, compressed = self.plan(rule), self.network.copy()
        chosen = {layer.name: layer for layer in planned if not layer.is_dense}
        if self.factorize.sequential:
            factored = dict(self._replaced_in_order(compressed, chosen))
        else:
            factored = {
                name: self._replace(compressed, layer, *compressed.weight_and_bias(name))
                for name, layer in chosen.items()
            }
        self.factored = {name: factored[name] for name in chosen}
        compressed.remove_unread_channels()
        return compressed, planned

    def macs(self, planned: Sequence[PlannedLayer]) -> tuple[int, int]:
        """Return the MACs of all layers of the network for one sample, before and after."""
        return network_macs(self.network.table, planned)

    def _replaced_in_order(
        self, compressed: Network, chosen: Mapping[str, PlannedLayer]
    ) -> Iterator[tuple[str, Factored]]:
        """Replace layers one after another; each compensates for the errors of those before it."""
        with closing(compressed.drifts(self.network, chosen)) as drifts:
            for name, moments, shift in drifts:
                weight, bias = compressed.weight_and_bias(name)
                layer = self.network.table[name]
                kernel = kernel_of(layer, weight, name=name)
                kernel, bias = carried_over(kernel, bias, moments, shift, positions=layer.positions)
                yield name, self._replace(compressed, chosen[name], kernel, bias, moments)

    def _replace(
        self,
        compressed: Network,
        planned: PlannedLayer,
        weight: np.ndarray,
        bias: np.ndarray | None,
        moments: Moments | None = None,
    ) -> Factored:
        """Replace a layer by factors of this weight; `moments` are by default the original's."""
        name = planned.name
        layer, factorization = self.network.table[name], get_factorization(planned.factorization)
        if moments is None:
            moments = self.moments.get(name)
        factors = decompose(factorization, layer, weight, bias, planned.ranks, moments)
        compressed.replace(name, factors)
        return Factored(
            planned.factorization, planned.ranks, factors.relative_error, factors.sequence
        )


@dataclass(frozen=True)
class _MeasuredInMemory:
    """`lowrank.ranks.choice.MeasuredNetwork` in memory."""

    network: NetworkInMemory
    layer_moments: Mapping[str, Moments]

    @property
    def divergence_unit(self) -> str:
        return self.network.divergence_unit

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        return self.network.weight_and_bias(name)

    def factored(self, name: str) -> None:
        return None

    def moments(self, name: str) -> Moments | None:
        return self.layer_moments.get(name)

    def losses(self, replacements: Replacements) -> dict[str, float]:
        raise UserError(
            "select: 'sensitivity' measures losses with labels, which `compress` does not have. "
            "Use another rule, or pass the ranks with 'fixed'."
        )

    def divergence(self) -> Divergence:
        return self.network.divergence()

    def expected(self, replacements: Replacements) -> Expected | None:
        # Not needed here: `compress` measures the network that it returns.
        return None
