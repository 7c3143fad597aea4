"""Choose the ranks of a round's layers on the weights as the round finds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.plan import LayerTable, Loss, Plan
from lowrank.steps.common import Json, Paths, Step, say, use_threads

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lowrank.factorize import Decomposition, Factorization, Moments
    from lowrank.networks.divergence import Divergence
    from lowrank.params import RankSettings
    from lowrank.plan import Layer, Share
    from lowrank.ranks import Losses, Trial


@click.command(cls=Step)
@click.option("--state", type=Path, required=True, help="The network before the round.")
@click.option("--table", type=Path, required=True, help="Its layer table, JSON.")
@click.option("--replaceable", default="", help="Layers that must stay, and why, JSON.")
@click.option("--layers", type=Json(), required=True, help="Factorization by layer, JSON.")
@click.option("--settings", type=Json(), required=True, help="methods.<method>.ranks, JSON.")
@click.option(
    "--stages-left", type=int, default=1, help="Rounds in which to come down to the rule's ranks."
)
@click.option(
    "--all-layers",
    type=Json(),
    default="{}",
    help="Factorization by layer of every round, JSON: for a rule that shares out ranks.",
)
@click.option(
    "--alternatives", type=Json(), default="[]", help="For `budget`: further factorizations, JSON."
)
@click.option(
    "--network", "described", default="", help="For such a rule: as params.yaml describes it."
)
@click.option("--dataset", default="", help="For such a rule: folder of the dataset step.")
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option("--moments", default="", help="For such a rule, with `norm: activation`: moments.")
@click.option(
    "--latencies",
    type=Paths(),
    default="",
    help="For a target of latencies: what layers take, JSON, for each of its devices.",
)
@click.option("--quantize", default="", help="methods.<method>.quantize; empty: in float.")
@click.option("--aim", default="", help="For a target of accuracy: what the trial may cost, JSON.")
@click.option(
    "--known", type=Paths(), default="", help="Plans of earlier trials, whose losses are known."
)
@click.option("--first", default="", help="For such a rule, after the first round: its plan.")
@click.option("--threads", type=int, required=True)
@click.option("--plan", type=Path, required=True, help="Output: the plan of the round, JSON.")
def select_ranks(
    state: Path,
    table: Path,
    replaceable: str,
    layers: dict[str, str],
    settings: dict[str, Any],
    stages_left: int,
    all_layers: dict[str, str],
    alternatives: list[str],
    described: str,
    dataset: str,
    splits: str,
    moments: str,
    latencies: list[Path],
    quantize: str,
    aim: str,
    known: list[Path],
    first: str,
    threads: int,
    plan: Path,
) -> None:
    """Choose the ranks of a round's layers."""
    use_threads(threads)
    from lowrank.factorize import get_factorization
    from lowrank.files import read_json, write_json
    from lowrank.params import Target
    from lowrank.ranks import choose_ranks, leave_negligible
    from lowrank.ranks.base import rank_settings
    from lowrank.steps.weights import layer_factored, layer_weight

    network = LayerTable.from_json(read_json(table))
    if replaceable:
        network = network.with_obstacles(read_json(replaceable)["stays_dense"])
    rule = rank_settings(settings)
    if aim:
        target = Target.of(rule.search.cost, read_json(aim)["share"])
        rule = rule.model_copy(update={"target": target})
    if rule.select != "fixed":
        network = leave_negligible(network, rule.negligible)
    sensitivity, shares = {}, {}
    losses: Losses = {}
    for loss in (loss for path in known for loss in Plan.read(path).losses):
        losses.setdefault((loss.layer, loss.factorization), {})[loss.ranks] = loss.nats
    if rule.looks_at_all_layers and layers:
        if first:
            shares = Plan.read(first).shares
        else:
            original = _Original(described, state, Path(dataset), splits, rule, moments, threads)
            if rule.select == "sensitivity":
                sensitivity, shares = _by_sensitivity(original, network, all_layers, rule)
            else:
                by_device = dict(zip(rule.devices, latencies, strict=True))
                shares = _for_target(
                    original,
                    network,
                    all_layers,
                    alternatives,
                    by_device,
                    rule,
                    losses,
                    quantized=bool(quantize),
                )
        table_of_ranks = {name: share.ranks for name, share in shares.items()}
        rule = rule.model_copy(update={"table": table_of_ranks})
        layers |= {name: shares[name].factorization for name in layers if name in shares}
    planned = []
    for name, factorization in layers.items():
        chosen = choose_ranks(
            network[name],
            layer_weight(state, name),
            get_factorization(factorization),
            rule,
            factored=layer_factored(state, name),
            stages_left=stages_left,
        )
        planned.append(chosen)
        outcome = (
            f"stays as it is: {chosen.dense_because}"
            if chosen.is_dense
            else (
                f"{factorization} at ranks {', '.join(map(str, chosen.ranks))}, "
                f"{chosen.macs[0] / chosen.macs[1]:.1f}x fewer MACs"
            )
        )
        say("; ".join([f"{name}: {outcome}", *chosen.notes]))
    shares = {} if first else shares
    measured = tuple(
        Loss(*key, ranks, nats) for key, found in losses.items() for ranks, nats in found.items()
    )
    write_json(plan, Plan(tuple(planned), sensitivity, shares, measured).to_json())


