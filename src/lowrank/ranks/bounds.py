"""What a target bounds: multiply-accumulates, parameters, or milliseconds on a device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowrank.errors import UserError
from lowrank.factorize import Factorization, grouped_sequence
from lowrank.latency import Latencies
from lowrank.params import RankSettings
from lowrank.plan import Layer, LayerTable
from lowrank.ranks.scale import cost_of, dense_cost


@dataclass(frozen=True)
class Bound:
    """One entry of a target.

    Parameters
    ----------
    name
        `macs`, `parameters`, or `latency_ms.<device>`.
    share
        Of what the original network costs.
    latencies
        For milliseconds: what layers take there.
    """

    name: str
    share: float
    latencies: Latencies | None = None

    def of(self, layer: Layer, factorization: Factorization, ranks: Sequence[int]) -> float:
        """What the factors of a layer cost."""
        if self.latencies is None:
            return cost_of(layer, factorization, ranks, self.name)
        sequence = grouped_sequence(factorization, layer, ranks)
        return self.latencies.milliseconds(sequence, layer.input_map)

    def of_dense(self, layer: Layer) -> float:
        """What a layer costs as it is."""
        if self.latencies is None:
            return dense_cost(layer, self.name)
        if layer.kind == "transposed_conv":
            return 0.0  # part of the rest
        return self.latencies.milliseconds([layer], layer.input_map)

    def of_network(self, table: LayerTable) -> float:
        """What the whole network costs as it is."""
        if self.latencies is None:
            return self._by_layers(table)
        return self.latencies.original_ms

    def limit(self, table: LayerTable) -> float:
        """What layers and rest may cost together."""
        limit = self.share * self.of_network(table)
        return limit if self.latencies is None else self.latencies.by_layers(limit)

    def share_of_network(self, table: LayerTable, together: float) -> float:
        """Of what the whole network costs: layers and rest that cost so much together."""
        whole = together if self.latencies is None else self.latencies.in_one_piece(together)
        return whole / self.of_network(table)

    def share_of_layers(self, table: LayerTable) -> float:
        """The limit as a share of what layers and rest cost as they are.

        Another one than that of the network where the layers are to be quantised as well.
        """
        return self.limit(table) / self._by_layers(table)

    @property
    def rest(self) -> float:
        """What the network costs besides the layers of its table."""
        return self.latencies.rest_ms if self.latencies else 0.0

    def _by_layers(self, table: LayerTable) -> float:
        return self.rest + sum(map(self.of_dense, table.layers))


def bounds_of(settings: RankSettings, latencies: Mapping[str, Latencies]) -> list[Bound]:
    """The entries of a target, with the latencies of the devices that it names.

    Raises UserError for a device without latencies.
    """
    target = settings.costs
    for device in target.latency_ms:
        if device not in latencies:
            raise UserError(
                f"ranks.target.latency_ms.{device}: nothing was measured on '{device}'. The step "
                "profile_layers does that; outside the workflow take `macs` or `parameters`."
            )
    bounds = [
        Bound(cost, share)
        for cost, share in (("macs", target.macs), ("parameters", target.parameters))
        if share is not None
    ]
    return bounds + [
        Bound(f"latency_ms.{device}", share, latencies[device])
        for device, share in target.latency_ms.items()
    ]