class _Original:
    """The network before the first round, for rules that look at all of its layers."""

    def __init__(
        self,
        described: str,
        state: Path,
        dataset: Path,
        splits: str,
        rule: RankSettings,
        moments: str,
        threads: int,
    ) -> None:
        import torch

        from lowrank.network_source import NetworkSource
        from lowrank.networks.states import read_state
        from lowrank.training.datasets import open_dataset

        torch.set_num_threads(threads)
        self._path, self._moments = state, moments
        self._state = read_state(state, NetworkSource.parse(described))
        self._images = open_dataset(dataset, splits).validation.sample(rule.images)

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Of one layer."""
        from lowrank.steps.weights import layer_bias, layer_weight

        return layer_weight(self._path, name), layer_bias(self._path, name)

    def moments(self, name: str) -> Moments | None:
        """Of one layer's inputs, for `norm: activation`."""
        from lowrank.steps.moments import layer_moments

        return layer_moments(Path(self._moments), name) if self._moments else None

    def losses(self, replacements: Iterable[tuple[str, Decomposition]]) -> dict[str, float]:
        """By labels, of the network with one layer at a time replaced."""
        from lowrank.training.sensitivity import losses_by_layer

        network, spec = self._state.network, self._state.spec
        return losses_by_layer(network, spec, self._images, replacements, say=say)

    def divergence(self) -> Divergence:
        """Measures how far such replacements move the network's answers."""
        from lowrank.networks.divergence import Divergence
        from lowrank.progress import counted
        from lowrank.training.evaluate import inputs_of

        network, spec, split = self._state.network, self._state.spec, self._images

        def images() -> Iterator[Tensor]:
            return counted((batch for batch, _ in inputs_of(network, split, spec)), len(split))

        return Divergence(network, images, split.of_classes)


def _by_sensitivity(
    original: _Original, table: LayerTable, layers: dict[str, str], rule: RankSettings
) -> tuple[dict[str, float], dict[str, Share]]:
    """Measure what the network loses by each layer, and share out the ranks accordingly."""
    from lowrank.factorize import decompose
    from lowrank.plan import Share
    from lowrank.ranks import ranks_within, shared_out, taken_layers
    from lowrank.ranks.scale import dense_cost

    taken = list(taken_layers(table, layers))

    def replacements() -> Iterator[tuple[str, Decomposition]]:
        for layer, method, full_ranks in taken:
            limit = dense_cost(layer, rule.cost) / rule.trial_ratio
            ranks = ranks_within(layer, method, full_ranks, limit=limit, cost=rule.cost)
            moments = original.moments(layer.name)
            weight, bias = original.weight_and_bias(layer.name)
            yield layer.name, decompose(method, layer, weight, bias, ranks, moments)

    sensitivity, ranks = shared_out(taken, original.losses(replacements()), rule)
    order = sorted(sensitivity, key=sensitivity.get, reverse=True)
    say(f"most sensitive first: [{', '.join(order)}]")
    return sensitivity, {name: Share(layers[name], each) for name, each in ranks.items()}


def _for_target(
    original: _Original,
    table: LayerTable,
    layers: dict[str, str],
    alternatives: list[str],
    latencies: dict[str, Path],
    rule: RankSettings,
    losses: Losses,
    *,
    quantized: bool,
) -> dict[str, Share]:
    """Measure what the network loses by each layer, and choose ranks that meet the target."""
    from lowrank.factorize import kernel_of
    from lowrank.files import read_json
    from lowrank.latency import Latencies
    from lowrank.ranks import Candidate, Trial, bounds_of, for_target, taken_layers

    def read(layer: Layer, method: Factorization, full_ranks: tuple[int, ...]) -> Trial:
        weight, bias = original.weight_and_bias(layer.name)
        kernel = kernel_of(layer, weight, name=layer.name)
        candidate = Candidate(layer, kernel, method, full_ranks)
        return Trial(candidate, bias, original.moments(layer.name))

    trials = [partial(read, *each) for each in taken_layers(table, layers, alternatives)]
    bounds = bounds_of(
        rule,
        {name: Latencies.from_json(read_json(path)) for name, path in latencies.items()},
        quantized=quantized,
    )
    shares = for_target(table, trials, rule, bounds, original.divergence(), losses=losses, say=say)
    total = sum(share.loss for share in shares.values())
    say(f"divergence of the answers by each layer alone, summed: {total:.2g} nats")
    return shares


if __name__ == "__main__":
    select_ranks()
